"""Which checkpoints are deleted after a commit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from app import storage
from app.checkpoint.names import Name

FOREIGN_SECONDS = 3600.0  # what another run wrote since then may still be in its hands


@dataclass(frozen=True)
class Keeping:
    """What stays: the ``last`` checkpoints, every one whose step is a multiple of ``every`` (0: none), the best."""

    last: int = 2
    every: int = 0
    best: bool = True


def choose_victims(
    names: Collection[Name],
    committed: Collection[str],
    keeping: Keeping,
    *,
    origin: str,
    current: str,
    damaged: Collection[str],
    scores: Mapping[str, float],
    age_of: Callable[[Name], float],
) -> list[str]:
    """The folders to delete.

    Args:
        names: all folders.
        committed: names of those with a manifest.
        keeping: the rule.
        origin: mark of this run.
        current: the folder that was just committed.
        damaged: folders that were read and found wrong.
        scores: highest accuracy that was known when a checkpoint was written; see ``TrainingState.meta``.
        age_of: seconds since the last object of a folder was written; asked only of other runs' folders.
    """
    sound = sorted((n for n in names if n.text in committed and n.text not in damaged), key=lambda n: n.order)
    # The newest commit by order and by fact stay, whatever else is said.
    kept = {name.text for name in sound[-max(1, keeping.last) :]} | {current}
    if keeping.every:
        kept |= {name.text for name in sound if name.step % keeping.every == 0}
    known = [name for name in sound if scores.get(name.text, 0.0) > 0]
    if keeping.best and known:
        # The first of those that know the highest accuracy: the one next to the weights that had it.
        highest = max(scores[name.text] for name in known)
        kept.add(next(name.text for name in known if scores[name.text] == highest))
    return [
        name.text
        for name in names
        if name.text not in kept and (name.origin == origin or name.text in damaged or age_of(name) > FOREIGN_SECONDS)
    ]


def age(url: str, current: str) -> float:
    """Seconds between the last change of a folder and that of ``current``, by the store's clock.

    Machines' clocks may be hours apart: by one of them what is being written may look old. 0 where the store tells no
    times: what is not known to be old stays.
    """
    then, now = storage.newest_change(url), storage.newest_change(current)
    return now - then if then and now else 0.0


def delete_checkpoint(url: str) -> None:
    """Delete a folder, its manifest first: what is half deleted was never committed.

    Raises:
        StorageError: the store refuses, or does not answer.
    """
    storage.delete_tree(storage.join(url, "manifest.json"))
    storage.delete_tree(url)
