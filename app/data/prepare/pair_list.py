"""Lists of pairs as people have them: LFW's ``pairs.txt``, tables with commas, semicolons, tabs or spaces."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from app import storage
from app.data.prepare.alignment import LONGEST_LINE, decode_text
from app.data.prepare.errors import PrepareError
from app.data.prepare.photograph import ENDINGS, ending, is_system_file, same_name
from app.data.prepare.source import Source

_SAME = dict.fromkeys(("1", "1.0", "true", "same", "yes"), True)
_SAME |= dict.fromkeys(("0", "0.0", "-1", "false", "different", "no"), False)


@dataclass(frozen=True)
class Pair:
    """Two paths below the folder of images, whether they show the same person, and the line that says so."""

    first: str
    second: str
    same: bool
    line: int


class Names:
    """The pictures of a folder, found by the names that lists give them."""

    def __init__(self, source: Source) -> None:
        self._source = source

    @cached_property
    def _known(self) -> dict[str, str]:
        return {same_name(file.name): file.name for file in self._source.files if not is_system_file(file.name)}

    @cached_property
    def _numbered(self) -> dict[tuple[str, int], str]:
        """``(Ana_Maria, 1)`` -> ``Ana_Maria/Ana_Maria_0001.jpg``."""
        found: dict[tuple[str, int], str] = {}
        for plain, name in self._known.items():
            person, _, base = plain.rpartition("/")
            person = person.rsplit("/", 1)[-1]
            number = re.fullmatch(rf"{re.escape(person)}_0*(\d+)\.[^.]+", base)
            if number and ending(plain) in ENDINGS:
                found.setdefault((person, int(number[1])), name)
        return found

    def find(self, name: str) -> str:
        """The name as it is stored; empty where there is none: spelling of accents and back slashes do not matter."""
        for candidate in (name, name.replace("\\", "/")):
            if stored := self._known.get(same_name(candidate.removeprefix("./").lstrip("/"))):
                return stored
        return ""

    def find_numbered(self, person: str, number: int) -> str:
        """The picture of a person by LFW's rule; empty where there is none."""
        return self._numbered.get((same_name(person), number), "")


def read_pairs(url: str, source: Source) -> list[Pair]:
    """The pairs of a list.

    - LFW: a first line ``folds pairs``, then ``name n1 n2`` (same person) or ``name1 n1 name2 n2``: the pictures are
      ``name/name_0001.jpg`` or another ending
    - otherwise two paths below the folder and 1 (same person) or 0, or ``true``/``false``, ``yes``/``no``,
      ``same``/``different``;
      separated by commas, semicolons, tabs or spaces; names with the separator in quotes. Names with spaces need no
      quotes where only one reading of the line names two pictures that are there. A line of titles is passed over.

    Lines that begin with ``#`` are comments, unless they name two pictures that are there.

    Raises:
        PrepareError: a line is none of these, or a picture of it is not there; names the line.
    """
    names = Names(source)
    lines = [
        (number, line)
        for number, line in enumerate(decode_text(url, storage.read_bytes(url)).splitlines(), start=1)
        if line.strip() and not _is_comment(line, names)
    ]
    if long := [number for number, line in lines if len(line) > LONGEST_LINE]:
        raise PrepareError(f"{storage.redact(url)}: line {long[0]}: too long for a pair: not a list of pairs")
    rows = [(number, line, _split(line)) for number, line in lines]
    counts = bool(rows) and len(rows[0][2]) <= 2 and all(map(_is_number, rows[0][2]))
    if counts or (rows and all(_is_lfw(row) for _, _, row in rows[1:] or rows)):
        if counts or not _is_lfw(rows[0][2]):
            rows = rows[1:]
        pairs = list(_lfw_pairs(url, rows, names, storage.redact(source.url)))
    else:
        if rows and _is_title(rows[0][2]):
            rows = rows[1:]
        pairs = list(_plain_pairs(url, rows, names, storage.redact(source.url)))
    if not pairs:
        raise PrepareError(f"{storage.redact(url)}: no pair in it")
    return pairs


