"""Several datasets, folders of images, lists of labels, and the cache on the node's disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import storage
from app.config.options import parse_recipe
from app.data import chunk_cache
from app.data.build import make_loader, open_source
from app.data.chunk_cache import CHUNK, ChunkCache
from app.data.config import DataConfig
from app.data.dataset import open_dataset
from app.data.decode import encode_jpeg
from app.data.mixture import Mixture
from app.data.recordio import RecordError
from app.data.records import RecordSource
from app.data.source import Sample, SourceError
from app.storage import ObjectInfo
from tests.jobs import ROOT, environment, write_faces


class Numbers:
    """Sample p of ``name`` is the text ``name:p``, of class p mod C."""

    def __init__(self, name: str, length: int, num_classes: int) -> None:
        self.url = self.tag = name
        self.length, self.num_classes, self.record_bytes = length, num_classes, 4.0

    def __len__(self) -> int:
        return self.length

    def read(self, positions: np.ndarray) -> list[bytes]:
        return [f"{self.url}:{position}".encode() for position in positions.tolist()]

    def parse(self, position: int, record: bytes) -> Sample:
        assert record == f"{self.url}:{position}".encode()
        return Sample(float(position % self.num_classes), record)

    def describe(self, position: int) -> str:
        return f"{self.url} {position}"

    def classes_without_image(self) -> list[int]:
        return []

    def figures(self) -> dict[str, float]:
        return {"requests": 1.0}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), min_size=1, max_size=4))
def test_a_mixture_is_its_sources_end_to_end(parts: list[tuple[int, int]]) -> None:
    mixture = Mixture([Numbers(f"s{i}", n, c) for i, (n, c) in enumerate(parts)])
    expected = [
        (f"s{i}:{p}".encode(), sum(c for _, c in parts[:i]) + p % parts[i][1])
        for i, (n, _) in enumerate(parts)
        for p in range(n)
    ]
    order = np.random.default_rng(0).permutation(len(mixture))
    records = mixture.read(order)
    found = [(r, int(mixture.parse(int(p), r).label)) for p, r in zip(order, records, strict=True)]
    assert found == [expected[p] for p in order]
    assert mixture.num_classes == sum(c for _, c in parts)


def test_weights_repeat_and_names_join_people() -> None:
    sources = [Numbers("a", 10, 2), Numbers("b", 4, 2)]
    mixture = Mixture(sources, [0.5, 1.25])
    assert len(mixture) == 10 + 10
    names = [mixture.describe(position) for position in range(10, 20)]
    assert names == [f"b {p % 4}" for p in range(10)]
    shared = Mixture(sources, people=[["ann", "bob"], ["bob", "cid"]])
    assert shared.num_classes == 3
    assert [int(shared.parse(p, shared.read(np.array([p]))[0]).label) for p in (0, 1, 10, 11)] == [0, 1, 1, 2]
    with pytest.raises(SourceError, match=r"data\.weights"):
        Mixture(sources, [1.0])


def test_datasets_and_folders_train_together(tmp_path: Path) -> None:
    write_faces(str(tmp_path / "a"), classes=3, per_class=8)
    for person in ("x", "y"):
        (tmp_path / "b" / person).mkdir(parents=True)
        for number in range(8):
            face = np.full((32, 32, 3), 20 * number, dtype=np.uint8)
            (tmp_path / "b" / person / f"{number}.jpg").write_bytes(encode_jpeg(face))
    config = DataConfig(url=f"{tmp_path}/a,{tmp_path}/b", image_size=32)
    source = open_source(config, 0)
    assert (len(source), source.num_classes) == (40, 5)
    loader = make_loader(source, config, num_classes=5, batch_size=5, logical_workers=2, seed=0)
    batches = [batch for step in loader.steps(0, 0, [0, 1]) for batch in step]
    labels = np.concatenate([batch.labels for batch in batches])
    assert np.bincount(labels).tolist() == [8] * 5
    whole = [batch.positions.tolist() for batch in batches]
    later = [batch.positions.tolist() for step in loader.steps(0, 2, [0, 1]) for batch in step]
    assert later == whole[4:]
    loader.close()
    recipe = parse_recipe(f'[data]\nurl = ["{tmp_path}/a", "{tmp_path}/b"]', "x", "x.toml")
    assert recipe.data.url == config.url


def test_people_of_one_name_are_one_class(tmp_path: Path) -> None:
    for name, people in (("a", ["ann", "bob"]), ("b", ["bob", "cid"])):
        write_faces(str(tmp_path / name), classes=2, per_class=2)
        (tmp_path / name / "people.json").write_text(json.dumps(people))
    assert open_source(DataConfig(url=f"{tmp_path}/a,{tmp_path}/b", people="shared"), 0).num_classes == 3
    assert open_source(DataConfig(url=f"{tmp_path}/a,{tmp_path}/b"), 0).num_classes == 4


@pytest.mark.parametrize("form", ["{key}\t{label}\tp/{key}.jpg", "{key}\tp/{key}.jpg\t{label}"])
def test_labels_of_a_list_replace_those_of_the_records(tmp_path: Path, form: str) -> None:
    write_faces(str(tmp_path), classes=2, per_class=3)
    lines = [form.format(key=key, label=(key - 1) // 2) for key in range(1, 7)]
    (tmp_path / "train.lst").write_text("\n".join(lines[::-1]) + "\n")
    source = open_source(DataConfig(url=str(tmp_path), labels="train.lst"), 0)
    records = source.read(np.arange(6))
    assert [source.parse(p, r).label for p, r in enumerate(records)] == [0, 0, 1, 1, 2, 2]
    assert source.num_classes == 3
    (tmp_path / "train.lst").write_text("\n".join(lines[1:]))
    with pytest.raises(RecordError, match="no label for the record with key 1"):
        open_source(DataConfig(url=str(tmp_path), labels="train.lst"), 0)


def test_the_second_epoch_reads_no_byte_from_the_store(bucket_url: str, tmp_path: Path) -> None:
    write_faces(bucket_url, classes=4, per_class=6)
    source = RecordSource(open_dataset(bucket_url), cache=(tmp_path / "cache", 1 << 30))
    first = source.read(np.arange(24))
    read = source.figures()["bytes_read"]
    assert source.read(np.arange(24)[::-1])[::-1] == first
    assert source.figures()["bytes_read"] == read
    assert source.figures()["cache_hits"] > 0
    again = RecordSource(open_dataset(bucket_url), cache=(tmp_path / "cache", 1 << 30))
    assert again.read(np.arange(24)) == first
    assert again.figures()["bytes_read"] == 0


def make_cache(folder: Path, data: bytes, tag: str = "1", cap: int = 1 << 40) -> tuple[ChunkCache, list[int]]:
    asked: list[int] = []

    def fetch(ranges: list[tuple[int, int]]) -> list[bytes]:
        asked.extend(start for start, _ in ranges)
        return [data[start:stop] for start, stop in ranges]

    return ChunkCache(ObjectInfo("s3://b/train.rec", len(data), tag), fetch, folder, cap), asked  # type: ignore[arg-type]


def test_damaged_chunks_and_other_versions_are_not_believed(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(2 * CHUNK + 500)
    ranges = [(0, 10), (CHUNK - 5, 2 * CHUNK + 5), (2 * CHUNK + 400, 2 * CHUNK + 500)]
    expected = [data[start:stop] for start, stop in ranges]
    cache, asked = make_cache(tmp_path, data)
    assert cache.fetch(ranges) == expected
    assert asked == [0, CHUNK, 2 * CHUNK]
    paths = sorted(tmp_path.glob("*/*/*.chunk"))
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    torn = bytearray(paths[1].read_bytes())
    torn[77] ^= 1
    paths[1].write_bytes(torn)
    cache, asked = make_cache(tmp_path, data)
    assert cache.fetch(ranges) == expected
    assert asked == [0, CHUNK]
    cache, asked = make_cache(tmp_path, data[::-1], tag="2")
    assert cache.fetch([(0, 10)]) == [data[::-1][:10]]


def test_the_cap_holds_and_what_was_used_last_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_cache, "_CHECK_EVERY", 2)
    data = np.random.default_rng(0).bytes(8 * CHUNK)
    cache, _ = make_cache(tmp_path, data, cap=4 * CHUNK)
    for number in range(8):
        assert cache.fetch([(number * CHUNK, number * CHUNK + 9)]) == [data[number * CHUNK : number * CHUNK + 9]]
    left = sorted(path.name for path in tmp_path.glob("*/*/*.chunk"))
    assert len(left) <= 5
    assert left[-1] == "07.chunk"


@pytest.mark.parametrize("cap", [1, CHUNK // 2, 3 * CHUNK])
def test_a_cap_of_a_few_chunks_holds(tmp_path: Path, cap: int) -> None:
    data = np.random.default_rng(0).bytes(20 * CHUNK)
    cache, _ = make_cache(tmp_path, data, cap=cap)
    most = 0
    for number in range(20):
        assert cache.fetch([(number * CHUNK, number * CHUNK + 9)]) == [data[number * CHUNK : number * CHUNK + 9]]
        most = max(most, sum(path.stat().st_size for path in tmp_path.glob("*/*/*.chunk")))
    assert most <= cap


def test_a_disk_that_fails_ends_the_caching_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache, asked = make_cache(tmp_path, b"x" * 100)
    with pytest.warns(UserWarning, match="No space left"):
        assert cache.fetch([(0, 100)]) == [b"x" * 100]
    assert cache.fetch([(0, 100)]) == [b"x" * 100]
    assert asked == [0, 0]


def test_two_processes_share_one_cache(bucket_url: str, tmp_path: Path) -> None:
    write_faces(bucket_url, classes=4, per_class=6)
    program = (
        "import sys, hashlib; from pathlib import Path; import numpy as np\n"
        "from app.data.dataset import open_dataset; from app.data.records import RecordSource\n"
        "source = RecordSource(open_dataset(sys.argv[1]), cache=(Path(sys.argv[2]), 1 << 30))\n"
        "print(hashlib.sha256(b''.join(source.read(np.arange(24)))).hexdigest())"
    )
    command = [sys.executable, "-c", program, bucket_url, str(tmp_path / "cache")]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd=ROOT, text=True) for _ in range(2)
    ]
    assert len({child.communicate(timeout=60)[0] for child in children} - {""}) == 1
    assert not list((tmp_path / "cache").glob("*/*/*.new"))
    assert storage.exists(storage.join(bucket_url, "train.rec"))
