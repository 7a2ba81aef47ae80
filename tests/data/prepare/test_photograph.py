"""Every kind of picture file that people have looks after reading as it does in a viewer."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from app.data.prepare.photograph import (
    ENDINGS,
    FORMATS,
    PhotographError,
    fit_square,
    is_ready,
    is_system_file,
    open_photograph,
)
from tests.data.prepare.pictures import encode, scene

WIDE = scene(1, 120, 80)
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
TURNS |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}  # how the camera stored the upright scene


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, dtype=int) - np.asarray(other.convert("RGB"), dtype=int)).mean())


def grey16(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


GREY = WIDE.convert("L")
PALETTE = WIDE.convert("P", palette=Image.Palette.ADAPTIVE)
KINDS = {
    "jpeg": (encode(WIDE, "JPEG", quality=95), WIDE),
    "progressive jpeg": (encode(WIDE, "JPEG", quality=95, progressive=True), WIDE),
    "grey jpeg": (encode(GREY, "JPEG", quality=95), GREY),
    "cmyk jpeg": (encode(WIDE.convert("CMYK"), "JPEG", quality=95), WIDE),
    "png": (encode(WIDE, "PNG"), WIDE),
    "palette png": (encode(PALETTE, "PNG"), PALETTE),
    "16-bit png": (encode(grey16(WIDE), "PNG"), GREY),
    "16-bit pgm": (encode(grey16(WIDE), "PPM"), GREY),
    "16-bit tiff": (encode(grey16(WIDE), "TIFF"), GREY),
    "float tiff": (encode(Image.fromarray(np.asarray(GREY, dtype=np.float32) / 255), "TIFF"), GREY),
    "cmyk tiff": (encode(WIDE.convert("CMYK"), "TIFF"), WIDE),
    "pgm": (encode(GREY, "PPM"), GREY),
    "ppm": (encode(WIDE, "PPM"), WIDE),
    "bmp": (encode(WIDE, "BMP"), WIDE),
    "gif": (encode(GREY, "GIF"), GREY),
    "webp": (encode(WIDE, "WEBP", quality=100), WIDE),
    "opaque rgba png": (encode(WIDE.convert("RGBA"), "PNG"), WIDE),
    "grey with alpha": (encode(WIDE.convert("LA"), "PNG"), GREY),
    "heic": (encode(WIDE, "HEIF", quality=95), WIDE),
    "animated webp": (encode(WIDE, "WEBP", save_all=True, append_images=[scene(2, 120, 80)], lossless=True), WIDE),
    "two pages of tiff": (encode(WIDE, "TIFF", save_all=True, append_images=[scene(2, 120, 80)]), WIDE),
    "one bit png": (encode(WIDE.convert("1"), "PNG"), WIDE.convert("1")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_read_as_a_viewer_shows_it(kind: str) -> None:
    data, expected = KINDS[kind]
    image = open_photograph(data)
    assert (image.mode, image.size) == ("RGB", WIDE.size)
    assert difference(image, expected) < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    stored = WIDE.transpose(Image.Transpose[TURNS[orientation]]) if orientation > 1 else WIDE
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_photograph(encode(stored, kind, exif=exif, **({"quality": 95} if kind in ("JPEG", "WEBP") else {})))
    assert image.size == WIDE.size
    assert difference(image, WIDE) < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_of_a_telephone_is_turned_once(orientation: int) -> None:
    stored = WIDE.transpose(Image.Transpose[TURNS[orientation]]) if orientation > 1 else WIDE
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = pillow_heif.from_pillow(stored)
    file.info["exif"] = exif.tobytes()  # written as the format's own turn (irot, imir), and told by EXIF again
    assert difference(open_photograph(heic(file)), WIDE) < 6
    # The format takes EXIF for information only: programs that turn the pixels often leave the old tag behind.
    told_only = encode(WIDE, "HEIF", quality=95, exif=exif)
    assert b"irot" not in told_only
    assert difference(open_photograph(told_only), WIDE) < 6


def test_the_main_picture_of_a_telephones_file_counts_in_any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    several = pillow_heif.from_pillow(scene(2, 120, 80))
    several.add_from_pillow(WIDE)
    several.add_from_pillow(scene(3, 64, 64))
    assert difference(open_photograph(heic(several, primary_index=1)), WIDE) < 6
    deep = (np.asarray(WIDE).astype(np.uint16) * 257).tobytes()
    for bits in (10, 12):
        monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
        data = heic(pillow_heif.from_bytes("RGB;16", WIDE.size, deep))
        assert pillow_heif.open_heif(data, convert_hdr_to_8bit=False).info["bit_depth"] == bits
        assert difference(open_photograph(data), WIDE) < 6


def heic(file: pillow_heif.HeifFile, **options: Any) -> bytes:
    buffer = io.BytesIO()
    file.save(buffer, quality=95, **options)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_unsound_exif_block_says_nothing_about_the_picture() -> None:
    data = encode(WIDE, "JPEG", quality=95)
    data = data[:2] + b"\xff\xe1\x00\x10Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff" + data[2:]
    assert difference(open_photograph(data), WIDE) < 4


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [scene(seed).convert("L") for seed in (3, 4, 5)]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert difference(open_photograph(data), frames[0]) < 4, kind


def test_what_is_transparent_shows_white_and_not_what_lies_behind() -> None:
    pixels = np.full((20, 20, 4), (200, 0, 0, 0), dtype=np.uint8)
    pixels[:, 10:, 3] = 255
    image = np.asarray(open_photograph(encode(Image.fromarray(pixels), "PNG")))
    assert image[5, 2].tolist() == [255, 255, 255]
    assert image[5, 15].tolist() == [200, 0, 0]
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] + [0, 0, 0] * 255)
    assert np.asarray(open_photograph(encode(palette, "GIF", transparency=0)))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "unreadable"),
        (b"hello", "unreadable: none of JPEG"),
        (b"\n<!DOCTYPE html><html><body>log in", "unreadable: a web page, as a download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (bytes(5000), "unreadable: 5000 bytes, all of them zero"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "a drawing"),
        (b"8BPS\x00\x01" + bytes(20), "a file of Photoshop"),
        (encode(WIDE, "ICO"), "an icon"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(20), "a video"),
        (encode(WIDE, "HEIF")[:60], "a HEIC picture, damaged or cut off"),
        (b"PK\x03\x04" + bytes(20), "a zip archive"),
        (encode(WIDE, "JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c"), "a JPEG of 12 bits a sample"),
        (encode(WIDE, "PNG")[:200], "unreadable"),
        (encode(WIDE, "JPEG")[:300], "unreadable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable: PostScript"),
        (b"P5 100000 100000 255\n" + b"\0" * 64, "unreadable|too large"),
    ],
)
def test_what_is_no_picture_says_so(data: bytes, message: str) -> None:
    with pytest.raises(PhotographError, match=message):
        open_photograph(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_without_its_last_two_bytes_is_whole_and_one_without_more_is_not(
    mode: str, options: dict[str, bool]
) -> None:
    data = encode(WIDE.convert(mode), "JPEG", quality=95, **options)
    for cut in (1, 2):
        assert difference(open_photograph(data[:-cut]), open_photograph(data)) == 0
    for cut in (6, 20, 100, len(data) // 2):
        with pytest.raises(PhotographError, match=r"unreadable: .*truncated"):
            open_photograph(data[:-cut])


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_huge_picture_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(PhotographError, match="too large: 12000 x 12000 pixels"):
        open_photograph(b"P5 12000 12000 255\n" + b"\0" * 64)


def test_formats_that_start_programs_are_not_read() -> None:
    assert not {"EPS", "PDF", "WMF", "FITS"} & set(FORMATS)
    assert {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".bmp", ".webp"} <= ENDINGS


@pytest.mark.parametrize("size", [(60, 120), (120, 60), (300, 299), (112, 112)])
def test_proportions_are_kept(size: tuple[int, int]) -> None:
    width, height = size
    y, x = np.mgrid[:height, :width]
    radius = min(size) * 0.4
    disc = (np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) < radius).astype(np.uint8) * 255
    image = Image.fromarray(disc).convert("RGB")
    for fit, round_again in (("pad", True), ("crop", True), ("stretch", width == height or abs(width - height) < 2)):
        result = np.asarray(fit_square(image, 112, fit).convert("L")) > 127  # type: ignore[arg-type]
        rows, columns = np.flatnonzero(result.any(axis=1)), np.flatnonzero(result.any(axis=0))
        assert (abs(np.ptp(rows) - np.ptp(columns)) <= 1) == round_again, fit


def test_a_ready_jpeg_is_one_that_training_decodes_to_the_same() -> None:
    square = scene(2)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    assert is_ready(encode(square, "JPEG"), 112)
    assert is_ready(encode(square.convert("L"), "JPEG"), 112)
    for data in (
        encode(square, "PNG"),
        encode(scene(2, 113, 112), "JPEG"),
        encode(square, "JPEG", exif=sideways),
        encode(square.convert("CMYK"), "JPEG"),
        encode(square, "JPEG")[:-300],
    ):
        assert not is_ready(data, 112)


def test_system_files() -> None:
    for name in ("a/._1.jpg", ".DS_Store", "__MACOSX/a/1.jpg", "a/Thumbs.db", ".hidden/a.jpg", "x/desktop.ini"):
        assert is_system_file(name), name
    for name in ("a/@eaDir/1.jpg/SYNOPHOTO_THUMB.jpg", "$RECYCLE.BIN/1.jpg", "a/ehthumbs.db", "#recycle/a/1.jpg"):
        assert is_system_file(name), name
    for name in ("a/1.jpg", "a/_1.jpg", "a.b/1.jpg"):
        assert not is_system_file(name), name
