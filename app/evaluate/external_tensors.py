"""Tensors of an ONNX model that lie in another file beside it, as torch.onnx writes them: ``model.onnx.data``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from app import storage
from app.errors import AppError


class ExternalTensorError(AppError):
    """A tensor lies where it is not read from, or its file does not hold it."""


def take_in(model: Any, url: str) -> bool:
    """Bring such tensors into ``model``, an ``onnx.ModelProto``, in place; whether there were any.

    A model may name any place. Files are read from its own folder alone, and of each no more than it holds, however
    many tensors claim a share of it.

    Raises:
        ExternalTensorError: another folder is named, or a share that the file does not have.
        StorageError: the file is not there.
    """
    found = list(_external(model))
    files: dict[str, bytes] = {}
    claimed = 0
    for tensor in found:
        said = {str(entry.key): str(entry.value) for entry in tensor.external_data}  # bytes where it is not UTF-8
        place = said.get("location", "")
        if place not in files:
            files[place] = storage.read_bytes(_beside(url, place))
        offset, length = _share(tensor, said, place, len(files[place]))
        claimed += length
        if claimed > sum(map(len, files.values())):
            raise ExternalTensorError(f"its tensors claim more than {place!r} holds")
        tensor.raw_data = files[place][offset : offset + length]
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return bool(found)


def _external(model: Any) -> Iterator[Any]:
    """Every such tensor, also those in attributes of nodes and in their graphs."""
    waiting = [model]
    while waiting:
        message = waiting.pop()
        if message.DESCRIPTOR.name == "TensorProto" and (message.external_data or message.data_location):
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if hasattr(value, "ListFields") else value)


def _beside(url: str, place: str) -> str:
    """URL of a file in the model's folder."""
    folder, _, _ = url.rpartition("/")
    name = place.removeprefix("./")
    if not name.strip(".") or not name.isprintable() or any(mark in name for mark in "/\\:?*"):
        raise ExternalTensorError(f"a tensor lies in {place!r}: such a file is read from the model's own folder alone")
    if "?" in url:
        raise ExternalTensorError(
            f"a tensor lies in another file, {place!r}, which a URL with a query does not lead to: save the model as "
            "one file, as onnx.save does by default"
        )
    return storage.join(folder, name) if folder else name


def _share(tensor: Any, said: dict[str, str], place: str, size: int) -> tuple[int, int]:
    """Offset and bytes of a tensor's numbers in its file, which has ``size`` bytes."""
    from onnx import helper

    try:
        needed = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        offset, length = int(said.get("offset", 0)), int(said.get("length", needed))
    except (ValueError, KeyError, TypeError) as error:
        raise ExternalTensorError(f"tensor {tensor.name[:80]!r} in {place!r}: {error}") from error
    if length != needed or min(tensor.dims, default=0) < 0 or not 0 <= offset <= size - length:
        raise ExternalTensorError(
            f"tensor {tensor.name[:80]!r} is bytes {offset} to {offset + length} of {place!r}, which has {size}; its "
            f"shape needs {needed}: is it the file that was written with the model?"
        )
    return offset, length
