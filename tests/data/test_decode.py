"""Image bytes: every kind that datasets hold is decoded as Pillow does; sizes are checked before memory is taken."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.data.decode import decode_image, decode_leniently, encode_jpeg
from app.data.recordio import RecordError


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((112, 112), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "form", "near"),
    [
        ("RGB", "JPEG", 4),
        ("CMYK", "JPEG", 4),
        ("RGB", "PNG", 0),
        ("RGBA", "PNG", 0),
        ("P", "PNG", 40),
        ("RGB", "WEBP", 8),
        ("RGB", "BMP", 0),
        ("RGB", "PPM", 0),
        ("P", "GIF", 40),
        ("RGB", "TIFF", 0),
    ],
)
def test_colour_pictures_look_like_their_source(picture: Image.Image, mode: str, form: str, near: float) -> None:
    decoded = decode_image(_encoded(picture.convert(mode), form))
    assert decoded.shape == (112, 112, 3)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - np.asarray(picture)).mean() <= near


def test_grey_pictures_of_8_and_16_bits_are_alike(picture: Image.Image) -> None:
    grey = picture.convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for data in (_encoded(grey, "PNG"), _encoded(sixteen, "PNG"), _encoded(grey, "PPM")):
        assert np.array_equal(decode_image(data), expected)


@pytest.mark.parametrize(
    "tail", [b"\0\0\xff\xd9", b"\xff\x00\xff\xd9", b"\xff\xd9" + b"\0" * 64], ids=["zeros", "ff", "after"]
)
def test_stray_bytes_before_the_end_of_a_jpeg_are_passed_over_as_pillow_does(tail: bytes) -> None:
    good = encode_jpeg(np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    decoded, faulty = decode_leniently(good[:-2] + tail)
    assert np.array_equal(decoded, np.asarray(Image.open(io.BytesIO(good[:-2] + tail)).convert("RGB")))
    assert np.abs(decoded.astype(int) - decode_image(good)).max() <= 2
    assert faulty == (not tail.startswith(b"\xff\xd9"))
    assert decode_leniently(good)[1] is False


def test_a_truncated_jpeg_is_an_error_as_it_is_for_pillow() -> None:
    good = encode_jpeg(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(RecordError, match="unreadable JPEG"):
        decode_image(good[: len(good) // 2])


def _large_jpeg() -> bytes:
    data = bytearray(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(data)


def _large_png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _large_bmp() -> bytes:
    data = bytearray(_encoded(Image.new("RGB", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", 40000, 40000)
    return bytes(data)


def _large_gif() -> bytes:
    data = bytearray(_encoded(Image.new("P", (8, 8)), "GIF"))
    data[6:10] = struct.pack("<HH", 60000, 60000)
    return bytes(data)


@pytest.mark.parametrize("make", [_large_jpeg, _large_png, _large_bmp, _large_gif])
def test_a_small_file_that_announces_a_huge_picture_takes_no_memory(make: Any) -> None:
    data = make()
    tracemalloc.start()
    with pytest.raises(RecordError, match="announces"):
        decode_image(data)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_formats_outside_the_short_list_are_not_tried() -> None:
    for data in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\x0a\x05\x01\x08" + b"\0" * 200,
        b"RIFFxxxxAVI ",
    ):
        with pytest.raises(RecordError, match="none of JPEG, PNG"):
            decode_image(data)
