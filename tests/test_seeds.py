"""Named streams of random numbers: no two purposes share one, and no two streams coincide."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product

import numpy as np
import torch

from app.seeds import numpy_stream, stream_key, torch_seed, torch_stream
from tests.jobs import ROOT

_CALL = re.compile(r"(?:numpy_stream|torch_stream|torch_seed|stream_key)\(\s*[^,()]+(?:\([^()]*\))?,\s*\"([\w.]+)\"")


def purposes() -> list[str]:
    """The name of every stream that the app draws from, once a place that names it."""
    files = [path for path in (ROOT / "app").rglob("*.py") if path.name != "seeds.py"]
    return [name for path in files for name in _CALL.findall(path.read_text())]


def test_every_purpose_has_a_stream_of_its_own() -> None:
    found = purposes()
    assert {"order.blocks", "order.window", "augment", "head.classes", "head.centres", "train.micro_batch"} <= set(
        found
    )
    assert [name for name, count in Counter(found).items() if count > 1] == []


def test_whoever_draws_from_a_seed_of_the_user_names_a_stream() -> None:
    drawing = re.compile(r"default_rng\(seed|manual_seed\((?!torch_seed)")
    found = {
        path.name: drawing.findall(path.read_text())
        for path in (ROOT / "app").rglob("*.py")
        if path.name != "seeds.py" and drawing.search(path.read_text())
    }
    # The published pairs of ORL, and the first weights of the backbone, which torch draws.
    assert found == {"orl.py": ["default_rng(seed"], "train.py": ["manual_seed("]}


def test_streams_of_near_numbers_and_seeds_differ() -> None:
    names = [*purposes(), ""]
    keys = {stream_key(*key) for key in product(range(4), names, range(4), range(4))}
    keys |= {stream_key(*key) for key in product(range(4), names, range(16))}
    assert len(keys) == 4 * len(names) * (16 + 16)
    # Where numbers end and begin counts: (1, 23) is not (12, 3), and a name cannot run into a number.
    assert stream_key(0, "a", 1, 23) != stream_key(0, "a", 12, 3) != stream_key(0, "a1", 2, 3)


def test_two_streams_are_independent_as_far_as_a_correlation_tells() -> None:
    draws = [numpy_stream(1, name, 0).random(20_000) for name in sorted(set(purposes()))]
    off_diagonal = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(off_diagonal).max() < 5 / 20_000**0.5
    first = torch.rand(20_000, generator=torch_stream(1, "head.centres", 0))
    second = torch.rand(20_000, generator=torch_stream(1, "head.centres", 1))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 / 20_000**0.5
    assert 0 <= torch_seed(1, "x") < 2**63
