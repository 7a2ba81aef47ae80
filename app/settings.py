"""A field of a configuration class says once what it is: default, meaning, and the values that it takes.

    @dataclass(frozen=True)
    class DataConfig:
        shuffle: str = setting("window", "order of the samples", choices=("full", "window", "none"))
        workers: int = setting(4, "decoding threads a process", minimum=1)

Validation, ``--help`` and docs/reference.md are made from that, so a new field needs nothing else. Booleans and free
text take no range. Every number must be finite, and a whole one must fit 64 bits: TOML guarantees no more.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_T = typing.TypeVar("_T")
_KEY = "app.settings"
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Setting:
    """What a field takes: one of ``choices``, or a number within the bounds or one of ``besides``."""

    meaning: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    besides: tuple[float, ...] = ()
    kind: Any = str  # bool | int | float | str | tuple[str, ...]
    default: Any = None

    @property
    def kind_name(self) -> str:
        """The type in words, as in "must be a whole number"."""
        return _KINDS.get(self.kind, "a list of names")

    @property
    def takes(self) -> str:
        """Which values are possible, in words; empty where all of the type are.

        >>> Setting("share", minimum=0, below=1, besides=(-1,)).takes
        'at least 0 and below 1, or -1'
        """
        if self.choices:
            return " | ".join(self.choices)
        bounds = [
            f"{word} {bound:g}" if abs(bound) < 1e6 else f"{word} {bound}"
            for word, bound in (
                ("at least", self.minimum),
                ("above", self.above),
                ("at most", self.maximum),
                ("below", self.below),
            )
            if bound is not None
        ]
        return ", or ".join([" and ".join(bounds), *(f"{value:g}" for value in self.besides)]) if bounds else ""

    def problem(self, value: Any) -> str:
        """What is wrong with a value of the right type, as the end of a sentence; empty when nothing is."""
        if self.choices:
            return "" if value in self.choices else f"must be one of {', '.join(self.choices)}; got {value!r}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return ""
        if isinstance(value, float) and not math.isfinite(value):
            return f"must be finite; got {value}"
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return "must fit 64 bits, as whole numbers in TOML do"
        fits = (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )
        return "" if fits or value in self.besides else f"must be {self.takes}; got {value}"


def setting(
    default: _T,
    meaning: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    besides: Sequence[float] = (),
) -> _T:
    """A field of a configuration class.

    Args:
        default: its value where nobody says another; immutable.
        meaning: what it does, with its unit and the meaning of special values; no full stop.
        choices: the texts that it takes.
        minimum, above, maximum, below: bounds of a number: >=, >, <=, <.
        besides: numbers outside of the bounds that mean something, such as -1 for "as the backbone's name says".
    """
    about = Setting(meaning, tuple(choices), minimum, above, maximum, below, tuple(besides), default=default)
    return dataclasses.field(default=default, metadata={_KEY: about})


def first_problem(config: object) -> str:
    """The first field of a configuration whose value is not possible, and what it takes; empty when all are."""
    kind: type = type(config)
    for name, about in settings_of(kind).items():
        if problem := about.problem(getattr(config, name)):
            return f"{name} {problem}: {about.meaning}"
    return ""


@functools.cache
def settings_of(section: type) -> Mapping[str, Setting]:
    """The fields of a configuration class, in their order.

    Raises:
        TypeError: a field was not made with ``setting``.
    """
    kinds = typing.get_type_hints(section)
    found = {}
    for field in dataclasses.fields(section):
        if _KEY not in field.metadata:
            raise TypeError(f"{section.__name__}.{field.name} says nothing of itself: make it with setting()")
        found[field.name] = dataclasses.replace(field.metadata[_KEY], kind=kinds[field.name])
    return MappingProxyType(found)
