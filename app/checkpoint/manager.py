"""Writes and reads checkpoints at any fsspec URL, so that a reader sees a whole one or none.

Every attempt to write one has a folder of its own, ``step-<step>-<time>-<random>/``. Each rank puts one safetensors
object there (no format that can run code); when all are up, rank 0 puts ``manifest.json`` with sizes and SHA-256 in a
single conditional request: that commits. What was interrupted has no manifest and is collected later. Loading checks
hashes before it parses, and passes over a damaged checkpoint to the one before it, on all ranks alike.

Class centres and their optimizer state are sharded by rows (classes); any number of ranks can load them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from app import storage
from app.checkpoint.manifest import CheckpointError, Manifest, StoredObject
from app.storage import StorageError
from app.world import World

_REPLICATED = "replicated.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """All that a run is at one step.

    ``replicated`` tensors are alike on all ranks; the rows of ``sharded`` ones are the classes ``rows`` of this rank.
    """

    step: int
    replicated: Mapping[str, Tensor]
    sharded: Mapping[str, Tensor]
    rows: tuple[int, int]
    meta: Mapping[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The replicated tensors whose names start with ``prefix``, named without it."""
        return {name[len(prefix) :]: value for name, value in self.replicated.items() if name.startswith(prefix)}


class CheckpointManager:
    """The checkpoints of one run, under ``<url>/``.

    Args:
        url: folder of the checkpoints.
        keep_last: committed checkpoints to keep; older ones are deleted after a commit.
    """

    def __init__(self, url: str, world: World, *, keep_last: int = 2) -> None:
        self.url, self.world, self.keep_last = url, world, keep_last
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._upload: Future[list[StoredObject]] | None = None
        self._state: TrainingState | None = None
        self._folder = ""

    @property
    def busy(self) -> bool:
        """A save was started and not yet finished."""
        return self._upload is not None

    @property
    def uploading(self) -> bool:
        """This rank's objects are not all up yet."""
        return self._upload is not None and not self._upload.done()

    def start_save(self, state: TrainingState) -> None:
        """Copy the state to host memory and upload it in the background; a collective. ``finish_save`` commits it."""
        assert not self.busy, "finish_save() first"
        # A copy, also on CPU: training goes on and would change the tensors under the upload.
        copied = TrainingState(
            state.step,
            {name: _host_copy(tensor) for name, tensor in state.replicated.items()},
            {name: _host_copy(tensor) for name, tensor in state.sharded.items()},
            state.rows,
            dict(state.meta),
        )
        # Names sort by step, then by age: a step that is trained again supersedes what was there.
        now = time.time_ns()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}"
        self._folder = self._broadcast(f"step-{state.step:09d}-{stamp}-{os.urandom(4).hex()}")
        self._state = copied
        self._upload = self._pool.submit(self._write_objects, self._folder, copied)

    def finish_save(self) -> Manifest:
        """Wait for all ranks' uploads and commit; a collective.

        Raises:
            CheckpointError: a rank could not write its objects; nothing is committed.
        """
        assert self._upload is not None
        assert self._state is not None
        problem, objects = "", []
        try:
            objects = self._upload.result()
        except StorageError as error:
            problem = f"rank {self.world.rank}: {error}"
        state, self._upload, self._state = self._state, None, None
        gathered: list[tuple[str, list[StoredObject]]] = self._gather((problem, objects))
        if problems := [text for text, _ in gathered if text]:
            raise CheckpointError(f"checkpoint of step {state.step} not written: {'; '.join(problems)}")
        everything = tuple(o for _, of_rank in gathered for o in of_rank)
        manifest = Manifest(state.step, self.world.size, everything, dict(state.meta))
        if self.world.rank == 0:
            url = storage.join(self.url, self._folder, "manifest.json")
            if not storage.write_bytes(url, manifest.to_json(), if_absent=True):
                raise CheckpointError(f"{url} exists already: two runs write to one folder; give each its own output")
            self._collect()
        return manifest

    def save(self, state: TrainingState) -> Manifest:
        """Write and commit in one go; a collective."""
        self.start_save(state)
        return self.finish_save()

    def load_latest(self, rows: tuple[int, int]) -> TrainingState | None:
        """The newest sound checkpoint, with the classes ``rows`` of its sharded tensors; a collective.

        All ranks load the same one. None when there is none, or none is sound.
        """
        names: list[str] = self._broadcast(self._committed() if self.world.rank == 0 else [])
        for name in reversed(names):
            state, problem = None, ""
            try:
                state = self._load(name, rows)
            except (CheckpointError, StorageError) as error:
                problem = str(error)
            if not any(problems := self._gather(problem)):
                return state
            if self.world.rank == 0:
                text = next(p for p in problems if p)
                warnings.warn(f"passed over a damaged checkpoint: {text}", stacklevel=2)
        return None

    def newest_meta(self) -> dict[str, Any] | None:
        """``meta`` of the newest readable manifest, None without one; a collective. No tensor is read."""
        found: dict[str, Any] | None = None
        if self.world.rank == 0:
            for name in reversed(self._committed()):
                url = storage.join(self.url, name, "manifest.json")
                with contextlib.suppress(CheckpointError):
                    found = Manifest.from_json(url, storage.read_bytes(url)).meta
                    break
        answer: dict[str, Any] | None = self._broadcast(found)
        return answer

    def manifests(self) -> list[tuple[str, Manifest]]:
        """Folder names and manifests of the committed checkpoints, oldest first."""
        found = []
        for name in self._committed():
            url = storage.join(self.url, name, "manifest.json")
            found.append((name, Manifest.from_json(url, storage.read_bytes(url))))
        return found

    def _write_objects(self, folder: str, state: TrainingState) -> list[StoredObject]:
        objects = []
        if self.world.rank == 0:
            objects.append(self._write(folder, _REPLICATED, state.replicated, None))
        if state.sharded:
            name = f"rows-{state.rows[0]:010d}-{state.rows[1]:010d}.safetensors"
            objects.append(self._write(folder, name, state.sharded, state.rows))
        return objects

    def _write(
        self, folder: str, name: str, tensors: Mapping[str, Tensor], rows: tuple[int, int] | None
    ) -> StoredObject:
        data = safetensors.torch.save(dict(tensors))
        storage.write_bytes(storage.join(self.url, folder, name), data)
        return StoredObject(name, len(data), hashlib.sha256(data).hexdigest(), rows)

    def _load(self, folder: str, rows: tuple[int, int]) -> TrainingState:
        url = storage.join(self.url, folder, "manifest.json")
        manifest = Manifest.from_json(url, storage.read_bytes(url))
        replicated: dict[str, Tensor] = {}
        pieces: list[tuple[int, dict[str, Tensor]]] = []
        for item in manifest.objects:
            if item.rows is None:
                replicated |= self._read(folder, item)
                continue
            first, last = max(rows[0], item.rows[0]), min(rows[1], item.rows[1])
            if first < last or (rows[0] == rows[1] and not pieces):
                tensors = self._read(folder, item)
                part = slice(first - item.rows[0], max(first, last) - item.rows[0])
                pieces.append((first, {name: tensor[part] for name, tensor in tensors.items()}))
        pieces.sort(key=lambda piece: piece[0])
        names = pieces[0][1] if pieces else {}
        sharded = {name: torch.cat([tensors[name] for _, tensors in pieces]) for name in names}
        if any(len(tensor) != rows[1] - rows[0] for tensor in sharded.values()):
            raise CheckpointError(f"{url}: it does not hold all classes {rows[0]}..{rows[1] - 1}")
        return TrainingState(manifest.step, replicated, sharded, rows, manifest.meta)

    def _read(self, folder: str, item: StoredObject) -> dict[str, Tensor]:
        url = storage.join(self.url, folder, item.name)
        data = storage.read_bytes(url)
        if len(data) != item.size or hashlib.sha256(data).hexdigest() != item.sha256:
            raise CheckpointError(f"{url}: {len(data)} bytes that are not those of the manifest: damaged or replaced")
        try:
            return safetensors.torch.load(data)
        except SafetensorError as error:
            raise CheckpointError(f"{url}: not a safetensors file ({error})") from error

    def _committed(self) -> list[str]:
        """Folders with a manifest, oldest first."""
        names = [name for name in storage.list_names(self.url) if name.startswith("step-")]
        return [name for name in names if storage.exists(storage.join(self.url, name, "manifest.json"))]

    def _collect(self) -> None:
        """Delete old checkpoints, and what interrupted attempts left; failing to is no reason to stop training."""
        try:
            committed = self._committed()
            kept = set(committed[-self.keep_last :])
            for name in storage.list_names(self.url):
                if name.startswith("step-") and name not in kept:
                    storage.delete_tree(storage.join(self.url, name))
        except StorageError as error:
            warnings.warn(f"old checkpoints could not be deleted: {error}", stacklevel=2)

    def _broadcast(self, value: Any) -> Any:
        if self.world.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def _gather(self, value: Any) -> list[Any]:
        if self.world.size == 1:
            return [value]
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value)
        return values


def _host_copy(tensor: Tensor) -> Tensor:
    copied = tensor.detach().to("cpu", copy=True)
    return copied.contiguous()
