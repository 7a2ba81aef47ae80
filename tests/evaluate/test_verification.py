"""Verification shared out over ranks gives the figures of one; in training it keeps the best and sums up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app import storage
from app.data.bin_sets import VerificationSet, dump_set, load_set
from app.data.decode import encode_jpeg
from app.device import detect_device
from app.evaluate.verification import SetResult, verify_set
from app.observe.events import read_events
from app.world import World
from tests.jobs import train, write_faces
from tests.ranks import run_ranks

PAIRS = 25  # no multiple of 2, 3 or 4


def write_set(url: str) -> None:
    """Noise patterns: a pair is the same pattern twice with other noise, or two patterns."""
    generator = np.random.default_rng(3)
    images, issame = [], []
    for number in range(PAIRS):
        pattern = generator.integers(0, 120, (32, 32, 3))
        other = pattern if number % 2 == 0 else generator.integers(0, 120, (32, 32, 3))
        for face in (pattern, other):
            images.append(encode_jpeg((face + generator.integers(0, 120, face.shape)).astype(np.uint8)))
        issame.append(number % 2 == 0)
    storage.write_bytes(url, dump_set(images, issame))


def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A fixed random projection; the sum over an axis of fixed length, so that it does not depend on the batch."""
    projection = np.random.default_rng(0).standard_normal((16, images[0].size)).astype(np.float32)
    return np.stack([(projection * image.reshape(-1).astype(np.float32)).sum(axis=1) for image in images])


def verify(rank: int, world: int, url: str) -> SetResult:
    pairs: VerificationSet = load_set(url)
    return verify_set(pairs, embed, image_size=32, batch_size=8, world=World(rank, world, 0, detect_device()))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_shares_of_any_number_of_ranks_make_the_whole(tmp_path: Path, world: int) -> None:
    url = str(tmp_path / "noise.bin")
    write_set(url)
    whole = verify(0, 1, url)
    assert len(whole.distances) == PAIRS
    for shared in run_ranks(verify, world, url):
        assert np.array_equal(shared.distances, whole.distances)
        assert {**shared.summary(), "xnorm": 0} == {**whole.summary(), "xnorm": 0}
        assert shared.xnorm == pytest.approx(whole.xnorm, rel=1e-12)


@pytest.mark.slow
def test_the_threshold_as_a_cosine_judges_pairs_as_the_one_of_distances_does(tmp_path: Path) -> None:
    url = str(tmp_path / "noise.bin")
    write_set(url)
    found = verify(0, 1, url)
    pairs = load_set(url)
    images = pairs.decode(0, 2 * PAIRS, 32)
    embedded = embed(images).astype(np.float64) + embed(np.ascontiguousarray(images[..., ::-1]))
    unit = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    cosines = (unit[0::2] * unit[1::2]).sum(axis=1)
    summary = found.summary()
    assert 0 < (found.distances < summary["threshold"]).sum() < PAIRS
    assert ((cosines > summary["threshold_cosine"]) == (found.distances < summary["threshold"])).all()


def test_verification_in_training_keeps_the_highest_and_the_best(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    write_faces(data)
    write_set(f"{data}/noise.bin")
    done = train(
        2, data, str(tmp_path), "--verify.sets", "noise", "--train.verify-every", "3", "--train.epochs", "2",
        "--output.onnx", "false",
    )  # fmt: skip
    run = tmp_path / "orl"
    events = list(read_events(str(run)))
    found = {e["step"]: e["accuracy"] for e in events if e["kind"] == "verification/noise"}
    assert sorted(found) == [3, 6, 9, 12, 15, 18, 20]
    highest = max(found.values())
    assert f"[noise][20]Accuracy-Highest: {highest:.5f}" in done.stdout
    best = [e for e in events if e["kind"] == "best"]
    assert best[-1]["mean_accuracy"] == highest
    assert best[-1]["step"] == min(step for step, accuracy in found.items() if accuracy == highest)
    assert (run / "best" / "model.pt").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["accuracy_highest"] == {"noise": highest}
    table = (run / "summary.md").read_text()
    assert table.startswith("| Name | Accuracy-Highest | FPS | Epochs | AMP type | Torch version |\n")
    assert f"| orl | noise {highest:.5f} |" in table
    assert table in done.stdout