def _is_comment(line: str, names: Names) -> bool:
    if not line.lstrip().startswith("#"):
        return False
    readings = _readings(line, _split(line), names)
    return not any(names.find(first) and names.find(second) for first, second, _ in readings)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal()


def _split(line: str) -> list[str]:
    for mark in ("\t", ";", ","):
        if mark in line:
            cells = [cell.strip() for cell in next(csv.reader([line], delimiter=mark, skipinitialspace=True))]
            while cells and not cells[-1]:  # tables are filled up with empty cells
                cells.pop()
            if len(cells) > 1:
                return cells
    return [word for word in next(csv.reader([line.strip()], delimiter=" ")) if word]


def _is_lfw(row: Sequence[str]) -> bool:
    if len(row) == 3:
        return _is_number(row[1]) and _is_number(row[2])
    return len(row) == 4 and _is_number(row[1]) and _is_number(row[3])


def _is_title(row: Sequence[str]) -> bool:
    numbers = _SAME.keys() - {"same", "different"}  # which are titles as well
    return len(row) == 3 and not (row[0].lower() in numbers or row[2].lower() in numbers or ending(row[0]))


def _lfw_pairs(url: str, rows: Sequence[tuple[int, str, list[str]]], names: Names, folder: str) -> Iterator[Pair]:
    for number, line, row in rows:
        where = f"{storage.redact(url)}: line {number}"
        if not _is_lfw(row):
            raise PrepareError(f"{where}: expected 'name n1 n2' or 'name1 n1 name2 n2', found {line[:60]!r}")
        people = ((row[0], row[1]), (row[0], row[2]) if len(row) == 3 else (row[2], row[3]))
        found = []
        for person, which in people:
            name = names.find_numbered(person, int(which))
            if not name:
                raise PrepareError(f"{where}: no picture {person}/{person}_{int(which):04d}.* in {folder}")
            found.append(name)
        yield Pair(found[0], found[1], len(row) == 3, number)


def _plain_pairs(url: str, rows: Sequence[tuple[int, str, list[str]]], names: Names, folder: str) -> Iterator[Pair]:
    for number, line, row in rows:
        where = f"{storage.redact(url)}: line {number}"
        readings = _readings(line, row, names)
        if not readings:
            raise PrepareError(f"{where}: expected 'image image 0|1', found {line[:60]!r}")
        found = [(names.find(first), names.find(second), same) for first, second, same in readings]
        there = [(first, second, same) for first, second, same in found if first and second]
        if len(there) != 1:
            first, second, _ = readings[0]
            missing = first if not names.find(first) else second
            what = f"no picture {missing} in {folder}" if not there else "several readings: quote the names"
            raise PrepareError(f"{where}: {what}")
        yield Pair(*there[0], number)


def _readings(line: str, row: Sequence[str], names: Names) -> list[tuple[str, str, bool]]:
    """What a line may say: cells as they are; or words that belong together because the pictures are there."""
    cells = _labelled(row)
    if cells and len(cells[0]) == 2:
        return [(cells[0][0], cells[0][1], cells[1])]
    words = _labelled(line.strip().split(" "))
    if not words:
        return []
    texts = [(" ".join(words[0][:cut]), " ".join(words[0][cut:])) for cut in range(1, len(words[0]))]
    both = [(a.strip(), b.strip(), words[1]) for a, b in texts if names.find(a.strip()) and names.find(b.strip())]
    return both or [(a, b, words[1]) for a, b in texts[:1] if len(texts) == 1 or ending(a)]


def _labelled(row: Sequence[str]) -> tuple[list[str], bool] | None:
    """The row without its label, which stands last or, as in some lists, first."""
    if len(row) >= 3 and row[-1].lower() in _SAME:
        return list(row[:-1]), _SAME[row[-1].lower()]
    if len(row) >= 3 and row[0].lower() in _SAME:
        return list(row[1:]), _SAME[row[0].lower()]
    return None
