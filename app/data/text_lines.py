"""Long text files of lines, read in pieces: the next is fetched while one is parsed."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from app import storage
from app.data.recordio import RecordError
from app.patience import tell_progress
from app.storage import ObjectInfo

PIECE = 8 << 20  # bytes of text that are parsed at a time
_LONGEST = 8 << 20  # bytes of a line


def whole_lines(text: ObjectInfo, ends: bytes = b"\n") -> Iterator[bytes]:
    """The file from its first byte to its last, cut behind bytes of ``ends``; without a byte order mark.

    Raises:
        RecordError: a line is longer than any that is meant, as in a file of something else.
    """
    rest = b""
    with ThreadPoolExecutor(2) as pool:
        starts = range(0, text.size, PIECE)
        read = [pool.submit(_read, text, start) for start in starts[:2]]
        for number in range(len(starts)):
            piece = read.pop(0).result()
            tell_progress()
            if not number:
                piece = piece.removeprefix(codecs.BOM_UTF8)  # Windows' editors put it there
            if number + 2 < len(starts):
                read.append(pool.submit(_read, text, starts[number + 2]))
            end = max(piece.rfind(byte) for byte in ends) + 1
            if end:
                yield rest + piece[:end]
            rest = piece[end:] if end else rest + piece
            if len(rest) > _LONGEST:
                raise RecordError(
                    f"{storage.redact(text.url)}: a line of more than {_LONGEST >> 20} MiB, near byte "
                    f"{starts[number]}: it is no list of lines, or damaged there"
                )
    if rest:
        yield rest


def _read(text: ObjectInfo, start: int) -> bytes:
    return storage.read_range(text.url, start, min(start + PIECE, text.size))
