"""MXNet's RecordIO, byte for byte: the container of ``.rec`` files and the image header inside its records.

A record is one or more parts. A part is ``magic:uint32 | cflag:3 bits, length:29 bits | data | padding to 4 bytes``,
all little-endian. Data that contains the magic at a multiple of four bytes is cut there, the magic itself left out, so
that a reader can find the next record after damage: cflag 0 is a whole record, 1 its first part, 2 a middle one, 3 its
last. An image record starts with an ``IRHeader``; see ``ImageHeader``.

Source: dmlc-core's ``recordio.h`` and MXNet's ``recordio.py``; tests compare both directions with mxnet itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.errors import AppError

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
PART = struct.Struct("<II")
_IMAGE_HEADER = struct.Struct("<IfQQ")
_PLAIN_IMAGE = struct.Struct("<IIIfQQ")  # a part and an image header
MAX_PART_BYTES = (1 << 29) - 1
MAX_LABELS = 1 << 16  # of one record; a face has one, a detection set a few hundred
MAX_CLASSES = 1 << 27  # ten times as many as anybody trains; more is a mistake in a file
EXACT = 1 << 24  # labels are float32: whole numbers beyond this are rounded


class RecordError(AppError):
    """Bytes that are not a record, or a record that is not an image; the message gives URL, key and byte range."""


@dataclass(frozen=True)
class ImageHeader:
    """MXNet's ``IRHeader`` (``<IfQQ``): what stands before the JPEG bytes.

    ``labels`` holds one float32, or several when the stored flag is positive: then ``flag`` float32 values follow the
    header and its own label field is ignored.
    """

    labels: tuple[float, ...]
    id: int = 0
    id2: int = 0
    is_array: bool = False  # stored with flag > 0, even when there is one label


def pack_record(data: bytes) -> bytes:
    """Encode one record.

    Raises:
        RecordError: a part would be longer than 29 bits can say (512 MiB).
    """
    parts: list[bytes] = []
    start = 0
    while (cut := _find_magic(data, start)) >= 0:
        parts.append(data[start:cut])
        start = cut + 4
    parts.append(data[start:])
    encoded = bytearray()
    for number, part in enumerate(parts):
        if len(part) > MAX_PART_BYTES:
            raise RecordError(f"a record of {len(data)} bytes is too long: a part holds at most {MAX_PART_BYTES} bytes")
        first, last = number == 0, number == len(parts) - 1
        cflag = (0 if last else 1) if first else (3 if last else 2)
        encoded += PART.pack(MAGIC, cflag << 29 | len(part)) + part
    encoded += b"\0" * (-len(encoded) % 4)  # every part but the last has a length that is a multiple of four
    return bytes(encoded)


def _find_magic(data: bytes, start: int) -> int:
    """Position of the next magic at a multiple of four bytes of the data, or -1."""
    position = data.find(_MAGIC_BYTES, start)
    while position >= 0 and position % 4:
        position = data.find(_MAGIC_BYTES, position + 1)
    return position


def unpack_record(buffer: bytes | memoryview, offset: int = 0) -> tuple[bytes, int]:
    """Decode the record at ``offset``; returns its data and the offset just behind it.

    Raises:
        RecordError: no record starts there, its parts are out of order, or the buffer ends inside it.
    """
    parts: list[bytes] = []
    position = offset
    while True:
        if position + PART.size > len(buffer):
            raise RecordError(f"the record at byte {offset} is cut off: the data ends at byte {len(buffer)}")
        magic, word = PART.unpack_from(buffer, position)
        cflag, length = word >> 29, word & MAX_PART_BYTES
        if magic != MAGIC:
            raise RecordError(f"no record starts at byte {position}: found {magic:#010x} instead of {MAGIC:#010x}")
        if cflag not in ((2, 3) if parts else (0, 1)):
            raise RecordError(f"the record at byte {offset} has a part of kind {cflag} out of order at byte {position}")
        start, stop = position + PART.size, position + PART.size + length
        if stop > len(buffer):
            raise RecordError(f"the record at byte {offset} is cut off: it needs byte {stop} of {len(buffer)}")
        parts.append(bytes(buffer[start:stop]))
        position = stop + -length % 4
        if cflag in (0, 3):
            return _MAGIC_BYTES.join(parts), position


def pack_image(header: ImageHeader, image: bytes) -> bytes:
    """Join header and image bytes to the data of a record."""
    if header.is_array or len(header.labels) != 1:
        labels = np.asarray(header.labels, dtype="<f4").tobytes()
        return _IMAGE_HEADER.pack(len(header.labels), 0.0, header.id, header.id2) + labels + image
    return _IMAGE_HEADER.pack(0, header.labels[0], header.id, header.id2) + image


def unpack_image(data: bytes) -> tuple[ImageHeader, bytes]:
    """Split the data of a record into header and image bytes.

    Raises:
        RecordError: the data is shorter than its header says.
    """
    if len(data) < _IMAGE_HEADER.size:
        raise RecordError(f"{len(data)} bytes are too few for an image header of {_IMAGE_HEADER.size}")
    flag, label, identifier, identifier2 = _IMAGE_HEADER.unpack_from(data)
    if flag == 0:
        return ImageHeader((label,), identifier, identifier2), data[_IMAGE_HEADER.size :]
    end = _IMAGE_HEADER.size + 4 * flag
    if len(data) < end:
        raise RecordError(f"the image header announces {flag} labels, but the record ends after {len(data)} bytes")
    if flag > MAX_LABELS:
        raise RecordError(f"the image header announces {flag} labels; more than {MAX_LABELS} are not read")
    labels: NDArray[np.float32] = np.frombuffer(data, dtype="<f4", count=flag, offset=_IMAGE_HEADER.size)
    return ImageHeader(tuple(labels.tolist()), identifier, identifier2, is_array=True), data[end:]


def unpack_plain_image(record: bytes) -> tuple[float, bytes] | None:
    """Label and image bytes of a record in one part with one label, as nearly all are; None: it is no such record.

    Nor is one with other bytes behind it.
    """
    if len(record) < _PLAIN_IMAGE.size:
        return None
    magic, length, flag, label, _, _ = _PLAIN_IMAGE.unpack_from(record)
    if magic != MAGIC or flag or length < _IMAGE_HEADER.size or PART.size + length + -length % 4 != len(record):
        return None
    return label, record[_PLAIN_IMAGE.size : PART.size + length]


def class_of(header: ImageHeader) -> int:
    """The class of an image: its first label. It may be out of the classes' range, -1 for example.

    Raises:
        RecordError: the label is not a whole number that float32 can hold exactly.
    """
    label = header.labels[0]
    if not abs(label) <= EXACT or label != int(label):
        raise RecordError(f"its label {label!r} is not a class: a whole number is needed, at most {EXACT}")
    return int(label)
