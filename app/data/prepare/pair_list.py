"""Lists of pairs as people have them: LFW's ``pairs.txt``, tables with commas, semicolons, tabs or spaces."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from app import storage
from app.data.prepare.alignment import LONGEST_LINE, decode_text
from app.data.prepare.errors import PrepareError
from app.data.prepare.photograph import ENDINGS, ending, is_system_file, same_name
from app.data.prepare.source import Source

_SAME = dict.fromkeys(("1", "1.0", "true", "t", "yes"), True)
_SAME |= dict.fromkeys(("0", "0.0", "-1", "false", "f", "no", "n"), False)
_NO_TITLES = frozenset(_SAME)  # the words below stand above columns as well
_SAME |= dict.fromkeys(("same", "match", "genuine", "positive", "y"), True)
_SAME |= dict.fromkeys(("different", "mismatch", "impostor", "imposter", "negative"), False)
_LABEL_TITLES = frozenset(
    ("label", "labels", "same", "is_same", "issame", "same_person", "match", "is_match", "target", "genuine", "y")
)


@dataclass(frozen=True)
class Pair:
    """Two paths below the folder of images, whether they show the same person, and the line that says so."""

    first: str
    second: str
    same: bool
    line: int


@dataclass(frozen=True)
class _Row:
    number: int
    line: str
    cells: list[str]


@dataclass(frozen=True)
class _Columns:
    """Which of a table's ``width`` columns hold the pictures and the label; ``titles``: its first row is no pair."""

    first: int
    second: int
    label: int
    width: int
    titles: bool


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

    @cached_property
    def _short(self) -> dict[str, str]:
        """Names without their ending, and files without their folders; empty where several would be meant."""
        found: dict[str, str] = {}
        for plain, name in self._known.items():
            base = plain.rsplit("/", 1)[-1]
            kind = ending(plain)
            stem = plain[: -len(kind)] if kind in ENDINGS else plain
            for short in {stem, base, stem.rsplit("/", 1)[-1]} - {plain}:
                found[short] = "" if short in found else name
        return found

    def find(self, name: str) -> str:
        """The name as it is stored; empty where there is none.

        Spelling of accents and back slashes do not matter; ``./`` and whatever ends with the folder's own name may
        stand in front (``/data/lfw/anna/1.jpg`` or ``lfw/anna/1.jpg`` of a folder ``lfw``); the ending may be left
        out, and the folders too, where one file only is meant.
        """
        if stored := self._known.get(same_name(name)):
            return stored
        parts = [part for part in re.split(r"[\\/]+", same_name(name)) if part not in ("", ".")]
        below = [parts[cut + 1 :] for cut, part in enumerate(parts) if part == self._source.folder_name]
        candidates = ["/".join(path) for path in (parts, *below)]
        known = next((self._known[path] for path in candidates if path in self._known), "")
        # A number alone is a count or a label, even where a file 1.jpg lies there.
        short = (self._short.get(path, "") for path in candidates if not _is_number(path))
        return known or next(filter(None, short), "")

    def missing(self, name: str) -> str:
        """Says that there is no such picture, and which may be meant."""
        base = re.split(r"[\\/]", same_name(name))[-1]
        meant = self._short.get(base, "")
        hint = f"; {meant} is there: write paths as they are below that folder" if meant else ""
        return f"no picture {name} in {storage.redact(self._source.url)}{hint}"

    def find_numbered(self, person: str, number: int) -> str:
        """The picture of a person by LFW's rule; empty where there is none."""
        return self._numbered.get((same_name(person), number), "")


