"""The RecordIO codec: properties here, the real mxnet in tests/interop."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.recordio import (
    MAGIC,
    ImageHeader,
    RecordError,
    class_of,
    pack_image,
    pack_record,
    unpack_image,
    unpack_plain_image,
    unpack_record,
)

_magic = struct.pack("<I", MAGIC)
# Data rich in the magic, aligned or not, at the start, at the end and doubled: what the multi-part form is for.
_data = st.lists(st.one_of(st.just(_magic), st.binary(max_size=9)), max_size=12).map(b"".join)


@given(st.lists(_data, min_size=1, max_size=5))
def test_records_come_back_as_written(records: list[bytes]) -> None:
    stream = b"".join(pack_record(data) for data in records)
    position = 0
    for data in records:
        read, position = unpack_record(stream, position)
        assert read == data
    assert position == len(stream)


@given(_data)
def test_the_magic_stands_only_where_a_part_starts(data: bytes) -> None:
    encoded = pack_record(data)
    starts = {i for i in range(0, len(encoded), 4) if encoded[i : i + 4] == _magic}
    position, expected = 0, set()
    while position < len(encoded):
        expected.add(position)
        length = struct.unpack_from("<I", encoded, position + 4)[0] & ((1 << 29) - 1)
        position += 8 + length + -length % 4
    assert starts == expected
    assert len(encoded) % 4 == 0


@given(_data, st.data())
def test_a_truncated_record_is_refused(data: bytes, draw: st.DataObject) -> None:
    encoded = pack_record(data)
    kept = draw.draw(st.integers(0, len(encoded) - 4))  # losing only padding would lose nothing
    with pytest.raises(RecordError, match="cut off"):
        unpack_record(encoded[:kept])


def test_the_bytes_are_those_of_the_format() -> None:
    assert pack_record(b"abcde") == bytes.fromhex("0a23d7ce 05000000") + b"abcde\0\0\0"
    assert pack_record(b"1234" + _magic + b"5") == (
        bytes.fromhex("0a23d7ce 04000020") + b"1234" + bytes.fromhex("0a23d7ce 01000060") + b"5\0\0\0"
    )


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(RecordError, match="no record starts at byte 0"):
        unpack_record(b"\xff\xd8\xff\xe0" * 4)
    middle = struct.pack("<II", MAGIC, 2 << 29)
    with pytest.raises(RecordError, match="out of order"):
        unpack_record(middle)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4), st.booleans(), st.binary(max_size=20))
def test_image_headers_come_back_as_written(labels: list[float], is_array: bool, image: bytes) -> None:
    header = ImageHeader(tuple(labels), 7, 9, is_array=is_array or len(labels) > 1)
    assert unpack_image(pack_image(header, image)) == (header, image)


def test_a_header_that_announces_more_labels_than_there_are_is_refused() -> None:
    data = pack_image(ImageHeader((1.0, 2.0)), b"")
    with pytest.raises(RecordError, match="announces 2 labels"):
        unpack_image(data[:-1])


def test_a_header_that_takes_the_image_for_labels_is_refused() -> None:
    data = struct.pack("<IfQQ", 100_000, 0.0, 1, 0) + b"\0" * 400_000
    with pytest.raises(RecordError, match="announces 100000 labels"):
        unpack_image(data)


@pytest.mark.parametrize("label", [math.nan, math.inf, -math.inf, 1e18, 2.5, -0.5, 2.0**24 + 2])
def test_a_label_that_is_no_class_is_told(label: float) -> None:
    header, _ = unpack_image(pack_image(ImageHeader((label,)), b""))
    with pytest.raises(RecordError, match="is not a class"):
        class_of(header)
    assert class_of(ImageHeader((-1.0, 0.5))) == -1


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with RecordWriter(str(tmp_path / "train.rec")) as writer:
            writer.write(0, b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels", [[1, 0], [1, 1], [0, 2], [0, 1, 0]])
def test_the_identity_layout_needs_grouped_classes(tmp_path: Path, labels: list[int]) -> None:
    with pytest.raises(ValueError, match="grouped"), RecordWriter(str(tmp_path / "train.rec")) as writer:
        write_identity_layout(writer, labels, [b""] * len(labels))


@given(st.binary(max_size=60), st.lists(st.floats(0, 9, width=32), min_size=1, max_size=3), st.booleans(), st.data())
def test_the_short_way_reads_what_the_long_way_reads(
    image: bytes, labels: list[float], is_array: bool, data: st.DataObject
) -> None:
    header = ImageHeader(tuple(labels), 5, 6, is_array=is_array or len(labels) > 1)
    record = bytearray(pack_record(pack_image(header, image)))
    if data.draw(st.booleans()):
        record[data.draw(st.integers(0, len(record) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    del record[data.draw(st.integers(0, len(record))) :]
    plain = unpack_plain_image(bytes(record))
    if plain is None:
        return
    found, expected = unpack_image(unpack_record(bytes(record))[0])
    assert (np.float32(plain[0]).tobytes(), plain[1]) == (np.float32(found.labels[0]).tobytes(), expected)


def test_the_short_way_is_the_one_of_plain_records() -> None:
    assert unpack_plain_image(pack_record(pack_image(ImageHeader((3.0,), 1), b"jpeg"))) == (3.0, b"jpeg")
