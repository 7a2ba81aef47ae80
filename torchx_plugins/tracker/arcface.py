"""A TorchX tracker on object storage: one JSON object a run, under the URL that ``.torchxconfig`` gives it.

[torchx:tracker]
arcface =

[tracker:arcface]
config = s3://runs/.tracker
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from torchx.plugins import register
from torchx.tracker.api import Lineage, TrackerArtifact, TrackerBase, TrackerSource

from app import storage
from app.storage import StorageError


class ObjectStoreTracker(TrackerBase):
    """Metadata, artifacts and sources of runs at any fsspec URL."""

    def __init__(self, url: str) -> None:
        self._url = url

    def _place(self, run_id: str) -> str:
        return storage.join(self._url, f"{quote(run_id, safe='')}.json")

    def _read(self, run_id: str) -> dict[str, Any]:
        record: dict[str, Any] = {}
        try:
            record = json.loads(storage.read_bytes(self._place(run_id)))
        except StorageError as error:
            if error.kind != "absent":
                raise
        return {"run_id": run_id, "metadata": {}, "artifacts": {}, "sources": []} | record

    def _write(self, record: dict[str, Any]) -> None:
        storage.write_bytes(self._place(record["run_id"]), json.dumps(record, indent=1).encode())

    def add_artifact(self, run_id: str, name: str, path: str, metadata: Mapping[str, object] | None = None) -> None:
        """Add an artifact's URL."""
        record = self._read(run_id)
        record["artifacts"][name] = path
        if metadata:
            record["metadata"][name] = dict(metadata)
        self._write(record)

    def artifacts(self, run_id: str) -> Mapping[str, TrackerArtifact]:
        """Artifacts by name."""
        return {name: TrackerArtifact(name, path, None) for name, path in self._read(run_id)["artifacts"].items()}

    def add_metadata(self, run_id: str, **kwargs: object) -> None:
        """Add or replace metadata."""
        record = self._read(run_id)
        record["metadata"] |= kwargs
        self._write(record)

    def metadata(self, run_id: str) -> Mapping[str, object]:
        """Metadata of a run, empty for an unknown one."""
        metadata: dict[str, object] = self._read(run_id)["metadata"]
        return metadata

    def add_source(self, run_id: str, source_id: str, artifact_name: str | None = None) -> None:
        """Say what a run came from."""
        record = self._read(run_id)
        record["sources"].append([source_id, artifact_name])
        self._write(record)

    def sources(self, run_id: str, artifact_name: str | None = None) -> Iterable[TrackerSource]:
        """What a run came from."""
        sources = [TrackerSource(source, name) for source, name in self._read(run_id)["sources"]]
        return [source for source in sources if artifact_name in (None, source.artifact_name)]

    def lineage(self, run_id: str) -> Lineage:
        """Not kept."""
        raise NotImplementedError("this tracker keeps sources, not lineage")

    def run_ids(self, **kwargs: str | None) -> Iterable[str]:
        """All runs, those with the given metadata where some is given."""
        names = storage.list_names(self._url)
        runs = [unquote(name.removesuffix(".json")) for name in names if name.endswith(".json")]
        # TorchX's command line passes parent_run_id=None when it wants all runs.
        wanted = {key: value for key, value in kwargs.items() if value is not None}
        return [run for run in runs if self._matches(run, wanted)]

    def _matches(self, run_id: str, wanted: Mapping[str, str]) -> bool:
        record = self._read(run_id)
        for key, value in wanted.items():
            if key == "parent_run_id":
                if value not in [source for source, _ in record["sources"]]:
                    return False
            elif str(record["metadata"].get(key)) != value:
                return False
        return True


@register.tracker(name="arcface")
def create(config: str | None) -> TrackerBase:
    """TorchX calls it with the URL of ``.torchxconfig``."""
    if not config:
        raise ValueError("the tracker 'arcface' needs a URL: [tracker:arcface] config = s3://… in .torchxconfig")
    return ObjectStoreTracker(config)
