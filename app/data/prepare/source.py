"""A folder of photographs at any URL: every file below it, read by its name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from app import storage
from app.data.prepare.errors import PrepareError


@dataclass(frozen=True)
class SourceFile:
    """A file below the folder: its path from there, bytes, and what changes when it is replaced.

    ``regular``: neither a pipe, a device nor a link to nowhere, which must not be opened.
    """

    name: str
    size: int
    tag: str
    regular: bool = True


class Source:
    """A folder URL. Names are taken as they are: ``#``, ``::``, ``*`` or spaces in them mean nothing."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._filesystem, path = storage.open_filesystem(url)
        self._path = path.rstrip("/")

    @cached_property
    def _entries(self) -> tuple[list[SourceFile], list[str]]:
        files, folders = [], []
        # Folders, and those above each, without links.
        waiting: list[tuple[str, tuple[str, ...]]] = [(self._path, (self._real(self._path),))]
        while waiting:
            folder, above = waiting.pop()
            for entry in self._list(folder):
                path = str(entry["name"]).rstrip("/")
                if path == folder or not path.startswith(f"{self._path}/"):
                    continue
                name = path[len(self._path) + 1 :]
                if entry["type"] == "directory" or (entry.get("islink") and self._filesystem.isdir(path)):
                    real = self._real(path)
                    if real not in above:  # a link may lead back to a folder above it
                        waiting.append((path, (*above, real)))
                        folders.append(name)
                    continue
                tag = str(entry.get("ETag") or entry.get("etag") or entry.get("mtime") or "").strip('"')
                regular = entry["type"] == "file" or (entry.get("islink") and os.path.isfile(path))
                files.append(SourceFile(name, int(entry.get("size") or 0), tag, bool(regular)))
        return sorted(files, key=lambda file: file.name), sorted(folders)

    def _list(self, folder: str) -> list[dict[str, Any]]:
        below = folder[len(self._path) :]
        with storage.explained(f"{self.url.rstrip('/')}{below}", "list"):
            return list(self._filesystem.ls(folder, detail=True))

    def _real(self, path: str) -> str:
        return os.path.realpath(path) if storage.is_local(self._filesystem) else path

    @property
    def files(self) -> list[SourceFile]:
        """All files at any depth, sorted by name.

        Raises:
            StorageError: the folder cannot be listed, or does not exist.
        """
        return self._entries[0]

    @property
    def folders(self) -> list[str]:
        """All folders at any depth, sorted; an object store knows only those that hold something."""
        return self._entries[1]

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            StorageError: it cannot be read; names its URL.
        """
        with storage.explained(f"{self.url.rstrip('/')}/{name}", "read"):
            data = self._filesystem.cat_file(f"{self._path}/{name}")
        return bytes(data)

    @property
    def is_file(self) -> bool:
        """Whether the URL names a file instead."""
        return bool(self._filesystem.isfile(self._path))

    @property
    def folder_name(self) -> str:
        """The last part of the folder's path."""
        return self._path.rsplit("/", 1)[-1]

    def name_of(self, url: str) -> str:
        """The path of ``url`` from this folder; empty where it does not lie below it."""
        filesystem, path = storage.open_filesystem(url)
        inside = type(filesystem) is type(self._filesystem) and path.startswith(f"{self._path}/")
        return path[len(self._path) + 1 :].rstrip("/") if inside else ""


def same_place(one: str, other: str) -> bool:
    """Whether two URLs name one folder, however they are spelled; links are followed."""
    places = []
    for url in (one, other):
        filesystem, path = storage.open_filesystem(url)
        path = os.path.realpath(path) if storage.is_local(filesystem) else path.rstrip("/")
        places.append((type(filesystem), path))
    return places[0] == places[1]


def check_size(size: int) -> None:
    """Refuse an image size that cannot be one.

    Raises:
        PrepareError: it is not 8..1024 pixels.
    """
    if not 8 <= size <= 1024:
        raise PrepareError(f"--size must be 8..1024 pixels, got {size}")
