"""What was not taken of a folder of photographs, and what is there twice: counted, and listed in files."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app import storage


@dataclass(frozen=True)
class Skipped:
    """A file, or a person's folder, that is not taken."""

    name: str
    reason: str
    detail: str


_MANY = {  # reasons that end otherwise for several
    "person without a picture": "people without a picture",
    "system file": "system files",
    "duplicate": "duplicates",
}


@dataclass(frozen=True)
class Findings:
    """Everything to tell.

    ``duplicates``: a file, the first that shows the same, and whether it is the very file. ``across``: how many of
    these are filed under another person.
    """

    skipped: Sequence[Skipped]
    duplicates: Sequence[tuple[str, str, bool]]
    across: int

    def summary(self) -> str:
        """Counts by reason, to stand behind a line; empty where there is nothing to tell."""
        lines = []
        if self.skipped:
            reasons = Counter(item.reason for item in self.skipped)
            counts = ", ".join(
                f"{count} {reason if count == 1 else _MANY.get(reason, reason)}"
                for reason, count in reasons.most_common()
            )
            lines.append(f"left out: {counts}; listed in skipped.csv")
        if self.duplicates:
            same = sum(same_bytes for *_, same_bytes in self.duplicates)
            text = f"duplicates: {same} with the same bytes, {len(self.duplicates) - same} with the same picture"
            filed = f", {self.across} of them filed under another person" if self.across else ""
            lines.append(f"{text}{filed}; listed in duplicates.csv")
        return "".join(f"\n{line}" for line in lines)

    def write(self, output: str) -> None:
        """Write ``skipped.csv`` and ``duplicates.csv``; lists of an earlier preparation go away."""
        skipped = [(item.name, item.reason, item.detail) for item in self.skipped]
        twice = [(name, first, "bytes" if same else "picture") for name, first, same in self.duplicates]
        for name, head, rows in (
            ("skipped.csv", ("file", "reason", "detail"), skipped),
            ("duplicates.csv", ("file", "same_as", "same"), twice),
        ):
            url = storage.join(output, name)
            if rows:
                storage.write_bytes(url, _table(head, rows))
            elif storage.exists(url):
                storage.delete_tree(url)


def first_of(skipped: Sequence[Skipped]) -> str:
    """``: a/1.jpg: unreadable (...); b/... and 3 more``; empty where there is none."""
    some = "; ".join(f"{item.name}: {item.reason}{f' ({item.detail})' if item.detail else ''}" for item in skipped[:5])
    more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return f": {some}{more}" if some else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return buffer.getvalue().encode("utf-8", "surrogateescape")
