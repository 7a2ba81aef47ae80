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
_MAX_JSON = 4 << 20
_JSON_ALLOWANCE = 48 << 20  # bytes beside twice the text that its values may take
# What each of these bytes may bring along in memory beside the text itself; measured upper bounds of CPython's parser.
_JSON_COSTS = {b"[": 96, b"{": 240, b",": 16, b":": 180, b'"': 28}
_JSON_NUMBER = 32
_MAX_DOTS = 256  # on one line of TOML: its parser takes quadratic time in the parts of a key
_MAX_ALL_DOTS = 20_000  # of one TOML text; its parser takes 1.3 kB for each part of a key
_MAX_TABLES = 1000  # of one TOML text; a recipe has ten
_MAX_DIGITS = 4300  # as many as Python turns into a number; tomllib takes 100 bytes of memory for each
_MAX_VALUES = 400_000  # of one JSON list of any length, however short
_BEYOND_16_BITS = re.compile(rb"[\xf0-\xff]")
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

    It takes at most twice the text and 48 MiB of memory.

    Args:
        limit: longest text, bytes.
        bytes_a_value: of lists that may be long: one value, bracket or comma so many bytes is fine, however many, and
            whatever memory they take.

    Raises:
        ParseError: it is not JSON, or of a size or depth that no honest file has.
    """
    if bytes_a_value and (values := sum(map(data.count, (b",", b"[", b"{")))) > max(
        _MAX_VALUES, most := len(data) // bytes_a_value
    ):
        raise ParseError(f"{where}: about {values} values are too many for such a file; at most {most} are read")
    if not bytes_a_value and len(data) <= limit and _json_cost(data) > 2 * len(data) + _JSON_ALLOWANCE:
        raise ParseError(f"{where}: its values would take more memory than a file of {len(data)} bytes needs")
    text = parse_text(data, where, limit=limit)
    try:
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_refuse_repetition
        )
    except (ValueError, RecursionError) as error:
        raise ParseError(f"{where}: not JSON ({_reason(error)})") from error


def _json_cost(data: bytes) -> int:
    """Bytes of memory that the text and its values take at most."""
    # A string takes as many bytes for each of its letters as the widest of them needs, and so does the text.
    wide = 1 if data.isascii() else 4 if _BEYOND_16_BITS.search(data) else 2
    text = wide * len(data) + (len(data) if wide > 1 else 0)  # with what is widened, until it is
    strings = max(wide, 4 if b"\\u" in data else 1) * len(data) + (len(data) if b"\\" in data else 0)
    counts = {byte: data.count(byte) for byte in _JSON_COSTS}
    quoted = counts[b'"'] // 2 - counts[b":"]  # strings that are values
    numbers = max(0, counts[b","] + counts[b"["] + counts[b"{"] - quoted)
    values = sum(_JSON_COSTS[byte] * count for byte, count in counts.items()) + _JSON_NUMBER * numbers
    return text + values + (strings if b'"' in data else 0)


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
    if (dots := text.count(".")) > _MAX_ALL_DOTS:
        raise ParseError(f"{where}: {dots} dots are too many; at most {_MAX_ALL_DOTS} are read")
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
