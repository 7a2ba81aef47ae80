"""Says what a file is by its first bytes, for whoever was given another one than expected. Nothing is parsed."""

from __future__ import annotations

import io
import struct
import zipfile

_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: fetch it with git lfs pull"),
    (b"\x89HDF", "an HDF5 file, of Keras or Caffe: convert it to a PyTorch state dict"),
    (struct.pack("<Q", 0x112), "parameters of MXNet: convert them to a PyTorch state dict or to ONNX"),
    (struct.pack("<I", 0xCED7230A), "a .rec file of records: a dataset, not a model"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x1f\x8b", "a gzip archive: unpack it and name the file inside"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it and name the file inside"),
)
_ZIP = b"PK\x03\x04"


def describe_kind(data: bytes) -> str:
    """What a file that was taken for weights is, and what to do; empty where its bytes do not tell.

    Args:
        data: the whole file; of an archive only the names inside are looked at.
    """
    if not data:
        return "an empty file"
    if data[:64].lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "a web page, as a download that wants a log-in leaves it: download the file anew"
    for beginning, meaning in _BEGINNINGS:
        if data.startswith(beginning):
            return meaning
    if data.startswith(_ZIP):
        return _describe_zip(data)
    if data[8:10] == b'{"' and struct.unpack("<Q", data[:8])[0] < len(data):
        return "a safetensors file: give it a name that ends with .safetensors"
    if _is_onnx(data):
        return "an ONNX model: give it a name that ends with .onnx to verify or embed with it; it cannot be trained"
    return ""


def _describe_zip(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()[:10_000]
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError):
        return ""
    if models := [name for name in names if name.endswith(".onnx")]:
        some = ", ".join(models[:6])
        return f"a zip archive of ONNX models ({some}): unpack it and name the one for recognition (w600k_r50.onnx)"
    if any("/code/" in name for name in names):
        return "a TorchScript model, which is a program: save the state dict of the model that it was made of"
    if any(name.endswith("/data.pkl") for name in names):
        return ""  # of torch.save
    return "a zip archive: unpack it and name the file inside"


def _is_onnx(data: bytes) -> bool:
    """A ModelProto begins with its version (field 1, a small number); then mostly comes its producer (field 2)."""
    return data[:1] == b"\x08" and data[1:2] <= b"\x20" and data[2:3] in (b"\x12", b"\x3a", b"\x42", b"\x1a", b"\x22")
