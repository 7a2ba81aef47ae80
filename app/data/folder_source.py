"""A folder of images as a source: one subfolder a person, as torchvision's ImageFolder has it."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.recordio import RecordError
from app.data.source import Sample, SourceError
from app.patience import tell_progress
from app.store_requests import is_s3

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
_READERS = 16  # files that are asked for at a time


class NoImagesError(SourceError):
    """A folder without an image one level down."""


class FolderSource:
    """Images under ``url/PERSON/``; classes are the subfolders in the order of their names. See ``Source``.

    Links are followed; what systems leave beside pictures (``.thumbs``, ``._1.jpg``, ``__MACOSX``) is none, and a
    subfolder without an image is no class, which is said. Each image is a request of its own, two from a bucket, and
    each process lists them all: for more than some ten thousand images ``app.prepare folder`` makes a ``.rec``.

    Raises:
        NoImagesError: there is no image one level down.
        SourceError: some lie deeper, where nobody could tell whose they are.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        files = _list_files(url)
        self._sizes = np.fromiter((size for _, size in files), np.int64, len(files))
        self._names = [name for name, _ in files]
        self.people = sorted({name.partition("/")[0] for name in self._names})
        numbers = {person: number for number, person in enumerate(self.people)}
        self._labels = np.fromiter((numbers[name.partition("/")[0]] for name in self._names), np.int64, len(files))
        self.num_classes = len(self.people)
        self.record_bytes = float(self._sizes.mean())
        self.tag = "folder-" + _hash(files)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="files")
        self._requests = self._bytes = 0
        self._lock = threading.Lock()
        # A bucket is asked for an object's length before its bytes, so that an answer that was cut off is known.
        self._requests_a_file = 2 if is_s3(storage.open_filesystem(url)[0]) else 1

    def __len__(self) -> int:
        return len(self._names)

    def read(self, positions: NDArray[np.int64]) -> list[bytes]:
        """The files at ``positions``, in that order; nothing of one that is there no more."""
        files = list(self._readers.map(self._read_one, positions.tolist()))
        with self._lock:  # several threads read
            self._requests += len(files) * self._requests_a_file
            self._bytes += sum(map(len, files))
        return files

    def parse(self, position: int, record: bytes) -> Sample:
        """The person's number and the file; see ``Source``."""
        if not record:
            raise RecordError(f"{self.describe(position)}: the file is empty, or was deleted after the run had begun")
        if len(record) != self._sizes[position]:
            raise RecordError(
                f"{self.describe(position)}: the file has {len(record)} bytes, and had {self._sizes[position]} when "
                "the run began: it was replaced"
            )
        return Sample(float(self._labels[position]), record)

    def _read_one(self, position: int) -> bytes:
        try:
            return storage.read_bytes(storage.join(self.url, self._names[position]))
        except storage.StorageError as error:
            if error.kind != "absent":
                raise
            return b""

    def describe(self, position: int) -> str:
        """The file's URL."""
        return storage.redact(storage.join(self.url, self._names[position]))

    def classes_without_image(self) -> list[int]:
        """None: an empty subfolder is no class."""
        return []

    def figures(self) -> dict[str, float]:
        """Requests and bytes; of what the store's driver sends again nothing is known."""
        return {"requests": self._requests, "bytes_read": self._bytes}


def _list_files(url: str) -> list[tuple[str, int]]:
    """Paths of the images one level down, from the folder on, with their bytes; sorted."""
    shown = storage.redact(url)
    files: list[tuple[str, int]] = []
    subfolders: set[str] = set()
    loose, deeper, datasets = 0, list[str](), set[str]()
    for name, size in _walk_any(url):
        person, inside, rest = name.partition("/")
        if inside and person not in subfolders and not _is_system(person):
            subfolders.add(person)
        if rest == "train.rec":
            datasets.add(person)  # such as one made of these photographs, whose sheet.png is nobody's picture
        if not name.lower().endswith(SUFFIXES) or _is_system(name):
            continue
        if not inside:
            loose += 1
        elif "/" in rest:
            deeper.append(name)
        else:
            files.append((name, size))
    if datasets:
        warnings.warn(
            f"{shown}: {', '.join(sorted(datasets)[:3])}: a dataset with a train.rec, no person", stacklevel=3
        )
        files = [file for file in files if file[0].partition("/")[0] not in datasets]
    if not files:
        raise NoImagesError(f"{shown} holds neither train.rec nor subfolders with images")
    if deeper:
        raise SourceError(
            f"{shown}: {len(files)} images lie one level down, in a subfolder a person, but {len(deeper)} deeper, such "
            f"as {min(deeper)}: name the folder above the people, or make a .rec of it with app.prepare folder"
        )
    if loose:
        warnings.warn(f"{shown}: {loose} images in no person's subfolder are left out", stacklevel=3)
    if empty := subfolders - datasets - {name.partition("/")[0] for name, _ in files}:
        warnings.warn(
            f"{shown}: {len(empty)} of {len(subfolders)} subfolders hold no image, such as {min(empty)!r}: they are no "
            "classes",
            stacklevel=3,
        )
    files.sort()
    return files


def _hash(files: list[tuple[str, int]]) -> str:
    """Of the list's text, which for a million files is long."""
    digest = hashlib.sha256(b"[")
    for number, file in enumerate(files):
        digest.update(f"{', ' if number else ''}{file!r}".encode())
    digest.update(b"]")
    return digest.hexdigest()[:32]


def _walk_any(url: str) -> Iterator[tuple[str, int]]:
    """Files at any depth by their paths from the folder on, with their bytes; a name ending in a slash is a folder."""
    filesystem, root = storage.open_filesystem(url)
    if not storage.is_local(filesystem):
        yield from storage.list_tree(url)
        return
    with storage.explained(url, "list"):
        yield from _walk(root, "", (os.path.realpath(root),))


def _walk(folder: str, base: str, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Through links too, unless one leads back to a folder above it."""
    tell_progress()  # a million files on a mount take minutes
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in above and not _is_system(entry.name):
                    yield f"{base}{entry.name}/", 0
                    yield from _walk(entry.path, f"{base}{entry.name}/", (*above, real))
            elif entry.is_file():  # neither a pipe nor a link to nowhere
                yield base + entry.name, entry.stat().st_size


def _is_system(name: str) -> bool:
    return name.startswith(".") or "/." in name or ("__MACOSX" in name and "__MACOSX" in name.split("/"))
