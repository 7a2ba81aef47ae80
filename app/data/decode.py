"""JPEG (or another of a few image formats) to RGB ``uint8 [H, W, 3]``, with the size checked before it is decoded."""

from __future__ import annotations

import io
import re
import struct
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from app.data.recordio import RecordError

# Pillow knows over forty formats, some of them programs of their own (EPS); these are the ones of face datasets.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
# An image may announce this many pixels, and so many more for each byte it has: a photograph has 2 to 30 a byte, and
# as many as 70 where a JPEG of quality 10 shows little but sky; one colour all over reaches 300 and more. A file of a
# few hundred bytes thus cannot ask for gigabytes, while a real photograph of any camera passes.
FREE_PIXELS, PIXELS_PER_BYTE, MAX_PIXELS = 2 << 20, 80, 1 << 27
# A progressive JPEG comes in about ten scans; each may cover the whole image in a few bytes, and takes its time again.
MAX_SCANS = 100
_SCAN = b"\xff\xda"
# A face of so many bytes is decoded in a fraction of a second even if it were nothing but scans, and searching for
# them would take a twentieth of the decoding.
_FEW_SCANS = 1 << 14
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # after a scan; what is stuffed or restarts belongs to it

# Pillow's own warning about large images; the check above is stricter.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode encoded image bytes to RGB, ``uint8 [H, W, 3]``.

    Raises:
        RecordError: the bytes are not an image, end too early, or announce a size that they cannot hold.
    """
    return decode_leniently(data)[0]


def decode_leniently(data: bytes) -> tuple[NDArray[np.uint8], bool]:
    """Decode as ``decode_image`` does; the bool says that the JPEG has faults that the decoder could pass over.

    Stray bytes before a marker are such a fault: libjpeg warns of them, Pillow and so the reference decode them.
    """
    if not data:
        raise RecordError("the record holds no image bytes")
    if data[:2] != b"\xff\xd8":
        return _decode_with_pillow(data, "image"), False
    check_scans(data)
    faulty = False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(int(width), int(height), len(data))
        if colours not in ("CMYK", "YCCK"):
            return simplejpeg.decode_jpeg(data, colorspace="RGB"), False
    except ValueError:
        faulty = True
    return _decode_with_pillow(data, "JPEG"), faulty


def _check_size(width: int, height: int, size: int) -> None:
    if width * height > min(MAX_PIXELS, FREE_PIXELS + PIXELS_PER_BYTE * size):
        raise RecordError(
            f"an image of {size} bytes announces {width} x {height} pixels, which they cannot hold: it is "
            "damaged, or made to take memory"
        )


def check_scans(data: bytes) -> None:
    """Refuse a JPEG of more scans than any encoder makes.

    Raises:
        RecordError: it has them.
    """
    if data.count(_SCAN) <= MAX_SCANS:  # also in thumbnails, profiles, and the film behind a telephone's picture
        return
    at, scans = 2, 0
    while (found := _MARKER.search(data, at)) is not None and found[0] != b"\xff\xd9":
        at = found.end()
        if found[0] not in (b"\xff\x01", b"\xff\xd8") and at + 2 <= len(data):  # a segment, whose length follows
            at += struct.unpack_from(">H", data, at)[0]
        scans += found[0] == _SCAN
        if scans > MAX_SCANS:
            raise RecordError(f"a JPEG of more than {MAX_SCANS} scans: it is made to take time")


def _decode_with_pillow(data: bytes, kind: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, len(data))
            if image.format == "TIFF":  # its tiles may be larger than the image
                tags: dict[int, int] = dict(image.tag_v2)  # type: ignore[attr-defined]
                _check_size(tags.get(322, 1), tags.get(323, 1), len(data))
            return _to_rgb(image)
    except RecordError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever comes up
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"none of {', '.join(FORMATS)}"
        elif isinstance(error, Image.DecompressionBombError):
            reason = "it announces more pixels than its bytes can hold"
        raise RecordError(f"unreadable {kind} of {len(data)} bytes ({reason})") from error


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow would clip them
        grey = np.asarray(image).astype(np.int64)
        if grey.size and int(grey.max()) > 255:
            grey >>= 8
        return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def decode_into(data: bytes, out: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Decode into ``out``, RGB uint8 [H, W, 3]; an image of another size is returned, and ``out`` then undefined.

    Raises:
        RecordError: as ``decode_image``.
    """
    if data[:2] == b"\xff\xd8":
        if len(data) > _FEW_SCANS:
            check_scans(data)
        try:
            image: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
            return None if image.shape == out.shape else image.copy()
        except ValueError:
            pass  # it is larger, or not plain: CMYK, faults
    image = decode_image(data)
    if image.shape != out.shape:
        return image
    out[:] = image
    return None


def encode_jpeg(image: NDArray[np.uint8], quality: int = 95) -> bytes:
    """Encode RGB ``uint8 [H, W, 3]`` as JPEG without chroma subsampling."""
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "444")
    return encoded


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize RGB ``uint8 [H, W, 3]`` bilinearly (with antialiasing when it shrinks)."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
