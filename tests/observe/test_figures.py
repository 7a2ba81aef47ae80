"""One list of figures: what is reported once is in the line of progress, in the events and in /metrics."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from app.observe.events import EventLog, read_events
from app.observe.figures import FIGURES, Reporter
from app.observe.metrics import Metrics
from app.observe.progress import Progress
from tests.jobs import train, write_faces

VALUES = {name: 0.25 + number for number, name in enumerate(FIGURES)}


def report(folder: Path, figures: dict[str, float], *, insightface: bool = False) -> tuple[str, Metrics]:
    """The line of progress and the gauges after a report of step 7."""
    out, metrics = io.StringIO(), Metrics(0)
    events = EventLog(str(folder), enabled=True, tensorboard=False)
    progress = Progress(10, enabled=True, out=out)
    Reporter(progress, events, metrics, insightface=insightface, fp16=True).report(7, figures)
    events.close()
    return out.getvalue(), metrics


def test_every_figure_reaches_the_events_and_the_metrics(tmp_path: Path) -> None:
    line, metrics = report(tmp_path, VALUES)
    (event,) = read_events(str(tmp_path))
    assert {name: event[name] for name in VALUES} == VALUES
    for figure in FIGURES.values():
        assert metrics.registry.get_sample_value(figure.gauge) == VALUES[figure.name], figure
    assert metrics.registry.get_sample_value("arcface_step") == event["step"] == 7
    for text in ("loss   0.2500", "lr 1.25000", "3.2 img/s", "ETA 4h15m", "step 7", "scale 6", "7 steps skipped"):
        assert text in line


def test_a_commit_tells_for_how_long_training_stood_still(tmp_path: Path) -> None:
    events, metrics = EventLog(str(tmp_path), enabled=True, tensorboard=False), Metrics(0)
    Reporter(Progress(10, enabled=False), events, metrics).committed(7, 1000, 0.3, 60.0)
    events.close()
    (event,) = read_events(str(tmp_path))
    assert (event["stall_seconds"], event["stall_share"]) == (0.3, 0.005)
    assert metrics.registry.get_sample_value("arcface_checkpoint_stall_seconds") == 0.3
    assert metrics.registry.get_sample_value("arcface_checkpoint_stall_share") == 0.005


def test_the_reference_line_is_made_of_the_same_figures(tmp_path: Path) -> None:
    line, _ = report(tmp_path, VALUES, insightface=True)
    for text in (
        "Speed 3.25 samples/sec",
        "Loss 0.2500",
        "LearningRate 1.250000",
        "Global Step: 7",
        "Required: 4 hours",
    ):
        assert text in line


def test_what_only_a_source_knows_is_served_too(tmp_path: Path) -> None:
    _, metrics = report(tmp_path, VALUES | {"tapes_mounted": 3})
    assert metrics.registry.get_sample_value("arcface_data_tapes_mounted") == 3
    assert read_events(str(tmp_path))[0]["tapes_mounted"] == 3


@pytest.mark.slow
def test_a_run_reports_exactly_the_figures_of_the_list(tmp_path: Path) -> None:
    data, runs = str(tmp_path / "faces"), str(tmp_path / "runs")
    write_faces(data)
    train(1, data, runs, "--train.epochs", "1", "--train.log-every", "2")
    events = [event for event in read_events(f"{runs}/orl") if event["kind"] == "train"]
    cache = {"cache_hits", "cache_misses"}  # without a cache there is none to tell of
    for event in events:
        assert set(event) - {"time", "kind", "step"} == set(FIGURES) - cache
    assert events
