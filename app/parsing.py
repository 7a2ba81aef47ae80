"""Text, JSON and TOML that others may have made, read in bounded time and memory.

The libraries' parsers are kept; what they leave open is closed here: files without end, 100,000 levels of nesting, keys
of 100,000 parts, numbers that are none (NaN, 1e999) or that take minutes to read.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from app.errors import AppError

_MAX_TEXT = 1 << 20
_MAX_JSON = 16 << 20
_MAX_VALUES = 400_000  # of one JSON text; a manifest of 10,000 ranks has a fifth of that
_MAX_DOTS = 256  # on one line of TOML: its parser takes quadratic time in the parts of a key
_MAX_TABLES = 1000  # of one TOML text; a recipe has ten
_MAX_DIGITS = 4300  # as many as Python turns into a number; tomllib takes 100 bytes of memory for each
_DIGITS = re.compile(r"[0-9A-Fa-f_]+")


class ParseError(AppError):
    """Bytes that are not what they should be; says where and what."""


def parse_text(data: bytes, where: str, *, limit: int = _MAX_TEXT) -> str:
    """UTF-8 text, with or without the byte order mark that Windows' editors put before it.

    Raises:
        ParseError: it is longer than ``limit`` bytes, or not UTF-8.
    """
    if len(data) > limit:
        raise ParseError(f"{where}: {len(data)} bytes are too many for such a file; at most {limit} are read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParseError(f"{where}: not UTF-8 at byte {error.start}: save it as UTF-8") from error


def parse_json(data: bytes, where: str, *, limit: int = _MAX_JSON, bytes_a_value: int = 0) -> Any:
    """The value of a JSON text: strictly JSON, so without NaN, no number beyond float64, no key twice in an object.

    Args:
        limit: longest text, bytes.
        bytes_a_value: of files that may be long: one value, bracket or comma so many bytes is fine, however many.

    Raises:
        ParseError: it is not JSON, or of a size or depth that no honest file has.
    """
    text = parse_text(data, where, limit=limit)
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    most = max(_MAX_VALUES, len(data) // bytes_a_value if bytes_a_value else 0)
    if values > most:
        raise ParseError(f"{where}: about {values} values are too many for such a file; at most {most} are read")
    try:
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_refuse_repetition
        )
    except (ValueError, RecursionError) as error:
        raise ParseError(f"{where}: not JSON ({_reason(error)})") from error


def parse_people(data: bytes, where: str) -> Any:
    """What a ``people.json`` holds: names in class order, of as many people as there may be.

    Raises:
        ParseError: it is not JSON.
    """
    return parse_json(data, where, limit=1 << 30, bytes_a_value=8)


def parse_json_object(data: bytes, where: str, *, limit: int = _MAX_JSON, bytes_a_value: int = 0) -> dict[str, Any]:
    """The same, where it must be an object.

    Raises:
        ParseError: it is not.
    """
    value = parse_json(data, where, limit=limit, bytes_a_value=bytes_a_value)
    if not isinstance(value, dict):
        raise ParseError(f"{where}: a JSON object is expected, found {type(value).__name__}")
    return value


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ParseError: it is not TOML, or of a size or depth that no honest file has.
    """
    if len(text) > _MAX_TEXT:
        raise ParseError(f"{where}: {len(text)} characters are too many; at most {_MAX_TEXT} are read")
    if any(len(found[0]) > _MAX_DIGITS for found in _DIGITS.finditer(text)):
        raise ParseError(f"{where}: a number of more than {_MAX_DIGITS} digits")
    if (tables := text.count("\n[")) > _MAX_TABLES:
        raise ParseError(f"{where}: {tables} tables are too many; at most {_MAX_TABLES} are read")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > _MAX_DOTS:
            raise ParseError(f"{where}, line {number}: more than {_MAX_DOTS} dots on a line")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError, OverflowError) as error:
        raise ParseError(f"{where}: not TOML: {_reason(error)}") from error


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that every parser reads: a number that is not finite, a loss of NaN for example, becomes null."""
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{twice[:80]!r} stands there twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond float64")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    return " ".join(str(error).split())[:200] or type(error).__name__
