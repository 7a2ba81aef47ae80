"""A folder of photographs, one subfolder a person, becomes ``train.rec`` and ``train.idx``; it can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.decode import decode_image, encode_jpeg, resize
from app.data.prepare.orl import PrepareError
from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.recordio import RecordError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_PART_IMAGES = 4096


def list_people(source: str) -> dict[str, list[str]]:
    """Names of the subfolders, sorted, and the URLs of their images, sorted.

    Raises:
        PrepareError: there is no image.
    """
    people: dict[str, list[str]] = {}
    for person in storage.list_names(source):
        names = storage.list_names(storage.join(source, person))
        images = [storage.join(source, person, name) for name in names if name.lower().endswith(IMAGE_ENDINGS)]
        if images:
            people[person] = images
    if not people:
        raise PrepareError(
            f"{source}: no images there: expected one subfolder a person, with {', '.join(IMAGE_ENDINGS)}"
        )
    return people


def prepare_folder(source: str, output: str, *, size: int = 112, quality: int = 95, workers: int = 8) -> str:
    """Write ``train.rec``, ``train.idx``, ``property`` and ``people.json`` under ``output``; returns a line about them.

    Images of another size are resized; JPEGs of the right size are taken as they are. What is decoded goes to
    ``output/.parts/`` first, 4096 images an object: a second start takes up what is there.

    Raises:
        PrepareError: an image is unreadable (named), or the source is empty.
    """
    people = list_people(source)
    jobs = [(label, url) for label, urls in enumerate(people.values()) for url in urls]
    parts = storage.join(output, ".parts")
    if not _same_source(parts, jobs):
        storage.delete_tree(parts)
    storage.write_bytes(storage.join(parts, "jobs.json"), json.dumps(jobs).encode())
    done = set(storage.list_names(parts))
    names: list[str] = []
    with ThreadPoolExecutor(workers) as pool:
        for number, chunk in enumerate(_chunks(jobs)):
            name = f"{number:06d}.part"
            names.append(name)
            if name not in done:
                encoded = list(pool.map(lambda job: _load(job[1], size, quality), chunk))
                storage.write_bytes(storage.join(parts, name), _pack(encoded))
    with RecordWriter(storage.join(output, "train.rec")) as writer:
        images = (image for name in names for image in _unpack(storage.read_bytes(storage.join(parts, name))))
        write_identity_layout(writer, [label for label, _ in jobs], images)
    storage.write_bytes(storage.join(output, "property"), f"{len(people)},{size},{size}".encode())
    storage.write_bytes(storage.join(output, "people.json"), json.dumps(list(people), indent=0).encode())
    storage.delete_tree(parts)
    return f"{len(jobs)} images of {len(people)} people"


def _same_source(parts: str, jobs: list[tuple[int, str]]) -> bool:
    url = storage.join(parts, "jobs.json")
    return storage.exists(url) and json.loads(storage.read_bytes(url)) == [list(job) for job in jobs]


def _chunks(jobs: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    iterator = iter(jobs)
    while chunk := list(islice(iterator, _PART_IMAGES)):
        yield chunk


def _load(url: str, size: int, quality: int) -> bytes:
    data = storage.read_bytes(url)
    try:
        image = decode_image(data)
    except RecordError as error:
        raise PrepareError(f"{url}: {error}: remove it or put a sound one there") from error
    if data[:2] == b"\xff\xd8" and image.shape[:2] == (size, size):
        return data
    return encode_jpeg(resize(image, size, size), quality)


def _pack(images: list[bytes]) -> bytes:
    """Sizes as int64, then the images end to end."""
    sizes = np.array([len(images), *map(len, images)], dtype="<i8")
    return sizes.tobytes() + b"".join(images)


def _unpack(data: bytes) -> list[bytes]:
    count = int(np.frombuffer(data, dtype="<i8", count=1)[0])
    sizes: NDArray[np.int64] = np.frombuffer(data, dtype="<i8", count=count, offset=8)
    ends = np.cumsum(sizes) + 8 * (count + 1)
    return [data[int(end - size) : int(end)] for size, end in zip(sizes, ends, strict=True)]
