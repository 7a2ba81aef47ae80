"""Opens ONNX models of other people: reads from the graph what it wants to be fed, and feeds it that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.pixels import HALF_RANGE
from app.device import onnx_providers
from app.errors import AppError
from app.file_kinds import describe_kind
from app.weights import ModelError


class OnnxInputError(AppError):
    """The graph takes something else than one batch of RGB or BGR pictures, or onnxruntime is not installed."""


@dataclass(frozen=True)
class InputForm:
    """How pixels 0..255 become the model's input: ``(pixels - mean) / scale``, in this order of colours and axes.

    ``batch`` is the fixed number of pictures at a time, 0 where any number goes.
    """

    mean: float = HALF_RANGE
    scale: float = HALF_RANGE
    colours: str = "RGB"
    channels_last: bool = False
    batch: int = 0
    size: int = 112

    def prepare(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``uint8 [B, 3, S, S]``, RGB -> the model's input, float32."""
        if self.colours == "BGR":
            images = images[:, ::-1]
        if self.channels_last:
            images = images.transpose(0, 2, 3, 1)
        return (images.astype(np.float32) - np.float32(self.mean)) / np.float32(self.scale)


def open_onnx(url: str) -> tuple[Callable[[NDArray[np.uint8]], NDArray[np.float32]], InputForm]:
    """What embeds ``uint8 [B, 3, S, S]`` with the model at ``url``, and how it feeds it.

    Raises:
        ModelError: the file is no ONNX model that can be run.
        OnnxInputError: its input is not a batch of pictures; onnx or onnxruntime is missing.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise OnnxInputError(f"{url}: needs the extra [export] for onnx and onnxruntime") from error
    data = storage.read_bytes(url)
    try:
        model = onnx.load_from_string(data)
        _refuse_other_files(model)
        providers = onnx_providers(onnxruntime.get_available_providers())
        session = onnxruntime.InferenceSession(data, providers=providers)
    except OnnxInputError as error:
        raise OnnxInputError(f"{url}: {error}") from None
    except Exception as error:  # the libraries raise many kinds, most of them their own
        words = (str(error).splitlines() or [type(error).__name__])[0]
        if data[:4] == b"PK\x03\x04" or data[:1] == b"\x80":
            words = describe_kind(data) or "a file of torch.save: give it a name that ends with .pt"
        elif data[:1] != b"\x08":
            words = describe_kind(data) or words
        raise ModelError(f"{url}: not an ONNX model that can be run: {words}") from None
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise OnnxInputError(f"{url}: takes {[(i.name, i.shape) for i in inputs]}, not one batch of pictures")
    name = inputs[0].name
    try:
        form = input_form(model, name, inputs[0].shape, url)
    except (ValueError, TypeError, IndexError) as error:  # numbers that are none, nodes without outputs
        raise OnnxInputError(f"{url}: its input cannot be told from the graph: {error}") from error
    # Normalised in float32 whatever the graph takes: half precision cannot tell all of the 256 values apart.
    number_type = np.float16 if inputs[0].type == "tensor(float16)" else np.float32

    def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        step = form.batch or len(images)
        found = []
        for start in range(0, len(images), step):
            part = form.prepare(images[start : start + step]).astype(number_type)
            if short := (form.batch - len(part) if form.batch else 0):
                part = np.concatenate([part, np.repeat(part[-1:], short, axis=0)])
            try:
                out = np.asarray(session.run(None, {name: part})[0], dtype=np.float32).reshape(len(part), -1)
            except (Exception, MemoryError) as error:  # a graph may ask for anything when it runs
                raise ModelError(f"{url}: fails on {len(part)} pictures: {error}") from error
            found.append(out[: len(images) - start])
        return np.concatenate(found)

    return embed, form


def _refuse_other_files(model: Any) -> None:
    """Tensors may say that they lie in another file, at any path; a model of faces is one file."""
    waiting = [model]
    while waiting:
        message = waiting.pop()
        if message.DESCRIPTOR.name == "TensorProto" and (message.external_data or message.data_location):
            place = next((entry.value for entry in message.external_data if entry.key == "location"), "")
            raise OnnxInputError(
                f"a tensor lies in another file, {place!r}: save the model as one file, as onnx.save does by default"
            )
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if hasattr(value, "ListFields") else value)


def input_form(model: Any, name: str, shape: list[Any], where: str) -> InputForm:
    """The form of a graph's input, from its metadata where it says, else from its first nodes.

    A graph that begins with its own normalisation, y = a * x + b by any row of Sub, Add, Mul and Div, must not be fed
    normalised pixels: it wants 0..255, or 0..1 where its zero lies within. One that begins otherwise gets [-1, 1].

    Args:
        model: an ``onnx.ModelProto``.
        shape: of the input, [B, 3, S, S] or [B, S, S, 3]; names stand for sizes that are free.

    Raises:
        OnnxInputError: neither axis 1 nor axis 3 is of size 3.
    """
    channels_last = shape[3] == 3 and shape[1] != 3
    if not channels_last and shape[1] not in (3, None) and not isinstance(shape[1], str):
        raise OnnxInputError(f"{where}: input of shape {shape} has no axis of three colours")
    side = shape[1] if channels_last else shape[3]
    layout = {
        "channels_last": channels_last,
        "batch": shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0,
        "size": side if isinstance(side, int) and side > 0 else 112,
    }
    said = {item.key: item.value for item in model.metadata_props}
    if {"colour_order", "mean", "scale"} <= said.keys():
        return InputForm(float(said["mean"]), float(said["scale"]), said["colour_order"], **layout)
    factor, offset = _leading_affine(model.graph, name)
    if (factor == 1).all() and (offset == 0).all():
        return InputForm(**layout)
    zero = -offset / np.where(factor == 0, 1, factor)
    takes_bytes = bool(np.abs(factor).max() < 0.2 or np.abs(zero).max() > 2)
    return InputForm(0.0, 1.0 if takes_bytes else 255.0, **layout)


def _leading_affine(graph: Any, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factor and offset, of one or three colours, of the arithmetic that a graph begins with; 1 and 0 without any."""
    from onnx import numpy_helper

    # Means and scales have one number or three; others are not copied.
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer if math.prod(item.dims) <= 3}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    factor, offset = np.ones(1), np.zeros(1)
    while True:
        users = [node for node in graph.node if name in node.input]
        if len(users) != 1:
            return factor, offset
        node = users[0]
        if node.op_type in ("Identity", "Cast", "Transpose"):
            name = node.output[0]
            continue
        other = next((item for item in node.input if item != name), "")
        value = constants.get(other)
        if node.op_type not in ("Sub", "Add", "Mul", "Div") or value is None or value.size not in (1, 3):
            return factor, offset
        number, first = value.astype(np.float64).ravel(), node.input[0] == name
        if node.op_type == "Add":
            offset = offset + number
        elif node.op_type == "Sub":
            factor, offset = (factor, offset - number) if first else (-factor, number - offset)
        elif node.op_type == "Mul":
            factor, offset = factor * number, offset * number
        elif first:
            factor, offset = factor / number, offset / number
        else:
            return factor, offset
        name = node.output[0]
