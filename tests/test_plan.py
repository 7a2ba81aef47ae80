"""The plan: sizes that follow from shapes, what cannot fit is refused, and what would fit is named."""

from __future__ import annotations

import pytest

from app.config.options import parse_arguments
from app.plan import Node, ResourceError, activation_bytes, main, predict, problems
from app.run_folder import build_model

SMALL = ["--recipe", "orl", "--data.num-classes", "1000", "--data.url", "synthetic"]


def test_what_follows_from_shapes_is_exact() -> None:
    recipe = parse_arguments(SMALL)
    needs = predict(recipe, 4)
    width = recipe.model.embedding_size
    parameters = sum(p.numel() for p in build_model(recipe.model, recipe.data.image_size).parameters())
    assert needs.kept["backbone"] == needs.kept["gradients"] == 4 * parameters
    assert needs.kept["centres"] == needs.kept["momentum"] == 4 * 250 * width
    assert predict(recipe, 8).kept["centres"] == 4 * 125 * width


def test_activations_grow_with_the_batch_and_halve_with_the_precision() -> None:
    sizes = [activation_bytes(parse_arguments([*SMALL, "--train.batch-size", str(size)])) for size in (8, 16)]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.05)
    half = parse_arguments([*SMALL, "--train.batch-size", "16", "--train.precision", "bf16"])
    assert activation_bytes(half) == sizes[1] // 2


def test_what_cannot_fit_is_refused_with_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = parse_arguments([*SMALL, "--train.batch-size", "64"])
    needed = (predict(recipe, 1).peak + sum(predict(recipe, 1).host.values())) >> 20
    few = ["--hardware", "cpu", "--host-mb", str(needed - 20), "--train.batch-size", "64"]
    with pytest.raises(ResourceError, match=r"would fit, with the same global batch"):
        main([*SMALL, *few])
    assert "activations" in capsys.readouterr().out
    assert problems(recipe, 1, 1, Node(1, 0, needed + 200)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "orl", "--data.num-classes", "0"], "set --data.num-classes"),
        ([*SMALL, "--hardware", "abacus"], "unknown hardware 'abacus'"),
        ([*SMALL, "--nnodes", "many"], "--nnodes must be N or MIN:MAX"),
    ],
)
def test_unknown_sizes_are_asked_for(arguments: list[str], message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        main(arguments)
