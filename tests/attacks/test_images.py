"""Pictures that take memory or time: in a dataset's records, and among photographs of others."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, features

from tests.attacks.bounded import read


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(side: int, extra: bytes = b"", rows: bytes | None = None) -> bytes:
    body = zlib.compress(bytes((1 + 3 * side) * side) if rows is None else rows, 9)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _many_scans(count: int, *, trailer: bytes = b"") -> bytes:
    plain = _encoded(Image.new("L", (1400, 1400)), "JPEG", progressive=True)
    return plain[:-2] + plain[plain.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9" + trailer


def _large_canvas() -> bytes:
    picture = _encoded(Image.new("RGB", (64, 64)), "WEBP")[12:]
    most = (16383).to_bytes(3, "little")
    frame = bytes(6) + (63).to_bytes(3, "little") * 2 + b"\1\0\0\0"
    parts = [(b"VP8X", b"\2\0\0\0" + most * 2), (b"ANIM", bytes(6)), (b"ANMF", frame + picture)]
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(part)) + part for name, part in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _large_frame() -> bytes:
    data = bytearray(_encoded(Image.new("P", (8, 8)), "GIF"))
    at = data.index(b"\x2c")
    data[at + 5 : at + 9] = struct.pack("<HH", 60000, 60000)
    return bytes(data)


def _exif(entries: int, size: int) -> bytes:
    """A directory whose entries all have the same bytes for their value."""
    at = 8 + 2 + 12 * entries + 4
    listed = b"".join(struct.pack("<HHII", 1000 + number, 7, size, at) for number in range(entries))
    return b"II*\0" + struct.pack("<IH", 8, entries) + listed + bytes(4) + bytes(size)


def _with_exif(block: bytes) -> bytes:
    plain = _encoded(Image.new("CMYK", (16, 16)), "JPEG")
    parts = [b"Exif\0\0" + block[at : at + 65000] for at in range(0, len(block), 65000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return plain[:2] + segments + plain[2:]


_TEXT = zlib.compress(bytes(100_000_000), 9)
REFUSED: dict[str, Callable[[], bytes]] = {
    "PNG of one colour": lambda: _png(6000),
    "JPEG of one colour, progressive": lambda: _encoded(Image.new("RGB", (7000, 7000)), "JPEG", progressive=True),
    "TIFF of one colour": lambda: _encoded(Image.new("RGB", (6000, 6000)), "TIFF", compression="tiff_adobe_deflate"),
    "WebP of one colour": lambda: _encoded(Image.new("RGB", (6000, 6000)), "WEBP", lossless=True),
    "WebP with a large canvas": _large_canvas,
    "GIF of one colour": lambda: _encoded(Image.new("P", (6000, 6000)), "GIF"),
    "GIF with a large frame": _large_frame,
    "PPM": lambda: b"P6 60000 60000 255\n" + bytes(100),
    "PPM of text": lambda: b"P6 " + b"9" * 1_000_000,
    "PNG's text": lambda: _png(8, _chunk(b"zTXt", b"a\0\0" + _TEXT)),
    "PNG's international text": lambda: _png(8, _chunk(b"iTXt", b"a\0\1\0\0\0" + _TEXT)),
    "PNG's colour profile": lambda: _png(8, _chunk(b"iCCP", b"a\0\0" + _TEXT)),
    "many scans": lambda: _many_scans(3000),
    "markers without end": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 100_000,
    "cut off": lambda: _encoded(Image.new("RGB", (64, 64)), "JPEG")[:300],
}
READ: dict[str, Callable[[], bytes]] = {
    "PNG with more than its pixels": lambda: _png(8, rows=bytes(100_000_000)),
    "EXIF that says its bytes again and again": lambda: _with_exif(_exif(3000, 25_000)),
    "EXIF in many segments": lambda: _with_exif(_exif(20_000, 500_000)),
    "TIFF directory": lambda: _encoded(Image.new("RGB", (8, 8)), "TIFF", tiffinfo={1000 + n: "x" for n in range(5000)}),
    "scans in the film behind the picture": lambda: _many_scans(5, trailer=b"\xff\xda" * 5000),
}


@pytest.mark.parametrize("kind", ["image", "photograph"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_made_to_take_memory_or_time_is_refused(name: str, kind: str) -> None:
    data = REFUSED[name]()
    read(kind, data).refused(len(data))


@pytest.mark.parametrize("kind", ["image", "photograph"])
@pytest.mark.parametrize("name", READ)
def test_what_is_odd_beside_a_sound_picture_is_passed_over_in_little_memory(name: str, kind: str) -> None:
    data = READ[name]()
    outcome = read(kind, data)
    assert not outcome.error
    outcome.bounded(len(data))


@pytest.mark.parametrize(
    "form", [form for form, codec in (("AVIF", "avif"), ("JPEG2000", "jpg_2000")) if features.check(codec)]
)
def test_other_kinds_of_photographs_are_bounded_too(form: str) -> None:
    data = _encoded(Image.new("RGB", (5000, 5000)), form)
    read("photograph", data).refused(len(data), "too large")
