"""``for`` in a configuration of arcface_torch: short lists are gone through, under one budget; the rest is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config.options import load_recipe
from app.config.recipe import RecipeError
from tests.config.test_reference_config import write

LOOPS = [
    ("for lr in (0.1, 0.2):\n    config.lr = lr", "optim.lr"),
    ("x = 1\nfor i in range(3):\n    x *= 2\nconfig.lr = x / 16 + i", "optim.lr"),
    ("x = 0\nfor i in [1, 2]:\n    for j in [3, 4]:\n        x += i * j\nconfig.lr = x", "optim.lr"),
    ("for i in []:\n    config.lr = 3\nconfig.batch_size = 7", "optim.lr"),
    ("e = []\nfor i in range(20):\n    if i in (8, 14):\n        e += [i]\nconfig.decay_epoch = e", "optim.milestones"),
]


@pytest.mark.parametrize(("text", "field"), LOOPS)
def test_a_loop_gives_what_python_gives(tmp_path: Path, text: str, field: str) -> None:
    class Config:
        lr = 0.1  # the reference's default

    config = Config()
    exec(text, {"config": config})  # the oracle: these texts are ours
    section, name = field.split(".")
    value = getattr(getattr(load_recipe(write(tmp_path, text)), section), name)
    if name == "milestones":
        assert list(map(float, value)) == config.decay_epoch  # type: ignore[attr-defined]
    else:
        assert value == config.lr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("for i in range(3):\n    if i == 1: break\n    config.lr = i", "line 5: only config.NAME"),
        ("for i in 'abc': config.lr = 1", "line 4: .*'abc.* is no short list to go through"),
        ("for i in [1]:\n    from configs.ms1mv3 import config", "line 5: a loop that imports is not read"),
        ("for i in [1]:\n    config.lr = i\nelse:\n    config.lr = 2", "line 4: only config.NAME"),
        ("for a, b in [(1, 2)]:\n    config.lr = a", "line 4: only config.NAME"),
        ("for i in range(10 ** 12): config.lr = i", "line 4"),
        ("for i in range(40):\n  for j in range(40):\n    config.lr = i", "line 5: .* is no short list"),
        ("for i in range(900):\n" + "  a = 1\n" * 3000 + "config.lr = 1", "line 4: .* is no short list"),
        ("a = [0]\nfor i in range(40):\n  a = a + a\nconfig.margin_list = a", "line 7"),
        ("for i in range(500):\n  config.margin_list = [j for j in range(500)]", "line 5: .* is no short list"),
    ],
)
def test_a_loop_that_is_long_or_no_loop_over_values_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text))
