"""Makes a lost or foreign ``train.idx`` again from the records of ``train.rec``."""

from __future__ import annotations

from app import storage
from app.data.record_writer import index_url
from app.data.scan import scan_records

_LINES = 1 << 16  # formatted at a time


def rebuild_index(folder: str) -> str:
    """Write ``train.idx`` from what lies in ``train.rec``, in place of one that is there; returns a line about it.

    Raises:
        StorageError: the records cannot be read, or the index not written.
        RecordError: the file is damaged; names the byte, and the index that is there stays.
    """
    url = storage.join(folder, "train.rec")
    pairs = scan_records(storage.info(url))
    text = b"".join(
        "".join(f"{key}\t{start}\n" for key, start in pairs[first : first + _LINES].tolist()).encode()
        for first in range(0, len(pairs), _LINES)
    )
    storage.write_bytes(index_url(url), text)
    return f"{len(pairs)} records"
