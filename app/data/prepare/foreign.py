"""What lies in folders of photographs and is not read: said by its ending or by its first bytes. Nothing is parsed."""

from __future__ import annotations

_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw")
_OTHERS = (".ai", ".dds", ".eps", ".exr", ".hdr", ".ico", ".jxl", ".pdf", ".psb", ".psd", ".svg", ".tga", ".xcf")
HEIF_ENDINGS = (".heic", ".heics", ".heif", ".heifs", ".hif")  # of telephones and cameras; the extra reads them
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_INSTALL = "pip install 'arcface-torchx[heif]', and it is"
_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the picture itself: fetch it with git lfs pull"),
    (b"%PDF", "a PDF: save its picture as JPEG or PNG"),
    (b"%!PS", "PostScript: save it as JPEG or PNG"),
    (b"8BPS", "a file of Photoshop: save it as JPEG or PNG"),
    (b"\x00\x00\x01\x00", "an icon (ICO): save it as PNG"),
    (b"\xff\x0a", "a JPEG XL: save it as JPEG or PNG"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL: save it as JPEG or PNG"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"\x1a\x45\xdf\xa3", "a video"),
)


def describe_ending(kind: str) -> tuple[str, str]:
    """Why a file with this ending is left out, and what to do.

    Returns:
        The reason, which is counted, and the detail.
    """
    if kind in HEIF_ENDINGS:
        return "format not read", f"{kind} is not read: {_INSTALL}"
    if kind in _RAW:
        return "format not read", f"{kind} is a camera's raw file: export it as JPEG"
    if kind in _OTHERS:
        return "format not read", f"{kind} is not read: save it as JPEG or PNG"
    return "not a picture", f"{kind} is not read"


def describe_bytes(data: bytes, formats: tuple[str, ...]) -> str:
    """What a file is that no decoder knows.

    Args:
        data: the whole file.
        formats: those that are read.
    """
    start = data[:256].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, as a download that wants a log-in leaves it: download the picture anew"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in data[:4096].lower()):
        return "a drawing (SVG): save it as PNG"
    if not data.strip(b"\0"):
        return f"{len(data)} bytes, all of them zero, as an interrupted copy leaves it: copy it anew"
    for beginning, meaning in _BEGINNINGS:
        if data.startswith(beginning):
            return meaning
    if data[4:8] == b"ftyp":
        if data[8:12] not in _HEIF_BRANDS:
            return "damaged or cut off" if data[8:12] in (b"avif", b"avis") else "a video"
        return "a HEIC picture, damaged or cut off" if "HEIF" in formats else f"a HEIC picture, not read: {_INSTALL}"
    if data.startswith(b"\xff\xd8\xff") and (frame := _jpeg_frame(data)):
        return frame
    return f"none of {', '.join(formats)}, or damaged at its beginning"


def _jpeg_frame(data: bytes) -> str:
    """What a JPEG says of its samples that decoders of photographs do not take; empty where it says nothing such."""
    position = 2
    while position + 5 <= len(data) and data[position] == 0xFF:
        kind, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            bits = data[position + 4]
            lossless = " without loss" if kind in (0xC3, 0xC7, 0xCB, 0xCF) else ""
            odd = bits != 8 or lossless
            return f"a JPEG{lossless} of {bits} bits a sample, as scanners write it: save it with 8 bits" if odd else ""
        position += 2 + max(length, 2)
    return ""
