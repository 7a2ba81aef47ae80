"""The log of a run: one JSON object a line, for machines; TensorBoard scalars beside it. Both go to the run folder."""

from __future__ import annotations

import io
import json
import operator
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from app import storage
from app.background import Background
from app.observe.trackers import Trackers
from app.observe.training_log import TrainingLog
from app.parsing import dump_json
from app.storage import StorageError

FLUSH_SECONDS = 60.0
_LATE_SECONDS = 120.0  # after which nothing waits for an upload any more: requests of stores end before, mounts hang
_FIRST_TAG = "0 loss/train"  # TensorBoard sorts its charts by name: the loss stands on top
# insightface's TensorBoard tags; that of an accuracy is the set's name.
_REFERENCE_TAGS = {"train/loss": "loss", "train/lr": "learning_rate", "train/hours_left": "time_for_end"}


class EventLog:
    """Collects events of rank 0, uploads them on ``flush``: a file each attempt, since an object store cannot append.

    ``text`` is the run's ``training.log``; ``trackers`` are told all numbers, once they are set.

    Args:
        run_url: the run folder.
        enabled: False on all ranks but 0.
        tensorboard: also write scalars for TensorBoard.
        reference_tags: also write TensorBoard scalars under insightface's tags.
    """

    def __init__(self, run_url: str, *, enabled: bool, tensorboard: bool, reference_tags: bool = False) -> None:
        self.run_url, self.enabled, self.reference_tags = run_url, enabled, reference_tags
        self.text = TrainingLog(run_url, enabled=enabled)
        self.trackers = Trackers()
        self._name = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"-{os.urandom(2).hex()}"
        self._lines: list[str] = []
        self._flushed = time.monotonic()
        self._background: Background[None] | None = None
        self._late = 0.0  # when nothing waits for it any more
        self._folder: Path | None = None
        self._writer: Any = None
        if enabled and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._folder = Path(tempfile.mkdtemp(prefix="tensorboard-"))
            self._writer = SummaryWriter(str(self._folder))

    def add(self, kind: str, step: int, **values: Any) -> None:
        """Record an event; numbers also become TensorBoard scalars ``kind/name``."""
        if not self.enabled:
            return
        self._lines.append(dump_json({"time": round(time.time(), 3), "kind": kind, "step": step, **values}))
        for name, value in _numbers(values):
            for tag in self._tags(f"{kind}/{name}"):
                self._draw("add_scalar", tag, value, step)
        self.trackers.log(kind, step, values)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def add_text(self, name: str, text: str) -> None:
        """Show a text in TensorBoard, as it is."""
        self._draw("add_text", name, "".join(f"    {line}\n" for line in text.splitlines()))

    @property
    def shows_pictures(self) -> bool:
        """Whether ``add_picture`` has somewhere to put a picture."""
        return self._writer is not None

    def add_picture(self, name: str, step: int, jpeg: bytes) -> None:
        """Show a picture in TensorBoard, compressed as it is: its own writer would make a PNG of it."""
        if self._writer is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]  # made at run time

        with Image.open(io.BytesIO(jpeg)) as picture:
            width, height = picture.size
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=jpeg)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._draw("file_writer.add_summary", summary, step)

    def _draw(self, what: str, *arguments: Any) -> None:
        """Call TensorBoard's writer; where its local disk is full, go on without it."""
        if (writer := self._writer) is None:  # once: an upload in its thread may take it away
            return
        try:
            operator.attrgetter(what)(writer)(*arguments)
        except OSError as error:
            self._writer = None  # not closed: that would wait for what cannot be written
            warnings.warn(f"no more TensorBoard files from this start: {self._folder}: {error}", stacklevel=2)

    def _tags(self, tag: str) -> list[str]:
        if not self.reference_tags:
            return [tag, _FIRST_TAG] if tag == "train/loss" else [tag]
        kind, _, rest = tag.partition("/")
        own = _REFERENCE_TAGS.get(tag) or (rest.removesuffix("/accuracy") if kind == "verification" else "")
        return [tag, own] if own and "/" not in own else [tag]

    def flush(self, *, wait: bool = False) -> None:
        """Upload what there is; a store that fails is warned about, training goes on.

        Args:
            wait: until it is done. Else it is done beside training, once at a time: what comes too late for the upload
                that is on its way is in the next.
        """
        if self.uploading and not wait:
            return
        self._flushed = time.monotonic()
        if not self._finish() or not self.enabled:
            return
        self._late = time.monotonic() + _LATE_SECONDS
        self._background = Background(self._upload, "events")
        if wait:
            self._finish()

    def _finish(self) -> bool:
        """Wait for the upload that is on its way; False if it hangs."""
        if self._background is None:
            return True
        try:
            self._background.result(max(0.0, self._late - time.monotonic()))
        except TimeoutError:
            warnings.warn(f"the event log is not written: {self.run_url} does not take it", stacklevel=3)
            return False
        self._background = None
        return True

    @property
    def uploading(self) -> bool:
        """An upload is on its way, and may still arrive."""
        on_its_way = self._background is not None and not self._background.done
        return on_its_way and time.monotonic() < self._late

    def _upload(self) -> None:
        self.text.flush()
        try:
            text = "".join(line + "\n" for line in self._lines)
            storage.write_bytes(storage.join(self.run_url, "events", f"{self._name}.jsonl"), text.encode())
            self._draw("flush")
            if self._writer is not None and self._folder is not None:
                for path in self._folder.iterdir():
                    storage.write_bytes(storage.join(self.run_url, "tensorboard", path.name), path.read_bytes())
        except (StorageError, OSError) as error:  # OSError: of the local files, as where something clears /tmp
            warnings.warn(f"the event log could not be written: {error}", stacklevel=2)

    def close(self) -> None:
        """Upload the rest and remove local files."""
        self.flush(wait=True)
        self.trackers.finish()
        self._draw("close")
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers by name; those of an object within as ``name/key``: TAR at each FAR."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", number) for key, number in _numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def read_events(run_url: str) -> list[dict[str, Any]]:
    """All events of a run, of all its attempts, in order of time; lines that are none are left out."""
    events = []
    folder = storage.join(run_url, "events")
    for name in storage.list_names(folder):
        for line in storage.read_bytes(storage.join(folder, name)).decode("utf-8", "replace").splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(event.get("time"), int | float):
                events.append(event)
    return sorted(events, key=lambda event: event["time"])
