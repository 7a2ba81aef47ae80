"""Writes and reads checkpoints at any fsspec URL, so that a reader sees a whole one or none.

Every attempt to write one has a folder of its own (``app.checkpoint.names``). Each rank puts one safetensors object
there (no format that can run code); when all are up, rank 0 puts ``manifest.json`` with sizes and SHA-256 in a single
conditional request: that commits. What was interrupted has no manifest and is collected later. Loading checks hashes
before it parses, and passes over a checkpoint that it read and found wrong, on all ranks alike. A store that does not
answer proves nothing: it is waited for, and then the error says so.

Class centres and their optimizer state are sharded by rows (classes); any number of ranks can load them.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from app import storage
from app.background import Background
from app.checkpoint.agreement import agree, broadcast
from app.checkpoint.collect import Keeping, age, choose_victims, delete_checkpoint
from app.checkpoint.conditional import require_conditional_writes
from app.checkpoint.lease import Lease
from app.checkpoint.manifest import CheckpointError, DamagedError, Manifest, StoredObject
from app.checkpoint.names import Name, make_name, origin_of, parse_name, run_owner
from app.checkpoint.state import TrainingState
from app.checkpoint.transfer import open_tensors, put_manifest, read_manifest, write_tensors
from app.errors import AppError
from app.patience import persist
from app.storage import StorageError
from app.world import World

T = TypeVar("T")
_REPLICATED = "replicated.safetensors"
_LEAST_TRY_SECONDS = 60.0  # a save is tried for as long, however old the last commit is
_OVERTIME_SECONDS = 60.0  # of a request that was on its way when patience ended
_COLLECT_SECONDS = 60.0  # the end of a run waits for the deletion of old checkpoints as long


class CheckpointManager:
    """The checkpoints of one run, under ``<url>/``.

    Args:
        url: folder of the checkpoints.
        keep_last, keep_every: see ``Keeping``; the others are deleted after a commit.
        patience: seconds that a store may be out of order: while loading, and since the last commit while saving.
        resume: "auto" goes on from what is there; "never" only from what this job wrote itself.
        conditional: commit by a conditional write; False for a store without them, where nobody else may write.
        owner: see ``run_owner``.
    """

    def __init__(
        self,
        url: str,
        world: World,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        patience: float = 0.0,
        resume: str = "auto",
        conditional: bool = True,
        owner: str = "",
    ) -> None:
        self.url, self.world = url, world
        self.keeping = Keeping(keep_last, keep_every)
        self.patience, self.resume, self.conditional = patience, resume, conditional
        self.owner = owner or run_owner()
        self.origin = origin_of(self.owner)
        self.committed_step = -1  # of the newest commit that this process knows
        self._generation: int | None = None
        self._last_commit = time.monotonic()
        self._save_ends = 0.0  # when the stage of a save that is under way is given up
        self._lease: Lease | None = None
        self._upload: Background[list[StoredObject]] | None = None
        self._commit: Background[None] | None = None
        self._collecting: Background[None] | None = None
        self._state: TrainingState | None = None
        self._manifest: Manifest | None = None
        self._folder = ""
        self._damaged: set[str] = set()
        self._scores: dict[str, float] = {}

    # --- the folder of the run ---

    def hold(self) -> None:
        """Take the folder for this run, until ``close``; a collective.

        Raises:
            CheckpointError: another run writes there, or the store has no conditional writes.
        """

        def take() -> None:
            if self.world.rank == 0:
                self._lease = Lease(storage.join(self.url, "lease.json"), self.owner)
                self._lease.take(self._until())
                if self.conditional:
                    persist(lambda: require_conditional_writes(self.url), self._until())

        agree(self.world, take)

    def close(self) -> None:
        """Give the folder back, and wait for what is still being deleted."""
        self._finish_collecting()
        if self._lease is not None:
            self._lease.release()

    # --- saving ---

    @property
    def busy(self) -> bool:
        """A save was started and not yet finished."""
        return self._state is not None

    @property
    def uploading(self) -> bool:
        """This rank has not yet done its part of the save, and patience has not ended."""
        work = self._commit or self._upload
        return work is not None and not work.done and time.monotonic() < self._save_ends

    def start_save(self, state: TrainingState) -> None:
        """Copy the state to host memory and upload it in the background; a collective.

        Call ``advance`` until it returns a manifest, or ``finish_save``.
        """
        assert not self.busy, "finish_save() first"
        self._state = state.to_host()
        if self._generation is None:  # on all ranks alike: nothing was loaded
            self._generation = agree(self.world, self._ask_generation)[0]
        self._folder = broadcast(self.world, make_name(state.step, self._generation, self.origin))
        copied, folder, until = self._state, self._folder, self._until()
        self._save_ends = until + _OVERTIME_SECONDS
        self._upload = Background(lambda: self._write_objects(folder, copied, until), "checkpoint")

    def advance(self) -> Manifest | None:
        """Take the save one stage on; a collective, for when no rank is ``uploading`` (else it waits).

        Returns the manifest when that is committed, and None when there is another stage.

        Raises:
            CheckpointError: some rank could not write its objects until patience ended, or another run writes here.
        """
        state = self._state
        assert state is not None
        try:
            if self._manifest is None:
                self._start_commit(state)
                return None
            manifest = self._manifest
            agree(self.world, lambda: self._wait(self._commit) if self._commit is not None else None)
        except AppError as error:
            self._forget_save()
            # Keys that could write when the run began, a disk that was not full: somebody may mend what refuses now.
            transient = error.transient or isinstance(error, StorageError)
            message = f"checkpoint of step {state.step} not written: {error}"
            raise CheckpointError(message, transient=transient) from error
        folder, self._last_commit, self.committed_step = self._folder, time.monotonic(), state.step
        self._scores[folder] = _score(manifest)
        self._forget_save()
        if self.world.rank == 0 and (self._collecting is None or self._collecting.done):
            self._collecting = Background(lambda: self._collect(folder), "collect")
        return manifest

    def _start_commit(self, state: TrainingState) -> None:
        upload = self._upload
        assert upload is not None
        parts: list[list[StoredObject]] = agree(self.world, lambda: self._wait(upload))
        objects = tuple(item for part in parts for item in part)
        self._manifest, self._upload = Manifest(state.step, self.world.size, objects, dict(state.meta)), None
        if self.world.rank == 0:
            data, until = self._manifest.to_json(), self._until()
            self._save_ends = until + _OVERTIME_SECONDS
            url = storage.join(self.url, self._folder, "manifest.json")
            self._commit = Background(lambda: self._put_manifest(url, data, until), "commit")

    def _wait(self, work: Background[T]) -> T:
        """Its result; a request that neither ends nor fails, as one at 1 kB/s, must not outlast patience."""
        try:
            return work.result(max(0.0, self._save_ends - time.monotonic()))
        except TimeoutError as error:
            raise StorageError(f"{self.url}: the store is too slow to take it in time", transient=True) from error

    def _put_manifest(self, url: str, data: bytes, until: float) -> None:
        if self._lease is not None:
            persist(self._lease.require, until, whatever=True)
        if not persist(lambda: put_manifest(url, data, conditional=self.conditional), until, whatever=True):
            raise CheckpointError(f"{url} exists already: two runs write to one folder; give each its own output")

    def _forget_save(self) -> None:
        self._upload = self._commit = self._manifest = self._state = None

    def finish_save(self) -> Manifest:
        """Wait for all ranks' uploads and commit; a collective.

        Raises:
            CheckpointError: see ``advance``; nothing is committed.
        """
        while (manifest := self.advance()) is None:
            continue
        return manifest

    def save(self, state: TrainingState) -> Manifest:
        """Write and commit in one go, and delete what is old; a collective."""
        self.start_save(state)
        manifest = self.finish_save()
        self._finish_collecting()
        return manifest

    def _ask_generation(self) -> int:
        return self._next_generation(persist(self._folders, self._until())) if self.world.rank == 0 else 0

    def _write_objects(self, folder: str, state: TrainingState, until: float) -> list[StoredObject]:
        wanted: list[tuple[str, Mapping[str, Tensor], tuple[int, int] | None]] = []
        if self.world.rank == 0:
            wanted.append((_REPLICATED, state.replicated, None))
        if state.sharded:
            wanted.append((f"rows-{state.rows[0]:010d}-{state.rows[1]:010d}.safetensors", state.sharded, state.rows))
        objects = []
        for name, tensors, rows in wanted:
            url = storage.join(self.url, folder, name)
            objects.append(persist(lambda u=url, t=tensors, r=rows: write_tensors(u, t, r), until, whatever=True))  # type: ignore[misc]
        return objects

    def _until(self) -> float:
        now = time.monotonic()
        return max(self._last_commit + self.patience, now + min(_LEAST_TRY_SECONDS, self.patience))

    def _collect(self, current: str) -> None:
        """Delete old checkpoints, and what interrupted attempts left; failing to is no reason to stop training."""
        try:
            names = self._folders()
            committed = [name for name in names if self._is_committed(name)]
            for name in committed:
                if name.text not in self._scores and name.text not in self._damaged:
                    try:
                        url = storage.join(self.url, name.text, "manifest.json")
                        self._scores[name.text] = _score(read_manifest(url, time.monotonic()))
                    except CheckpointError:
                        self._scores[name.text] = 0.0
            victims = choose_victims(
                names,
                {name.text for name in committed},
                self.keeping,
                origin=self.origin,
                current=current,
                damaged=self._damaged,
                scores=self._scores,
                age_of=lambda name: age(storage.join(self.url, name.text), storage.join(self.url, current)),
            )
            for victim in victims:
                delete_checkpoint(storage.join(self.url, victim))
        except StorageError as error:
            warnings.warn(f"old checkpoints could not be deleted: {error}", stacklevel=2)

    def _finish_collecting(self) -> None:
        if self._collecting is not None:
            try:
                self._collecting.result(_COLLECT_SECONDS)
            except TimeoutError:
                warnings.warn("old checkpoints are not all deleted: the store is slow", stacklevel=2)

    # --- loading ---

    def load_latest(self, rows: tuple[int, int]) -> TrainingState | None:
        """The newest sound checkpoint, with the classes ``rows`` of its sharded tensors; a collective.

        All ranks load the same one. None when there is none.

        Raises:
            StorageError, CheckpointError: the store did not answer, or none of the checkpoints there is sound: to
                begin anew would lose what the run has.
        """
        until = time.monotonic() + self.patience
        candidates = agree(self.world, lambda: self._candidates(until) if self.world.rank == 0 else (0, []))
        self._generation, names = candidates[0]
        problem = ""
        for name in reversed(names):
            # Tensors stay where they are; what the ranks tell each other is whether they have them.
            box: list[TrainingState] = []
            answers = agree(self.world, lambda n=name, b=box: self._try_load(n, rows, until, b))  # type: ignore[misc]
            problem = next((answer for answer in answers if answer), "")
            if not problem:
                self.committed_step = box[0].step
                return box[0]
            self._damaged.add(name)
            if self.world.rank == 0:
                warnings.warn(f"passed over a damaged checkpoint: {problem}", stacklevel=2)
        if names:
            raise CheckpointError(
                f"{self.url}: no checkpoint of {len(names)} is sound; the oldest: {problem}; restore one, or pass "
                "--checkpoint.resume never to begin from step 0 knowingly"
            )
        return None

    def newest_meta(self) -> dict[str, Any] | None:
        """``meta`` of the newest readable manifest, None without one; a collective. No tensor is read.

        Raises:
            StorageError: the store did not answer.
        """
        until = time.monotonic() + self.patience
        return agree(self.world, lambda: self._newest_meta(until) if self.world.rank == 0 else None)[0]

    def _newest_meta(self, until: float) -> dict[str, Any] | None:
        for name in reversed(self._candidates(until)[1]):
            with contextlib.suppress(DamagedError):
                return read_manifest(storage.join(self.url, name, "manifest.json"), until).meta
        return None

    def _candidates(self, until: float) -> tuple[int, list[str]]:
        """The generation that saves of this run belong to, and what may be loaded, oldest first."""
        names = persist(self._folders, until)
        generation = self._next_generation(names)
        if self.resume == "never":
            names = [name for name in names if name.origin == self.origin]
        committed = persist(lambda: [name.text for name in names if self._is_committed(name)], until)
        return generation, committed

    def _next_generation(self, names: list[Name]) -> int:
        newest = max((name.generation for name in names), default=0)
        if self.resume != "never" or not names:
            return newest
        own = [name.generation for name in names if name.origin == self.origin]
        return max(own) if own else newest + 1

    def _try_load(self, folder: str, rows: tuple[int, int], until: float, box: list[TrainingState]) -> str:
        """Put the state into the box, or return what is wrong with the checkpoint."""
        try:
            box.append(self._load(folder, rows, until))
        except DamagedError as error:
            return str(error)
        return ""

    def _load(self, folder: str, rows: tuple[int, int], until: float) -> TrainingState:
        url = storage.join(self.url, folder, "manifest.json")
        manifest = read_manifest(url, until)
        replicated: dict[str, Tensor] = {}
        pieces: list[tuple[int, dict[str, Tensor]]] = []
        for item in manifest.objects:
            first, last = max(rows[0], (item.rows or rows)[0]), min(rows[1], (item.rows or rows)[1])
            if item.rows is not None and first >= last and (rows[0] != rows[1] or pieces):
                continue
            file = open_tensors(storage.join(self.url, folder, item.name), item, until)
            if item.rows is None:
                replicated |= file.load()
            else:
                start = min(first, item.rows[1]) - item.rows[0]
                wanted = (start, start + max(0, last - first)) if first < last else (0, 0)
                pieces.append((first, file.load(wanted)))
        pieces.sort(key=lambda piece: piece[0])
        sharded = _join_rows([tensors for _, tensors in pieces])
        if any(len(tensor) != rows[1] - rows[0] for tensor in sharded.values()):
            raise DamagedError(f"{url}: it does not hold all classes {rows[0]}..{rows[1] - 1}")
        return TrainingState(manifest.step, replicated, sharded, rows, manifest.meta)

    def load_step(self, step: int, rows: tuple[int, int]) -> TrainingState:
        """The newest checkpoint of one step, for one process.

        Raises:
            CheckpointError: there is none of that step; names those that there are.
            DamagedError: it is not sound.
        """
        found = {manifest.step: folder for folder, manifest in self.manifests()}
        if step not in found:
            raise CheckpointError(f"{self.url}: no checkpoint of step {step}; there are {sorted(found)}")
        return self._load(found[step], rows, time.monotonic() + self.patience)

    def manifests(self) -> list[tuple[str, Manifest]]:
        """Folder names and manifests of the committed checkpoints, oldest first."""
        found = []
        for name in self._folders():
            if self._is_committed(name):
                url = storage.join(self.url, name.text, "manifest.json")
                found.append((name.text, Manifest.from_json(url, storage.read_bytes(url))))
        return found

    def _folders(self) -> list[Name]:
        """All attempts, oldest first."""
        names = (parse_name(text) for text in storage.list_names(self.url))
        return sorted((name for name in names if name is not None), key=lambda name: name.order)

    def _is_committed(self, name: Name) -> bool:
        return storage.exists(storage.join(self.url, name.text, "manifest.json"))


def _score(manifest: Manifest) -> float:
    score = manifest.meta.get("best_mean", 0.0)
    return float(score) if isinstance(score, int | float) else 0.0


def _join_rows(pieces: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pieces end to end; a single one as it is, since a copy would double the memory."""
    if len(pieces) == 1:
        return pieces[0]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else {})}
