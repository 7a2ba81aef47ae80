"""Lines of a list of labels as numbers: millions at a time as columns of bytes, those that are odd one by one."""

from __future__ import annotations

import csv
import re

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.recordio import MAX_CLASSES, RecordError

_KEY_DIGITS, _LABEL_DIGITS = 18, 8  # what int64 holds, and labels below MAX_CLASSES
_NEWLINE, _RETURN, _TAB, _QUOTE, _DOT, _ZERO = b'\n\r\t".0'
_SEPARATORS = b"\t,; "  # the first of them that a line holds behind its key; paths may hold the later ones
_Places = NDArray[np.int64]


def parse_label_lines(url: str, text: bytes, first: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Keys int64 [L] and labels int32 [L] of the lines that are not blank; see ``label_list.open_labels``.

    Args:
        text: whole lines.
        first: number of the first of them in the file, from 1.

    Raises:
        RecordError: a line holds no key or no label; names its number.
    """
    text = text if text.endswith(b"\n") else text + b"\n"
    lines = _Lines(text)
    keys, labels, plain = lines.parse()
    kept = np.ones(len(keys), dtype=bool)
    for at in np.flatnonzero(~plain).tolist():
        pair = _parse_line(url, lines.text_of(at), first + at)
        if pair is None:
            kept[at] = False
        else:
            keys[at], labels[at] = pair
    return (keys, labels) if plain.all() else (keys[kept], labels[kept])


class _Lines:
    """Lines of a text whose fields are found and read as arrays, one entry a line."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._bytes = np.frombuffer(text, dtype=np.uint8)
        self._ends = np.flatnonzero(self._bytes == _NEWLINE)
        self._starts = np.concatenate([[0], self._ends[:-1] + 1])
        self._stops = self._ends - (self._bytes[self._ends - 1] == _RETURN)  # behind the last field

    def text_of(self, line: int) -> str:
        """One of them without its end."""
        return self._text[self._starts[line] : self._ends[line]].removesuffix(b"\r").decode("utf-8", "replace")

    def parse(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]:
        """Keys, labels, and for which lines these are right; the others must be looked at one by one."""
        for byte in _SEPARATORS:
            if len(separators := np.flatnonzero(self._bytes == byte)):
                break
        else:
            nothing = np.zeros(len(self._ends), dtype=np.int64)
            return nothing, nothing.astype(np.int32), nothing > 0
        places = np.searchsorted(separators, self._starts)
        first = self._after(separators, places)
        second = self._after(separators, places + 1)
        last = self._after(separators, np.searchsorted(separators, self._ends) - 1)
        keys, fits = self._digits(self._starts, first, _KEY_DIGITS)
        # The label is the second field, unless that ends in a letter that no number ends in ("nan" and "infinity" do).
        tail = self._bytes[np.maximum(second - 1, 0)] | 0x20
        named = (tail >= ord("a")) & (tail <= ord("z")) & ~np.isin(tail, list(b"nfy")) & (second > first + 1)
        begin = np.where(named, last + 1, np.minimum(first + 1, self._stops))
        labels, whole = self._labels(begin, np.where(named, self._stops, second))
        odd = self._lines_with(_QUOTE) if byte != _TAB else np.zeros(len(fits), dtype=bool)
        returns = np.flatnonzero(self._bytes == _RETURN)
        odd[np.searchsorted(self._ends, returns[self._bytes[returns + 1] != _NEWLINE])] = True
        return keys, labels.astype(np.int32), fits & whole & (first < self._stops) & ~odd

    def _after(self, separators: _Places, places: _Places) -> _Places:
        """The separators at ``places``, or the lines' ends where those come before."""
        inside = np.clip(places, 0, len(separators) - 1)
        return np.where(places < len(separators), np.minimum(separators[inside], self._stops), self._stops)

    def _lines_with(self, byte: int) -> NDArray[np.bool_]:
        found = np.zeros(len(self._ends), dtype=bool)
        found[np.searchsorted(self._ends, np.flatnonzero(self._bytes == byte))] = True
        return found

    def _labels(self, begin: _Places, end: _Places) -> tuple[_Places, NDArray[np.bool_]]:
        """Whole numbers, with zeros behind a point or not."""
        dots = np.flatnonzero(self._bytes == _DOT)
        if not len(dots):
            return self._digits(begin, end, _LABEL_DIGITS)
        places = np.searchsorted(dots, begin)
        dot = np.where(places < len(dots), dots[np.minimum(places, len(dots) - 1)], end)
        dot = np.minimum(dot, end)
        values, fits = self._digits(begin, dot, _LABEL_DIGITS)
        fraction = np.minimum(dot + 1, end)
        zeros, short = self._digits(fraction, end, _KEY_DIGITS)
        return values, fits & ((fraction == end) | (short & (zeros == 0)))

    def _digits(self, begin: _Places, end: _Places, most: int) -> tuple[_Places, NDArray[np.bool_]]:
        """Fields of 1 to ``most`` decimal digits as numbers, and which fields are such."""
        width = end - begin
        fits = (width > 0) & (width <= most)
        values = np.zeros(len(begin), dtype=np.int64)
        for place in range(int(width.max(where=fits, initial=0))):
            inside = fits & (place < width)
            digit = self._bytes[np.where(inside, begin + place, 0)] - np.uint8(_ZERO)
            values = np.where(inside, values * 10 + digit, values)
            fits &= ~inside | (digit <= 9)
        return values, fits


def _parse_line(url: str, line: str, number: int) -> tuple[int, int] | None:
    """Key and label of one line; None: it is blank, or the first and names the columns."""
    if not line.strip():
        return None
    try:
        columns = _columns(line)
        key, label = int(columns[0]), _label(columns)
        if not -(2**63) <= key < 2**63:
            raise OverflowError
        return key, label
    except (ValueError, IndexError, OverflowError, csv.Error) as error:
        first = re.split(r"[\t,;]", line, maxsplit=1)[0].strip().partition(" ")[0]
        if number == 1 and not _is_number(first):  # names of the columns
            if not first.strip():
                raise RecordError(
                    f"{storage.redact(url)}: the first column has no name, as where a table was saved with the numbers "
                    "of its rows: save it without them (pandas: index=False)"
                ) from error
            return None
        raise RecordError(
            f"{storage.redact(url)}: line {number}: expected key, label and path, parted by tabs, commas, semicolons "
            f"or spaces, found {line[:60]!r}; a label is a whole number from 0 to {MAX_CLASSES - 1}"
        ) from error


def _columns(line: str) -> list[str]:
    """Fields of a line; where it holds no tab, they are parted by what stands behind the key."""
    if "\t" in line:
        return line.split("\t")
    behind = re.search(r" *([,;])| ", line.strip())
    if behind is None or behind[1]:
        return next(csv.reader([line], delimiter=behind[1] if behind else ","))
    return next(csv.reader([line.strip()], delimiter=" ", skipinitialspace=True))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _label(columns: list[str]) -> int:
    text = columns[1] if _is_number(columns[1]) else columns[-1]
    value = int(text) if text.isdecimal() else float(text)
    if value != int(value) or not 0 <= value < MAX_CLASSES:
        raise ValueError(text)
    return int(value)
