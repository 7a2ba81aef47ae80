"""Experiment trackers against stubs of their APIs: unique ids that survive restarts, config, artifacts, faults."""

from __future__ import annotations

import contextlib
import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config.recipe import OutputConfig, Recipe
from app.device import detect_device
from app.observe.events import EventLog
from app.observe.trackers import TrackerError, Trackers
from app.training.start import open_trackers
from app.training.state import RunState, recipe_fields
from app.world import World

WORLD = World(0, 1, 0, detect_device("cpu"))


class WandbStub(types.ModuleType):
    """wandb, as far as it is called, with a record of the calls."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[Any] = []
        self.files: dict[str, bytes] = {}
        self.broken = False

    def init(self, **options: Any) -> WandbStub:
        self.calls.append(("init", options))
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if self.broken:
            raise ConnectionError("https://user:secret@wandb.example is away")
        self.calls.append(("log", values, step))

    def Artifact(self, name: str, type: str) -> WandbStub:
        self.calls.append(("artifact", name, type))
        return self

    @contextlib.contextmanager
    def new_file(self, name: str, mode: str) -> Iterator[io.BytesIO]:
        assert mode == "wb"
        buffer = io.BytesIO()
        yield buffer
        self.files[name] = buffer.getvalue()

    def log_artifact(self, artifact: WandbStub) -> None:
        assert artifact is self

    def finish(self) -> None:
        self.calls.append("finish")


class MlflowStub(types.ModuleType):
    """mlflow's fluent API; its server numbers the runs."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.calls: list[Any] = []
        self.runs = 0

    def start_run(self, run_id: str = "", run_name: str = "") -> Any:
        self.calls.append(("start", run_id, run_name))
        self.runs += not run_id
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or f"served-{self.runs}"))

    def log_params(self, params: dict[str, str]) -> None:
        self.calls.append(("params", params))

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("metrics", values, step))

    def log_artifact(self, path: str) -> None:
        self.calls.append(("artifact", Path(path).name, Path(path).read_bytes()))

    def end_run(self) -> None:
        self.calls.append("end")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> WandbStub:
    stub = WandbStub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> MlflowStub:
    stub = MlflowStub()
    monkeypatch.setitem(sys.modules, "mlflow", stub)
    return stub


def run_state(trackers: Trackers) -> RunState:
    """What a checkpoint of the run keeps, as a restart reads it."""
    state = RunState(recipe_fields(Recipe()), 1, 10, "tag", trackers=dict(trackers.run_ids))
    return RunState.from_meta(state.to_meta(), "x")


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_two_runs_of_one_recipe_are_two_and_a_restart_is_none(kind: str, request: pytest.FixtureRequest) -> None:
    stub = request.getfixturevalue(kind)
    recipe = Recipe(name="r100", output=OutputConfig(wandb=kind == "wandb", mlflow=kind == "mlflow"))
    first, second = open_trackers(recipe, None, WORLD), open_trackers(recipe, None, WORLD)
    assert first.run_ids[kind] != second.run_ids[kind]
    again = open_trackers(recipe, run_state(first), WORLD)
    assert again.run_ids == first.run_ids
    start = [call for call in stub.calls if call[0] in ("init", "start")][-1]
    assert (start[1]["id"] if kind == "wandb" else start[1]) == first.run_ids[kind]


def test_a_run_without_trackers_keeps_the_ids_of_those_it_had(wandb: WandbStub) -> None:
    recipe = Recipe(output=OutputConfig(wandb=True))
    first = open_trackers(recipe, None, WORLD)
    silent = open_trackers(Recipe(), run_state(first), WORLD)
    assert (len(silent), silent.run_ids) == (0, first.run_ids)
    other_rank = open_trackers(recipe, run_state(first), World(1, 2, 0, WORLD.device))
    assert len(other_rank) == 0
    assert len(wandb.calls) == 1


def test_events_config_and_artifacts_reach_wandb(wandb: WandbStub, tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), enabled=True, tensorboard=False)
    log.trackers = Trackers(["wandb"], "run", {"data.url": "s3://key:secret@faces", "optim.lr": 0.1}, {"wandb": "abc"})
    log.add("train", 3, loss=0.5, note="text", good=True)
    log.trackers.add_artifact("model.pt", b"weights")
    log.close()
    (_, options), *rest = wandb.calls
    assert (options["id"], options["name"], options["resume"]) == ("abc", "run", "allow")
    assert options["config"]["optim.lr"] == 0.1
    assert "secret" not in str(options)
    assert rest == [("log", {"train/loss": 0.5}, 3), ("artifact", "run-abc-model.pt", "run"), "finish"]
    assert wandb.files == {"model.pt": b"weights"}


def test_mlflow_gets_parameters_once(mlflow: MlflowStub) -> None:
    for run_ids in ({}, {"mlflow": "served-1"}):
        trackers = Trackers(["mlflow"], "run", {"verify.sets": ["lfw"], "long": "x" * 9000}, run_ids)
        trackers.log("train", 1, {"loss": 2})
        trackers.add_artifact("summary.json", b"{}")
        trackers.finish()
    params = [call[1] for call in mlflow.calls if call[0] == "params"]
    assert len(params) == 1
    assert params[0]["verify.sets"] == "['lfw']"
    assert len(params[0]["long"]) == 500
    assert mlflow.calls.count(("metrics", {"train/loss": 2.0}, 1)) == 2
    assert mlflow.calls.count(("artifact", "summary.json", b"{}")) == 2


def test_a_tracker_that_fails_later_is_left_alone_and_training_goes_on(wandb: WandbStub, mlflow: MlflowStub) -> None:
    trackers = Trackers(["wandb", "mlflow"], "run")
    wandb.broken = True
    with pytest.warns(UserWarning, match="wandb is told nothing more: ConnectionError") as caught:
        trackers.log("train", 1, {"loss": 2.0})
    assert "secret" not in str(caught[0].message)
    trackers.log("train", 2, {"loss": 1.0})
    assert ("metrics", {"train/loss": 1.0}, 2) in mlflow.calls
    assert trackers.run_ids.keys() == {"wandb", "mlflow"}  # a restart goes on in the same chart


def test_a_tracker_that_is_not_there_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch, wandb: WandbStub) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrackerError, match=r"output\.mlflow needs the extra \[mlflow\]: pip install mlflow"):
        Trackers(["mlflow"], "run")

    def refuse(**_options: Any) -> Any:
        raise PermissionError("no key")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(TrackerError, match=r"output\.wandb: PermissionError: no key: look at its environment"):
        Trackers(["wandb"], "run")
