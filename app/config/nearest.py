"""What somebody meant who mistyped a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LEAST_LIKENESS = 0.5


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """The names that a mistyped one stands for: the most alike, or all that are equally so; empty when none is alike.

    A name of two parts, ``section.field``, is also found by its field alone: ``lr`` is ``optim.lr``, ``train.lr`` too.

    >>> nearest("recpie", ["recipe", "name", "data.url"])
    ['recipe']
    >>> nearest("url", ["data.url", "verify.url", "optim.lr"])
    ['data.url', 'verify.url']
    """
    names = [*names]
    field = name.rpartition(".")[2]
    same = [known for known in names if known.rpartition(".")[2] == field]
    if same and "." not in name:
        return same
    marks = {known: _likeness(name, known) for known in names}
    best = max(marks.values(), default=0.0)
    if same and best < max(marks[known] for known in same) + 0.2:
        best = max(marks[known] for known in same)
        return [known for known in same if marks[known] == best]
    return [known for known in names if marks[known] == best] if best >= _LEAST_LIKENESS else []


def hint(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The end of an error: ``: did you mean 'data.url'?``; empty when nothing is alike."""
    near = [repr(prefix + known) for known in nearest(name, names)]
    return f": did you mean {' or '.join(near)}?" if near else ""


def _likeness(name: str, known: str) -> float:
    """1 for equal, 0 for nothing in common; against the field alone where no section was typed."""
    name = name[:64]  # comparing takes quadratic time, and a key of a file may be of any length
    against = [known] if "." in name else [known, known.rpartition(".")[2]]
    if len(name) > 2 and any(word.startswith(name) for word in against):
        return 0.9  # cut short
    return max(difflib.SequenceMatcher(None, name, word).ratio() for word in against)
