"""A folder of images as a source: one subfolder a person, as torchvision's ImageFolder has it."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.source import Sample, SourceError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
_READERS = 16  # files that are asked for at a time


class NoImagesError(SourceError):
    """A folder without an image one level down."""


class FolderSource:
    """Images under ``url/PERSON/``; classes are the subfolders in the order of their names. See ``Source``.

    Links are followed; what systems leave beside pictures (``.thumbs``, ``._1.jpg``, ``__MACOSX``) is none, and a
    subfolder without an image is no class. Each image is a request of its own: for more than some ten thousand images
    ``app.prepare folder`` makes a ``.rec``.

    Raises:
        NoImagesError: there is no image one level down.
        SourceError: some lie deeper, where nobody could tell whose they are.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        images = _list_images(url)
        files = [(name, size) for name, size in images if name.count("/") == 1]
        if not files:
            raise NoImagesError(f"{storage.redact(url)} holds neither train.rec nor subfolders with images")
        if deeper := [name for name, _ in images if name.count("/") > 1]:
            raise SourceError(
                f"{storage.redact(url)}: {len(files)} images lie one level down, in a subfolder a person, but "
                f"{len(deeper)} deeper, such as {deeper[0]}: name the folder above the people, or make a .rec of it "
                "with app.prepare folder"
            )
        if loose := len(images) - len(files):
            warnings.warn(f"{storage.redact(url)}: {loose} images in no person's subfolder are left out", stacklevel=2)
        self._names = [name for name, _ in files]
        people = sorted({name.split("/")[0] for name in self._names})
        numbers = {person: number for number, person in enumerate(people)}
        self.people = people
        self._labels = [numbers[name.split("/")[0]] for name in self._names]
        self.num_classes = len(people)
        self.record_bytes = sum(size for _, size in files) / len(files)
        self.tag = "folder-" + hashlib.sha256(repr(files).encode()).hexdigest()[:32]
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="files")
        self._requests = self._bytes = 0

    def __len__(self) -> int:
        return len(self._names)

    def read(self, positions: NDArray[np.int64]) -> list[bytes]:
        """The files at ``positions``, in that order."""
        names = [self._names[position] for position in positions.tolist()]
        files = list(self._readers.map(lambda name: storage.read_bytes(storage.join(self.url, name)), names))
        self._requests += len(files)
        self._bytes += sum(map(len, files))
        return files

    def parse(self, position: int, record: bytes) -> Sample:
        """The person's number and the file."""
        return Sample(float(self._labels[position]), record)

    def describe(self, position: int) -> str:
        """The file's URL."""
        return storage.redact(storage.join(self.url, self._names[position]))

    def classes_without_image(self) -> list[int]:
        """None: an empty subfolder is no class."""
        return []

    def figures(self) -> dict[str, float]:
        """Files and bytes."""
        return {"requests": self._requests, "bytes_read": self._bytes}


def _list_images(url: str) -> list[tuple[str, int]]:
    """Paths of all images from the folder on, at any depth, with their bytes; sorted."""
    filesystem, root = storage.open_filesystem(url)
    with storage.explained(url, "list"):
        if storage.is_local(filesystem):
            found = list(_walk(root, (os.path.realpath(root),)))
        else:
            found = [(path, int(info.get("size") or 0)) for path, info in filesystem.find(root, detail=True).items()]
    base = root.rstrip("/") + "/"
    names = ((path.removeprefix(base), size) for path, size in found)
    return sorted((name, size) for name, size in names if name.lower().endswith(SUFFIXES) and not _is_system(name))


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Files at any depth, through links too, unless one leads back to a folder above it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in above and not _is_system(entry.name):
                    yield from _walk(entry.path, (*above, real))
            elif entry.is_file():  # neither a pipe nor a link to nowhere
                yield entry.path, entry.stat().st_size


def _is_system(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
