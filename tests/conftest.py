"""The order of the tests, and what they share: a real S3 store (SeaweedFS) on loopback, one for a whole session."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
import s3fs

from demo.object_store import ObjectStore

os.environ.setdefault("OMP_NUM_THREADS", "1")

# What takes longest, the longest first: started last, one of these would leave the other cores without work.
LONGEST = [
    *("docs/test_pages", "e2e/test_elastic_job", "faults/test_outages", "elastic/test_agreement", "e2e/test_pipeline"),
    *("elastic/test_world_independence", "faults/test_runs", "faults/test_checkpoints", "e2e/test_demo"),
    *("components/test_kubernetes_cli", "elastic/test_membership", "elastic/test_reproducible"),
    *("backbones/test_backbones", "checkpoint/test_manager"),
]
# Files whose long tests share nothing: any worker may have them.
APART = ("docs/test_pages", "e2e/test_elastic_job", "e2e/test_demo", "components/test_kubernetes_cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests first, and for ``--dist loadgroup`` the tests of a file together, as they share its fixtures."""
    order = {name: number for number, name in enumerate(LONGEST)}
    places = {item: str(item.path.relative_to(item.config.rootpath / "tests").with_suffix("")) for item in items}
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, order.get(places[item], len(order))))
    for item in items:
        slow, place = item.get_closest_marker("slow") is not None, places[item]
        shared = f"{place} slow" if slow else place
        item.add_marker(pytest.mark.xdist_group(item.nodeid if slow and place in APART else shared))


@pytest.fixture(scope="session")
def object_store_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("weed") / "data", "test") as store:
        yield store


@pytest.fixture
def object_store(object_store_process: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The store, with its endpoint and keys in the environment of the test."""
    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in object_store_process.environment.items():
        monkeypatch.setenv(name, value)
    return object_store_process


@pytest.fixture
def bucket_url(object_store: ObjectStore) -> str:
    """A fresh folder URL in the store's bucket."""
    return f"s3://{object_store.bucket}/{uuid.uuid4().hex[:12]}"
