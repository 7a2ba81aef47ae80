"""Opens photographs as people have them: any common format, turned upright, 8 bits, three colours.

What the training loop decodes is made by this project; what lies in a folder of photographs is not. Only formats that
are pictures and nothing else are read: EPS, PDF or WMF would hand the file to another program.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import unicodedata
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from app.data.decode import (
    FREE_PIXELS,
    MAX_PIXELS,
    PIXELS_PER_BYTE,
    check_scans,
    decode_image,
    decode_leniently,
    encode_jpeg,
)
from app.data.prepare.errors import PrepareError
from app.data.prepare.foreign import describe_bytes
from app.data.recordio import RecordError

Fit = Literal["pad", "crop", "stretch"]
FITS: tuple[Fit, ...] = ("pad", "crop", "stretch")

_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "PCX", "SGI", "HEIF")
if importlib.util.find_spec("pillow_heif") is not None:
    importlib.import_module("pillow_heif").register_heif_opener()
Image.init()
FORMATS = tuple(name for name in _FORMATS if name in Image.OPEN)
ENDINGS = frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS) | {
    ".jpg_large",
    ".mpo",  # a JPEG with a second one behind it; Pillow opens it as a JPEG and registers no ending to read
}
_ORIENTATION = 0x0112
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r")
_SYSTEM_FOLDERS = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")


class PhotographError(PrepareError):
    """A file that cannot be taken; ``reason`` is what is counted, the message says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def open_photograph(data: bytes, *, least: int = 0) -> Image.Image:
    """The picture in RGB, as a viewer shows it.

    EXIF orientation is applied; of an animation the first frame counts; 16 bits become 8 by their high byte; what is
    transparent shows white; CMYK and palettes become RGB.

    Args:
        data: the file.
        least: decode a large JPEG at a fraction of its size, but not below this width or height; 0: at its own size.

    Raises:
        PhotographError: it is none of ``FORMATS``, is damaged, or announces more pixels than its bytes can hold.
    """
    if not data:
        raise PhotographError("unreadable", "an empty file")
    try:
        check_scans(data)
        data = _with_end(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(*image.size, len(data))
            if image.format == "TIFF":  # its tiles may be larger than the picture
                tags: dict[int, int] = dict(image.tag_v2)  # type: ignore[attr-defined]
                _check_pixels(int(tags.get(322, 1)), int(tags.get(323, 1)), len(data))
            if least and image.format == "JPEG":
                image.draft(None, (least, least))
            image.load()
            return as_viewed(image)
    except PhotographError:
        raise
    except RecordError as error:
        raise PhotographError("unreadable", str(error)) from None
    except UnidentifiedImageError:
        raise PhotographError("unreadable", describe_bytes(data, FORMATS)) from None
    except Exception as error:  # Pillow's plugins raise whatever their parser meets
        raise PhotographError("unreadable", f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def as_viewed(image: Image.Image) -> Image.Image:
    """An image that Pillow opened in RGB, as a viewer shows it; see ``open_photograph``."""
    return _to_rgb(_upright(image))


def _with_end(data: bytes) -> bytes:
    """A JPEG that lacks nothing but its last two bytes, as some programs and downloads leave it, with these."""
    end = b"\xff\xd9"
    if data[:2] != b"\xff\xd8" or data.rfind(end) > data.rfind(b"\xff\xda"):  # an end behind the last scan
        return data
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        if image.mode == "CMYK":  # decoded by Pillow alone, which does not tell that more is missing
            return data
    return data if decode_leniently(data + end)[1] else data + end


def _check_pixels(width: int, height: int, size: int) -> None:
    if width * height > min(MAX_PIXELS, FREE_PIXELS + PIXELS_PER_BYTE * size):
        raise PhotographError("too large", f"{width} x {height} pixels announced by {size} bytes")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the picture
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey of 16 bits, 32 bits or floating point; a range that fits in less is taken to be that of the pixels."""
    wide = np.nan_to_num(np.asarray(values, dtype=np.float64))
    if values.dtype == np.uint16:
        top = 65535.0
    else:
        largest = float(wide.max(initial=0.0))
        top = 1.0 if values.dtype.kind == "f" and largest <= 1 else 255.0 if largest <= 255 else max(65535.0, largest)
    return np.clip(np.rint(wide * (255.0 / top)), 0, 255).astype(np.uint8)


def fit_square(image: Image.Image, size: int, fit: Fit = "pad") -> Image.Image:
    """The picture in ``size`` x ``size`` pixels.

    ``pad`` keeps all of it between black bars, ``crop`` its middle square; both keep its proportions, ``stretch`` does
    not.
    """
    if image.size == (size, size):
        return image
    if fit == "stretch":
        return image.resize((size, size), Image.Resampling.BILINEAR)
    if fit == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR)


def to_jpeg(image: Image.Image, quality: int = 95) -> bytes:
    """The JPEG of an RGB picture, without chroma subsampling."""
    return encode_jpeg(np.asarray(image), quality)


def is_ready(data: bytes, size: int) -> bool:
    """True for a JPEG of that size which the training loop decodes to what a viewer shows: it is taken as it is."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            upright = image.getexif().get(_ORIENTATION, 1) in (0, 1)
            return (
                upright
                and image.size == (size, size)
                and image.mode in ("RGB", "L")
                and decode_image(data).shape == (size, size, 3)
            )
    except Exception:  # damaged EXIF, mostly; whatever it is, the picture is encoded anew
        return False


def is_system_file(name: str) -> bool:
    """True for what systems leave beside pictures: AppleDouble (``._1.jpg``), ``.DS_Store``, ``Thumbs.db``..."""
    parts = name.lower().split("/")
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in parts) or parts[-1] in _SYSTEM_FILES


def ending(name: str) -> str:
    """``.jpg`` of ``a/b.JPG``; empty where there is none."""
    base = name.rsplit("/", 1)[-1]
    return f".{base.rsplit('.', 1)[1].lower()}" if "." in base[1:] else ""


def same_name(name: str) -> str:
    """A name in the form in which two spellings of one text are equal: a Mac composes letters differently (NFD)."""
    return unicodedata.normalize("NFC", name)
