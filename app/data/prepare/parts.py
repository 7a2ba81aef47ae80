"""Prepared photographs on their way to a ``.rec`` file: objects of some hundreds, so that a second start goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from app.data.prepare.errors import PrepareError


@dataclass(frozen=True)
class Prepared:
    """What became of one photograph: ``size`` bytes of JPEG, or a ``reason`` why it is left out.

    ``digest`` is the SHA-256 of the file, ``picture_hash`` see ``duplicates.difference_hash``, in hexadecimal.
    """

    size: int = 0
    reason: str = ""
    detail: str = ""
    digest: str = ""
    picture_hash: str = ""


def pack_part(prepared: Sequence[Prepared], images: Sequence[bytes]) -> bytes:
    """A line of JSON that describes all, then the images end to end."""
    return json.dumps([asdict(item) for item in prepared]).encode() + b"\n" + b"".join(images)


def unpack_part(url: str, data: bytes) -> tuple[list[Prepared], list[bytes]]:
    """See ``pack_part``; an image that is left out is empty.

    Raises:
        PrepareError: the object was cut off or is none of ours.
    """
    try:
        line, _, content = data.partition(b"\n")
        prepared = [Prepared(**item) for item in json.loads(line)]
        if sum(item.size for item in prepared) != len(content):
            raise ValueError("its length is another than announced")
    except (ValueError, TypeError) as error:
        raise PrepareError(f"{url}: not a part of a preparation ({error}): delete its folder, start again") from None
    images, start = [], 0
    for item in prepared:
        images.append(content[start : start + item.size])
        start += item.size
    return prepared, images
