"""What must lose nothing: a store that refuses best/, a signal during verification, an exporter that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app import storage
from app.config.recipe import OutputConfig, Recipe
from app.data.bin_sets import VerificationSet, dump_set
from app.data.decode import encode_jpeg
from app.device import detect_device
from app.elastic.signals import StopRequest
from app.evaluate.verification import verify_set
from app.observe.events import EventLog, read_events
from app.observe.figures import Reporter
from app.observe.metrics import Metrics
from app.observe.progress import Progress
from app.storage import StorageError
from app.train import main
from app.training import verifier as module
from app.training.verifier import Verifier
from app.world import World
from tests.jobs import ROOT, SMALL, environment, write_faces

IMAGES = [encode_jpeg(np.full((16, 16, 3), 5 * i, dtype=np.uint8)) for i in range(40)]
PAIRS = VerificationSet("pairs", IMAGES, np.arange(20) % 2 == 0)


class Flat(nn.Module):
    """A backbone of one weight: 2 x 2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, :2, :2].flatten(1) * self.weight + 2


@dataclass
class Bench:
    """A verifier whose accuracies a test prescribes, and what it reports to."""

    verifier: Verifier
    reporter: Reporter
    stop: StopRequest
    folder: Path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    base = Recipe(name="run", output=OutputConfig(url=str(tmp_path)))
    recipe = replace(base, data=replace(base.data, image_size=16))
    events = EventLog(str(tmp_path / "run"), enabled=True, tensorboard=False)
    reporter = Reporter(Progress(10, enabled=False), events, Metrics(0))
    stop = StopRequest()
    world = World(0, 1, 0, detect_device("cpu"))
    return Bench(Verifier(recipe, world, Flat(), [PAIRS], stop), reporter, stop, tmp_path / "run")


def prescribe(accuracies: list[float | None], monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*arguments: Any, **options: Any) -> Any:
        result = verify_set(*arguments, **options)
        if (accuracy := accuracies.pop(0)) is None:
            raise KeyboardInterrupt("the process is lost")
        return replace(result, metrics=replace(result.metrics, accuracy=accuracy))

    monkeypatch.setattr(module, "verify_set", verify)


def test_best_waits_for_a_store_that_refuses_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    prescribe([0.6, 0.9, 0.7, 0.95], monkeypatch)
    verifier, reporter = bench.verifier, bench.reporter
    assert verifier.verify(1, reporter)
    assert verifier.best_mean == 0.6
    monkeypatch.setattr(module, "save_model", _refuse)
    with torch.no_grad():
        verifier.backbone.weight.fill_(2.0)  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"best/ of step 2 could not be written, and is tried again"):
        verifier.verify(2, reporter)
    assert verifier.best_mean == 0.6  # what checkpoints say of it is what lies in best/
    with torch.no_grad():
        verifier.backbone.weight.fill_(3.0)  # type: ignore[operator]
    with pytest.warns(UserWarning, match="best/ of step 2"):
        verifier.verify(3, reporter)
    with pytest.raises(StorageError):
        verifier.write_best(reporter.events, must=True)
    monkeypatch.undo()
    verifier.write_best(reporter.events, must=True)
    about = json.loads((bench.folder / "best" / "model.json").read_text())
    weights = torch.load(bench.folder / "best" / "model.pt", weights_only=True)
    assert (about["step"], verifier.best_mean, weights["weight"].item()) == (2, 0.9, 2.0)
    reporter.events.close()
    best = [(e["step"], e["mean_accuracy"]) for e in read_events(str(bench.folder)) if e["kind"] == "best"]
    assert best == [(1, 0.6), (2, 0.9)]


def _refuse(*_: object) -> None:
    raise StorageError("s3://runs/best: access denied", kind="denied")


def test_a_signal_cuts_a_verification_short_and_its_figures_do_not_count(bench: Bench) -> None:
    verifier, calls = bench.verifier, [0]
    forward: Callable[[torch.Tensor], torch.Tensor] = verifier.backbone.forward

    def signalled(images: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        bench.stop.number = 15
        return forward(images)

    verifier.backbone.forward = signalled
    verifier.recipe = replace(verifier.recipe, verify=replace(verifier.recipe.verify, batch_size=4))
    assert not verifier.verify(3, bench.reporter)
    assert calls[0] == 1  # of ten and more
    assert not verifier.highest
    assert not (bench.folder / "best").exists()
    assert verifier.backbone.training


def test_what_verifications_found_outlives_every_end_and_the_last_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(tmp_path / "data")
    write_faces(data)
    storage.write_bytes(f"{data}/noise.bin", dump_set(PAIRS.images, PAIRS.issame.tolist()))
    accuracies: list[float | None] = []
    prescribe(accuracies, monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")  # starts of one job need not wait for each other's lease

    def start(last: int, *more: str) -> None:
        options = ("--verify.sets", "noise", "--train.verify-every", "2", "--output.onnx", "false")
        where = ("--data.url", data, "--output.url", str(tmp_path), "--checkpoint.every-steps", "2")
        assert main([*SMALL, *where, *options, "--train.last-step", str(last), *more]) == 0

    def found() -> tuple[int, float, int]:
        summary, best = (
            json.loads((tmp_path / "orl" / name).read_text()) for name in ("summary.json", "best/model.json")
        )
        return summary["steps"], summary["accuracy_highest"]["noise"], best["step"]

    accuracies[:] = [0.9]
    start(2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-2")
    accuracies[:] = [None]
    with pytest.raises(KeyboardInterrupt):
        start(2, "--checkpoint.resume", "never")
    accuracies[:] = [0.7]
    start(2, "--checkpoint.resume", "never")  # what another run ended with is not the end of this one
    assert found() == (2, 0.7, 2)
    accuracies[:] = [0.6, 0.5, None]  # of step 2 again, whose checkpoint is older than its verification, of 4, and of 6
    with pytest.raises(KeyboardInterrupt):
        start(6)
    assert found() == (2, 0.7, 2)
    accuracies[:] = [0.4]
    start(6)
    assert found() == (6, 0.7, 2)
    start(6)
    assert "this run is complete (step 6" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "seconds", "words"),
    [
        (r"raise RuntimeError('no such kernel\nof many lines')", 120, "RuntimeError: no such kernel of many lines"),
        ("import os; os.abort()", 120, "the exporter was ended by signal 6"),
        ("import ctypes; ctypes.PyDLL(None).pause()", 15, "the exporter did not end in 15 s"),  # no other thread runs
    ],
)
def test_an_exporter_that_fails_in_any_way_loses_nothing_of_a_finished_run(
    tmp_path: Path, program: str, seconds: int, words: str
) -> None:
    write_faces(str(tmp_path / "data"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "onnxruntime.py").write_text(program)
    variables = environment()
    variables["PYTHONPATH"] = f"{tmp_path / 'broken'}:{variables['PYTHONPATH']}"
    options = ("--data.url", str(tmp_path / "data"), "--output.url", str(tmp_path), "--train.last-step", "2")
    done = subprocess.run(
        [sys.executable, "-m", "app.train", *SMALL, *options, "--train.step-timeout", str(seconds)],
        env=variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"warning: no model.onnx: {words}" in done.stdout
    assert json.loads((tmp_path / "orl" / "summary.json").read_text())["steps"] == 2
    assert (tmp_path / "orl" / "model.pt").exists()
