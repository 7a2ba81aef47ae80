"""A folder of images as a source: one subfolder a person, as torchvision's ImageFolder has it."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.source import Sample, SourceError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_READERS = 16  # files that are asked for at a time


class FolderSource:
    """Images under ``url/PERSON/``; classes are the subfolders in the order of their names. See ``Source``.

    Each image is a request of its own: for more than some ten thousand images ``app.prepare folder`` makes a ``.rec``.

    Raises:
        SourceError: there is no image one level down.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        filesystem, root = storage.open_filesystem(url)
        with storage.explained(url, "list"):
            found = filesystem.find(root, maxdepth=2, detail=True)
        base = root.rstrip("/") + "/"
        files = sorted(
            (path.removeprefix(base), int(details.get("size") or 0))
            for path, details in found.items()
            if path.lower().endswith(SUFFIXES) and path.removeprefix(base).count("/") == 1
        )
        if not files:
            raise SourceError(f"{storage.redact(url)} holds neither train.rec nor subfolders with images")
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
