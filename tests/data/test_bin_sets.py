"""Verification sets: every way the field writes them is read, nothing is ever executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.data.bin_sets import dump_set, load_set, parse_set
from app.data.recordio import RecordError

IMAGES = [b"\xff\xd8one", b"\xff\xd8two", b"three", b"\x80four"]
FLAGS = [True, False]


KINDS_OF_FLAGS = {
    "list": FLAGS,
    "array": np.array(FLAGS),
    "numpy's bools": [np.bool_(flag) for flag in FLAGS],
    "ints": [int(flag) for flag in FLAGS],
    "array of ints": np.array(FLAGS, dtype=np.int64),
    "array of big-endian ints": np.array(FLAGS, dtype=">i4"),
    "array of floats": np.array(FLAGS, dtype=np.float32),
    "column": np.array(FLAGS)[:, None],
    "objects": np.array(FLAGS, dtype=object),
    "numpy's floats": [np.float64(flag) for flag in FLAGS],
    "tuple": tuple(FLAGS),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("flags", KINDS_OF_FLAGS.values(), ids=list(KINDS_OF_FLAGS))
def test_every_protocol_and_kind_of_flags_is_read(protocol: int, flags: Any) -> None:
    loaded = parse_set("x.bin", "x", pickle.dumps((IMAGES, flags), protocol=protocol))
    assert loaded.images == IMAGES
    assert loaded.issame.tolist() == FLAGS


_ARRAYS = [np.frombuffer(image, dtype=np.uint8).copy() for image in IMAGES]
KINDS_OF_IMAGES = {
    "uint8 arrays, as of cv2.imencode": _ARRAYS,
    "columns, as of an older cv2.imencode": [array[:, None] for array in _ARRAYS],
    "bytearrays": [bytearray(image) for image in IMAGES],
    "an array of objects": np.array(IMAGES, dtype=object),
    "tuple": tuple(IMAGES),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("images", KINDS_OF_IMAGES.values(), ids=list(KINDS_OF_IMAGES))
def test_every_kind_of_encoded_images_is_read(protocol: int, images: Any) -> None:
    loaded = parse_set("x.bin", "x", pickle.dumps((images, FLAGS), protocol=protocol))
    assert loaded.images == IMAGES
    assert all(type(image) is bytes for image in loaded.images)


def test_names_of_both_numpys_are_read() -> None:
    for protocol in range(5):
        data = pickle.dumps((IMAGES, np.array(FLAGS)), protocol=protocol)
        older = data.replace(b"numpy._core", b"numpy.core")
        if protocol == 4:  # the lengths of the name and of the frame go with it
            older = older.replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
        assert parse_set("x.bin", "x", older).issame.tolist() == FLAGS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((IMAGES, [2, 0]), "entry 0 is 2"),
        ((IMAGES, [True, -1]), "entry 1 is -1"),
        ((IMAGES, np.array([1.0, np.nan])), "entry 1 is nan"),
        ((IMAGES, [True, b"x"]), "entry 1 is a bytes"),
        ((IMAGES, np.ones((2, 2))), r"issame is an array of shape \(2, 2\)"),
        ((np.zeros((4, 8, 8, 3), np.uint8), FLAGS), "images is an array of shape"),
        (([np.zeros((8, 8, 3), np.uint8)] * 4, FLAGS), r"image 0 is an array of shape \(8, 8, 3\), so it is decoded"),
        ((["text"] * 4, FLAGS), "image 0 is not one"),
        ((IMAGES, None), "issame is a NoneType"),
    ],
)
def test_what_is_not_such_a_set_is_told(content: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        parse_set("x.bin", "x", pickle.dumps(content))


def test_a_set_written_by_python_2_is_read() -> None:
    # (['ab', 'cd'], [True]) by Python 2's protocol 2: byte strings come as SHORT_BINSTRING.
    data = b"\x80\x02]q\x00(U\x02abq\x01U\x02cdq\x02e]q\x03\x88a\x86q\x04."
    loaded = parse_set("x.bin", "x", data)
    assert (loaded.images, loaded.issame.tolist()) == ([b"ab", b"cd"], [True])


def test_what_we_write_a_plain_unpickler_reads() -> None:
    images, issame = pickle.loads(dump_set(IMAGES, FLAGS))
    assert (images, issame) == (IMAGES, FLAGS)


class _Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_code_in_a_set_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    for attack in (_Attack(os.system, f"touch {mark}"), _Attack(eval, "1"), _Attack(np.dtype, "O")):
        with pytest.raises(RecordError, match="refused: the file asks to call"):
            parse_set("evil.bin", "evil", pickle.dumps((IMAGES, attack), protocol=protocol))
    assert not mark.exists()


def test_truncated_and_foreign_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "lfw.bin"
    for data, message in [
        (dump_set(IMAGES, FLAGS)[:-20], "truncated"),
        (b"PK\x03\x04", "truncated"),
        (pickle.dumps({"a": 1}), "found dict"),
        (pickle.dumps((IMAGES[:3], FLAGS)), "3 images do not make 2 pairs"),
        (pickle.dumps(([1, 2], [True])), "list of encoded images"),
    ]:
        path.write_bytes(data)
        with pytest.raises(RecordError, match=message) as caught:
            load_set(str(path))
        assert "lfw.bin" in str(caught.value)


def test_an_unreadable_image_is_named_with_its_pair() -> None:
    loaded = parse_set("x.bin", "x", dump_set(IMAGES, FLAGS))
    with pytest.raises(RecordError, match=r"x\.bin: image 2 \(pair 1\)"):
        loaded.decode(2, 3, 112)
