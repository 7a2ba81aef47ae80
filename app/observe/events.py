"""The log of a run: one JSON object a line, for machines; TensorBoard scalars beside it. Both go to the run folder."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from app import storage
from app.errors import AppError
from app.parsing import dump_json
from app.storage import StorageError

FLUSH_SECONDS = 60.0


class EventError(AppError):
    """A log that was asked for and cannot be written."""


class EventLog:
    """Collects events of rank 0, uploads them on ``flush``: a file each attempt, since an object store cannot append.

    Args:
        run_url: the run folder.
        enabled: False on all ranks but 0.
        tensorboard: also write scalars for TensorBoard.
        wandb: also log to Weights & Biases, as the run of this name; empty: no.

    Raises:
        EventError: Weights & Biases was asked for and is not installed.
    """

    def __init__(self, run_url: str, *, enabled: bool, tensorboard: bool, wandb: str = "") -> None:
        self.run_url, self.enabled = run_url, enabled
        self._name = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"-{os.urandom(2).hex()}"
        self._lines: list[str] = []
        self._flushed = time.monotonic()
        self._folder: Path | None = None
        self._writer: Any = None
        self._wandb: Any = None
        if enabled and wandb:
            try:
                self._wandb = importlib.import_module("wandb")
            except ImportError as error:
                raise EventError("output.wandb needs the extra [wandb]: pip install 'arcface-torchx[wandb]'") from error
            # One name for all attempts: a resumed run goes on in the same chart.
            self._wandb.init(name=wandb, id=wandb, resume="allow")
        if enabled and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._folder = Path(tempfile.mkdtemp(prefix="tensorboard-"))
            self._writer = SummaryWriter(str(self._folder))

    def add(self, kind: str, step: int, **values: Any) -> None:
        """Record an event; numbers also become TensorBoard scalars ``kind/name``."""
        if not self.enabled:
            return
        self._lines.append(dump_json({"time": round(time.time(), 3), "kind": kind, "step": step, **values}))
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Upload what there is; a store that fails is warned about, training goes on."""
        if not self.enabled:
            return
        self._flushed = time.monotonic()
        try:
            text = "".join(line + "\n" for line in self._lines)
            storage.write_bytes(storage.join(self.run_url, "events", f"{self._name}.jsonl"), text.encode())
            if self._writer is not None and self._folder is not None:
                self._writer.flush()
                for path in self._folder.iterdir():
                    storage.write_bytes(storage.join(self.run_url, "tensorboard", path.name), path.read_bytes())
        except StorageError as error:
            warnings.warn(f"the event log could not be written: {error}", stacklevel=2)

    def close(self) -> None:
        """Upload the rest and remove local files."""
        self.flush()
        if self._wandb is not None:
            self._wandb.finish()
        if self._writer is not None:
            self._writer.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def read_events(run_url: str) -> list[dict[str, Any]]:
    """All events of a run, of all its attempts, in order of time; lines that a crash cut off are left out."""
    events = []
    folder = storage.join(run_url, "events")
    for name in storage.list_names(folder):
        for line in storage.read_bytes(storage.join(folder, name)).decode("utf-8", "replace").splitlines():
            try:
                events.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
    return sorted(events, key=lambda event: event["time"])