def read_pairs(url: str, source: Source) -> list[Pair]:
    """The pairs of a list.

    - LFW: a first line ``folds pairs``, then ``name n1 n2`` (same person) or ``name1 n1 name2 n2``: the pictures are
      ``name/name_0001.jpg`` or another ending
    - otherwise two paths below the folder (see ``Names.find``) and 1 (same person) or 0, or ``true``/``false``,
      ``yes``/``no``, ``same``/``different``, ``genuine``/``impostor``, ``positive``/``negative``; separated by commas,
      semicolons, tabs, bars or spaces; names with the separator in quotes. Names with spaces need no quotes where only
      one reading of the line names two pictures that are there. A line of titles is passed over
    - CALFW, CPLFW: ``picture number`` on two lines a pair; 0: different people, above: the same (in CALFW the fold)
    - more columns (numbers of lines, folds, scores) are passed over, and the label may stand anywhere: below a title
      ``label``, ``same``, ``match``... or in the one column that holds nothing else

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
    pairs = list(_read_rows(url, [_Row(number, line, _split(line)) for number, line in lines], names))
    if not pairs:
        raise PrepareError(f"{storage.redact(url)}: no pair in it")
    return pairs


def _read_rows(url: str, rows: list[_Row], names: Names) -> Iterator[Pair]:
    where = storage.redact(url)
    counts = bool(rows) and len(rows[0].cells) <= 2 and all(map(_is_number, rows[0].cells))
    if counts and len(rows) > 1 and sum(bool(names.find(cell)) for cell in rows[1].cells) == 2:
        rows, counts = rows[1:], False  # folds and pairs above a list of paths
    body = rows[1:] or rows
    lfw = bool(rows) and all(_is_lfw(row.cells) for row in body)
    if not lfw and all(_is_number(row.cells[0]) and _is_lfw(row.cells[1:]) for row in body):  # numbers of lines
        rows, lfw = [replace(row, cells=row.cells[1:]) for row in rows], bool(rows)
    if counts or lfw:
        if counts or not _is_lfw(rows[0].cells):
            rows = rows[1:]
        yield from _lfw_pairs(where, rows, names)
    elif rows and all(_picture_and_flag(row, names) for row in rows):
        yield from _pairs_of_two_lines(where, rows, names)
    elif columns := _find_columns(where, rows, names):
        yield from _table_pairs(where, rows, columns, names)
    else:
        if rows and _is_title(rows[0].cells):
            rows = rows[1:]
        yield from _plain_pairs(where, rows, names)


def _is_comment(line: str, names: Names) -> bool:
    if not line.lstrip().startswith("#"):
        return False
    readings = _readings(line, _split(line), names)
    return not any(names.find(first) and names.find(second) for first, second, _ in readings)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal()


def _split(line: str) -> list[str]:
    for mark in ("\t", ";", ",", "|"):
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
    return len(row) == 3 and not (row[0].lower() in _NO_TITLES or row[2].lower() in _NO_TITLES or ending(row[0]))


def _find_columns(where: str, rows: Sequence[_Row], names: Names) -> _Columns | None:
    """The columns of a table that is more than two pictures and a label; None where it is none."""
    titles = bool(rows) and not any(names.find(cell) or ending(cell) for cell in rows[0].cells)
    widths = Counter(len(row.cells) for row in rows[titles:])
    width = widths.most_common(1)[0][0] if widths else 0
    body = [row.cells for row in rows[titles:] if len(row.cells) == width]
    pictures = [column for column in range(width) if any(names.find(cells[column]) for cells in body[:100])]
    if len(pictures) != 2 or width < 3 or (width == 3 and pictures != [0, 2]):
        return None
    others = [column for column in range(width) if column not in pictures]
    known = {column: sum(cells[column].lower() in _SAME for cells in body) for column in others}
    best = [column for column in others if known[column] == max(known.values()) and 2 * known[column] > len(body)]
    above = rows[0].cells if titles else []
    named = [column for column in others if column < len(above) and above[column].lower() in _LABEL_TITLES]
    counted = [column for column in best if not _counts_up([cells[column] for cells in body])]
    chosen = named or counted or best
    if len(chosen) > 1:
        columns = " and ".join(str(column + 1) for column in chosen)
        raise PrepareError(
            f"{where}: columns {columns} may each say whether a pair is of one person: put a line of titles above, "
            "with 'label' over the right one"
        )
    return _Columns(pictures[0], pictures[1], chosen[0], width, titles) if chosen else None


def _counts_up(cells: Sequence[str]) -> bool:
    return any(list(cells) == [str(start + i) for i in range(len(cells))] for start in (0, 1))


def _table_pairs(where: str, rows: Sequence[_Row], columns: _Columns, names: Names) -> Iterator[Pair]:
    for row in rows[columns.titles :]:
        if len(row.cells) != columns.width:
            many = f"{len(row.cells)} columns, the others {columns.width}: names with the separator need quotes"
            raise PrepareError(f"{where}: line {row.number}: {many}")
        label = row.cells[columns.label]
        if label.lower() not in _SAME:
            raise PrepareError(
                f"{where}: line {row.number}: expected 0 or 1 in column {columns.label + 1}, found {label!r}"
            )
        first, second = row.cells[columns.first], row.cells[columns.second]
        for name in (first, second):
            if not names.find(name):
                raise PrepareError(f"{where}: line {row.number}: {names.missing(name)}")
        yield Pair(names.find(first), names.find(second), _SAME[label.lower()], row.number)


def _lfw_pairs(where: str, rows: Sequence[_Row], names: Names) -> Iterator[Pair]:
    for row in rows:
        cells, line = row.cells, f"{where}: line {row.number}"
        if not _is_lfw(cells):
            raise PrepareError(f"{line}: expected 'name n1 n2' or 'name1 n1 name2 n2', found {row.line[:60]!r}")
        people = ((cells[0], cells[1]), (cells[0], cells[2]) if len(cells) == 3 else (cells[2], cells[3]))
        found = []
        for person, which in people:
            name = names.find_numbered(person, int(which))
            if not name:
                raise PrepareError(f"{line}: {names.missing(f'{person}/{person}_{int(which):04d}.*')}")
            found.append(name)
        yield Pair(found[0], found[1], len(cells) == 3, row.number)


def _picture_and_flag(row: _Row, names: Names) -> tuple[str, bool] | None:
    """What a line of one picture says; None where it says something else."""
    *name, flag = row.cells
    same = int(flag) > 0 if _is_number(flag) else _SAME.get(flag.lower())
    picture = " ".join(name)
    if same is None or not (names.find(picture) or (len(name) == 1 and ending(picture) in ENDINGS)):
        return None
    if len(name) > 1 and any(names.find(first) for first, _, _ in _readings(row.line, row.cells, names)):
        return None  # the name of one picture may be the end of two, /here/lfw/a.jpg /there/lfw/b.jpg
    return picture, same


def _pairs_of_two_lines(where: str, rows: Sequence[_Row], names: Names) -> Iterator[Pair]:
    said = [(row, found) for row in rows if (found := _picture_and_flag(row, names))]
    for row, (picture, _) in said:
        if not names.find(picture):
            raise PrepareError(f"{where}: line {row.number}: {names.missing(picture)}")
    for (row, (first, same)), (other, (second, _)) in zip(said[::2], said[1::2], strict=False):
        if row.cells[-1] != other.cells[-1]:
            raise PrepareError(
                f"{where}: lines {row.number} and {other.number} are one pair, one picture a line, but one ends in "
                f"{row.cells[-1]} and the other in {other.cells[-1]}: a line before them may be missing"
            )
        yield Pair(names.find(first), names.find(second), same, row.number)
    if len(said) % 2:
        raise PrepareError(f"{where}: line {said[-1][0].number}: the other picture of this pair is missing")


def _plain_pairs(where: str, rows: Sequence[_Row], names: Names) -> Iterator[Pair]:
    for row in rows:
        line = f"{where}: line {row.number}"
        readings = _readings(row.line, row.cells, names)
        if not readings:
            raise PrepareError(f"{line}: expected 'image image 0|1', found {row.line[:60]!r}")
        found = [(names.find(first), names.find(second), same) for first, second, same in readings]
        there = [(first, second, same) for first, second, same in found if first and second]
        if len(there) != 1:
            first, second, _ = readings[0]
            missing = first if not names.find(first) else second
            raise PrepareError(f"{line}: {'several readings: quote the names' if there else names.missing(missing)}")
        yield Pair(*there[0], row.number)


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
