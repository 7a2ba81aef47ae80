"""Which checkpoints are deleted after a commit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from app import storage
from app.checkpoint.names import Name

FOREIGN_SECONDS = 3600.0  # what another run began since then may still be in its hands


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
        if name.text not in kept and (name.origin == origin or name.text in damaged or name.age > FOREIGN_SECONDS)
    ]


def delete_checkpoint(url: str) -> None:
    """Delete a folder, its manifest first: what is half deleted was never committed.

    Raises:
        StorageError: the store refuses, or does not answer.
    """
    storage.delete_tree(storage.join(url, "manifest.json"))
    storage.delete_tree(url)
