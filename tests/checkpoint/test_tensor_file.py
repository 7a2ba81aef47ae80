"""Shards as safetensors files: the library reads what is written here, and ranges come back as they were."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.checkpoint import tensor_file
from app.checkpoint.manifest import CHUNK_BYTES, DamagedError, StoredObject
from app.checkpoint.tensor_file import TensorFile, cut, digest, serialize
from app.checkpoint.transfer import write_tensors

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def stored(tensors: dict[str, Tensor]) -> tuple[bytes, StoredObject]:
    data = b"".join(serialize(tensors))
    return data, StoredObject("x", len(data), tuple(digest(c) for c in cut([memoryview(data)], CHUNK_BYTES)))


def reader(data: bytes, log: list[int]) -> Callable[[int, int], bytes]:
    def fetch(start: int, stop: int) -> bytes:
        log.append(stop - start)
        return data[start:stop]

    return fetch


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)),
        max_size=6,
    )
)
def test_the_library_reads_what_is_written_and_it_comes_back(about: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    tensors = {name: (torch.rand(shape) * 100).to(dtype) for name, (dtype, shape) in about.items()}
    data, item = stored(tensors)
    for found in (safetensors.torch.load(data), TensorFile("x", item, reader(data, [])).load()):
        assert found.keys() == tensors.keys()
        for name, value in tensors.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value), name


@given(st.lists(st.binary(max_size=20)), st.integers(1, 9))
def test_pieces_are_the_whole_in_equal_parts(parts: list[bytes], size: int) -> None:
    pieces = [bytes(piece) for piece in cut(map(memoryview, parts), size)]
    assert b"".join(pieces) == b"".join(parts)
    assert all(len(piece) == size for piece in pieces[:-1])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_rows_come_back_whatever_the_chunks(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 300))
    tensors = {"a": torch.randn(rows, 3), "b": torch.arange(rows), "c": torch.randn(rows, 2, 2, dtype=torch.float64)}
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    chunk = data.draw(st.sampled_from([64, 100, 1000]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_file, "CHUNK_BYTES", chunk)
        raw = b"".join(serialize(tensors))
        item = StoredObject("x", len(raw), tuple(digest(c) for c in cut([memoryview(raw)], chunk)))
        found = TensorFile("x", item, reader(raw, [])).load((start, stop))
    for name, value in tensors.items():
        assert torch.equal(found[name], value[start:stop])


def test_a_thousand_of_a_quarter_million_rows_read_about_as_much_as_that(tmp_path: Path) -> None:
    tensors = {"centres": torch.randn(250_000, 64), "momentum": torch.randn(250_000, 64)}
    url = str(tmp_path / "shard")
    item = write_tensors(url, tensors, (0, 250_000))
    log: list[int] = []
    data = (tmp_path / "shard").read_bytes()
    file = TensorFile(url, item, reader(data, log))
    found = file.load((100_000, 101_000))
    assert torch.equal(found["centres"], tensors["centres"][100_000:101_000])
    wanted = 2 * 1000 * 64 * 4
    # Of each tensor a chunk more at either end, and one with the header.
    assert sum(log) <= wanted + (2 * 2 + 1) * CHUNK_BYTES
    assert sum(log) < len(data) / 20


def test_writing_and_reading_take_a_small_part_of_the_shard_in_memory(tmp_path: Path) -> None:
    tensors = {"centres": torch.zeros(1 << 20, 64)}  # 256 MiB, outside of Python's allocator
    shard = tensors["centres"].numel() * 4
    url = str(tmp_path / "shard")
    tracemalloc.start()
    item = write_tensors(url, tensors, None)
    with open(url, "rb") as source:

        def fetch(start: int, stop: int) -> bytes:
            source.seek(start)
            return source.read(stop - start)

        TensorFile(url, item, fetch)._checked(0, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * shard
    assert len(item.chunks) == math.ceil(item.size / CHUNK_BYTES)


def test_a_garbled_answer_is_asked_for_again_and_a_wrong_object_is_damage() -> None:
    data, item = stored({"a": torch.randn(1000, 700)})
    answers = [data[:100], None, data[:CHUNK_BYTES]]

    def once_short(start: int, stop: int) -> bytes:
        return answers.pop(0) or data[start:stop] if answers else data[start:stop]

    assert torch.equal(TensorFile("x", item, once_short).load()["a"], safetensors.torch.load(data)["a"])
    wrong = bytearray(data)
    wrong[-1] ^= 1
    with pytest.raises(DamagedError, match=r"x: bytes \d+-\d+ are not those of the manifest"):
        TensorFile("x", item, reader(bytes(wrong), [])).load()


@pytest.mark.parametrize(
    "head",
    [
        b"\xff" * 8,
        b"\x08" + bytes(7) + b"[1,2,3] ",
        b"\x02" + bytes(7) + b"\xff\xff",
        b"\x40" + bytes(7) + b'{"a":{"dtype":"F32","shape":[-1,4],"data_offsets":[0,-16]}}     ',
        b"\x40" + bytes(7) + b'{"a":{"dtype":"F32","shape":[99999],"data_offsets":[0,399996]}} ',
    ],
)
def test_a_header_that_is_none_is_damage_even_with_matching_hashes(head: bytes) -> None:
    item = StoredObject("x", len(head), (digest(head),))
    with pytest.raises(DamagedError, match="not a safetensors file"):
        TensorFile("x", item, reader(head, [])).load()
