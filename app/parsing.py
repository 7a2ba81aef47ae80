"""Text, JSON and TOML that others may have made, read in bounded time and memory.

The libraries' parsers are kept; what they leave open is closed here: files without end, 100,000 levels of nesting, keys
of 100,000 parts, numbers that are none (NaN, 1e999) or that take minutes to read.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from typing import Any

from app.errors import AppError

_MAX_TEXT = 1 << 20
_MAX_JSON = 16 << 20
_MAX_VALUES = 400_000  # of one JSON text; a manifest of 10,000 ranks has a fifth of that
_MAX_DOTS = 256  # on one line of TOML: its parser takes quadratic time in the parts of a key


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


def parse_json(data: bytes, where: str) -> Any:
    """The value of a JSON text: strictly JSON, so without NaN, and with no number beyond float64.

    Raises:
        ParseError: it is not JSON, or of a size or depth that no honest file has.
    """
    text = parse_text(data, where, limit=_MAX_JSON)
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > _MAX_VALUES:
        raise ParseError(f"{where}: about {values} values are too many for such a file; at most {_MAX_VALUES} are read")
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"{where}: not JSON ({_reason(error)})") from error


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """The same, where it must be an object.

    Raises:
        ParseError: it is not.
    """
    value = parse_json(data, where)
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


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond float64")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    return " ".join(str(error).split())[:200] or type(error).__name__
