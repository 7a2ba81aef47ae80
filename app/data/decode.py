"""JPEG (or any other image format) to RGB ``uint8 [3, H, W]``."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from app.data.recordio import RecordError


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode encoded image bytes to RGB, ``uint8 [H, W, 3]``.

    Raises:
        RecordError: the bytes are not an image, or end too early.
    """
    if not data:
        raise RecordError("the record holds no image bytes")
    if data[:2] == b"\xff\xd8":
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except ValueError as error:
            raise RecordError(f"unreadable JPEG of {len(data)} bytes ({error})") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise RecordError(f"unreadable image of {len(data)} bytes ({type(error).__name__})") from error


def encode_jpeg(image: NDArray[np.uint8], quality: int = 95) -> bytes:
    """Encode RGB ``uint8 [H, W, 3]`` as JPEG without chroma subsampling."""
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "444")
    return encoded


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize RGB ``uint8 [H, W, 3]`` bilinearly (with antialiasing when it shrinks)."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
