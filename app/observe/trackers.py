"""Experiment trackers behind one small seam: Weights & Biases and MLflow.

A run keeps its id in a tracker for ever: it stands in the run's checkpoints (``RunState.trackers``), so that a restart
goes on in the same chart, and another run, of the same recipe or not, never does. Where the tracker is and what may
write there stand in its own environment variables (``WANDB_*``, ``MLFLOW_*``); no key is ever an option.
"""

from __future__ import annotations

import importlib
import tempfile
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from app.errors import AppError, redact

_LONGEST_VALUE = 500  # characters of a parameter that every version of MLflow takes


class TrackerError(AppError):
    """A tracker that was asked for and cannot be used."""


class Tracker(Protocol):
    """What a run tells an experiment tracker; ``run_id`` is the run's name there."""

    run_id: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures of a step."""

    def add_artifact(self, name: str, data: bytes) -> None:
        """Keep a file of the run."""

    def finish(self) -> None:
        """The end of this start."""


class WandbTracker:
    """Weights & Biases (extra [wandb])."""

    def __init__(self, name: str, config: Mapping[str, Any], run_id: str) -> None:
        self.run_id = run_id or uuid.uuid4().hex[:12]
        self._name = name
        self._module = _import("wandb")
        self._run = self._module.init(name=name, id=self.run_id, resume="allow", config=dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Charts; a step that was trained before a restart is kept as it was first told."""
        self._run.log(dict(values), step=step)

    def add_artifact(self, name: str, data: bytes) -> None:
        """An artifact of the run's name and id."""
        artifact = self._module.Artifact(f"{self._name.replace('/', '-')}-{self.run_id}-{name}", type="run")
        with artifact.new_file(name, mode="wb") as file:
            file.write(data)
        self._run.log_artifact(artifact)

    def finish(self) -> None:
        """Upload the rest."""
        self._run.finish()


class MlflowTracker:
    """MLflow (extra [mlflow]); its server gives the id."""

    def __init__(self, name: str, config: Mapping[str, Any], run_id: str) -> None:
        self._module = _import("mlflow")
        chosen = {"run_id": run_id} if run_id else {"run_name": name}
        self.run_id = str(self._module.start_run(**chosen).info.run_id)
        if not run_id:  # a parameter cannot be set twice
            self._module.log_params({key: str(value)[:_LONGEST_VALUE] for key, value in config.items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Metrics."""
        self._module.log_metrics(dict(values), step=step)

    def add_artifact(self, name: str, data: bytes) -> None:
        """A file among the run's artifacts."""
        with tempfile.TemporaryDirectory(prefix="artifact-") as folder:
            path = Path(folder, name)
            path.write_bytes(data)
            self._module.log_artifact(str(path))

    def finish(self) -> None:
        """Close the run."""
        self._module.end_run()


TRACKERS: dict[str, Callable[[str, Mapping[str, Any], str], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


class Trackers:
    """The trackers of a run; one that fails after its start is warned about once and left alone.

    Args:
        names: of ``TRACKERS``.
        name: of the run, for people to read.
        config: the recipe's fields; credentials in URLs are left out.
        run_ids: what an earlier start of the same run got, by tracker.

    Raises:
        TrackerError: one is not installed, or cannot be reached.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        name: str = "",
        config: Mapping[str, Any] | None = None,
        run_ids: Mapping[str, str] | None = None,
    ) -> None:
        self.run_ids: dict[str, str] = dict(run_ids or {})
        self._open: dict[str, Tracker] = {}
        plain = {key: redact(value) if isinstance(value, str) else value for key, value in (config or {}).items()}
        for kind in names:
            try:
                self._open[kind] = TRACKERS[kind](name, plain, self.run_ids.get(kind, ""))
            except AppError:
                raise
            except Exception as error:
                raise TrackerError(
                    f"output.{kind}: {type(error).__name__}: {redact(str(error))}: look at its environment variables, "
                    f"or leave it out with --output.{kind} false"
                ) from error
            self.run_ids[kind] = self._open[kind].run_id

    def __len__(self) -> int:
        return len(self._open)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Tell the numbers among ``values`` as ``kind/name``."""
        numbers = {
            f"{kind}/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if numbers:
            self._each(lambda tracker: tracker.log(numbers, step))

    def add_artifact(self, name: str, data: bytes) -> None:
        """Keep a file of the run in every tracker."""
        self._each(lambda tracker: tracker.add_artifact(name, data))

    def finish(self) -> None:
        """The end of this start."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for kind, tracker in list(self._open.items()):
            try:
                tell(tracker)
            except Exception as error:  # whatever a library raises: a chart is not worth a run
                del self._open[kind]
                warnings.warn(
                    f"{kind} is told nothing more: {type(error).__name__}: {redact(str(error))}", stacklevel=3
                )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TrackerError(
            f"output.{name} needs the extra [{name}]: pip install {name}, or --output.{name} false"
        ) from error
