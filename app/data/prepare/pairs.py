"""A verification set from images and a list of pairs."""

from __future__ import annotations

from app import storage
from app.data.bin_sets import dump_set
from app.data.decode import decode_image, encode_jpeg, resize
from app.data.prepare.orl import PrepareError
from app.data.recordio import RecordError


def prepare_pairs(source: str, pairs: str, output: str, *, size: int = 112) -> str:
    """Write a ``.bin`` file; returns a line about it.

    Args:
        source: folder URL of the images.
        pairs: URL of a text file, a pair a line: two paths below ``source`` and 1 (same person) or 0.
        output: URL of the ``.bin`` file.

    Raises:
        PrepareError: a line is not such a pair, or an image is missing or unreadable; names the line.
    """
    images: dict[str, bytes] = {}
    encoded: list[bytes] = []
    issame: list[bool] = []
    for number, line in enumerate(storage.read_bytes(pairs).decode().splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or words[2] not in ("0", "1"):
            raise PrepareError(f"{pairs}: line {number}: expected 'image image 0|1', found {line[:60]!r}")
        for name in words[:2]:
            if name not in images:
                images[name] = _load(storage.join(source, name), size, f"{pairs}: line {number}")
            encoded.append(images[name])
        issame.append(words[2] == "1")
    if not issame:
        raise PrepareError(f"{pairs}: no pair in it")
    storage.write_bytes(output, dump_set(encoded, issame))
    return f"{len(issame)} pairs, {sum(issame)} of them genuine, of {len(images)} images"


def _load(url: str, size: int, where: str) -> bytes:
    try:
        image = decode_image(storage.read_bytes(url))
    except (storage.StorageError, RecordError) as error:
        raise PrepareError(f"{where}: {url}: {error}") from error
    return encode_jpeg(resize(image, size, size))
