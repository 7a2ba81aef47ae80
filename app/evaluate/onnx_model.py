"""Opens ONNX models of other people: reads from the graph what it wants to be fed, and feeds it that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.pixels import HALF_RANGE
from app.device import onnx_providers
from app.errors import AppError
from app.evaluate.external_tensors import ExternalTensorError, take_in
from app.evaluate.onnx_arithmetic import leading_affine
from app.file_kinds import describe_kind
from app.weights import ModelError

_NUMBER_TYPES: dict[str, type] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


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


def open_onnx(
    url: str, *, colours: str = "RGB"
) -> tuple[Callable[[NDArray[np.uint8]], NDArray[np.float32]], InputForm, dict[str, str]]:
    """What embeds ``uint8 [B, 3, S, S]`` with the model at ``url``, how it feeds it, and what its metadata say.

    Args:
        colours: order that it takes, where its metadata do not say.

    Raises:
        ModelError: the file is no ONNX model that can be run.
        OnnxInputError: its input is not a batch of pictures; onnx or onnxruntime is missing.
    """
    model, session = _open_session(url)
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise OnnxInputError(f"{url}: takes {[(i.name, i.shape) for i in inputs]}, not one batch of pictures")
    name = inputs[0].name
    number_type = _NUMBER_TYPES.get(inputs[0].type)
    if number_type is None:
        raise OnnxInputError(f"{url}: takes {inputs[0].type}, not pixels as numbers")
    try:
        form = input_form(
            model, name, inputs[0].shape, url, whole=np.issubdtype(number_type, np.integer), colours=colours
        )
    except (ValueError, TypeError, IndexError) as error:  # numbers that are none, nodes without outputs
        raise OnnxInputError(f"{url}: its input cannot be told from the graph: {error}") from error
    output = _embedding_output(session, name, form, number_type, url)

    def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        step = form.batch or len(images)
        found = []
        for start in range(0, len(images), step):
            # Normalised in float32 whatever the graph takes: half precision cannot tell all of the 256 values apart.
            part: NDArray[Any] = form.prepare(images[start : start + step]).astype(number_type)
            if short := (form.batch - len(part) if form.batch else 0):
                part = np.concatenate([part, np.repeat(part[-1:], short, axis=0)])
            try:
                out = np.asarray(session.run([output], {name: part})[0], dtype=np.float32).reshape(len(part), -1)
            except (Exception, MemoryError) as error:  # a graph may ask for anything when it runs
                raise ModelError(f"{url}: fails on {len(part)} pictures: {error}") from error
            found.append(out[: len(images) - start])
        return np.concatenate(found)

    return embed, form, {item.key: item.value for item in model.metadata_props}


def _open_session(url: str) -> tuple[Any, Any]:
    """The file as ``onnx.ModelProto``, and ready to run."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise OnnxInputError(f"{url}: needs the extra [export] for onnx and onnxruntime") from error
    data = storage.read_bytes(url)
    try:
        model = onnx.load_from_string(data)
        data = model.SerializeToString() if take_in(model, url) else data
        providers = onnx_providers(onnxruntime.get_available_providers())
        session = onnxruntime.InferenceSession(data, providers=providers)
    except ExternalTensorError as error:
        raise OnnxInputError(f"{url}: {error}") from None
    except storage.StorageError:
        raise
    except Exception as error:  # the libraries raise many kinds, most of them their own
        words = (str(error).splitlines() or [type(error).__name__])[0]
        if data[:4] == b"PK\x03\x04" or data[:1] == b"\x80":
            words = describe_kind(data) or "a file of torch.save: give it a name that ends with .pt"
        elif data[:1] != b"\x08":
            words = describe_kind(data) or words
        raise ModelError(f"{url}: not an ONNX model that can be run: {words}") from None
    return model, session


def _run(session: Any, inputs: dict[str, Any], where: str) -> list[Any]:
    try:
        found: list[Any] = session.run(None, inputs)
    except (Exception, MemoryError) as error:  # a graph may ask for anything when it runs
        raise ModelError(f"{where}: fails on a black picture: {error}") from error
    return found


def _embedding_output(session: Any, name: str, form: InputForm, number_type: type, where: str) -> str:
    """The output that is a row of several numbers a picture; others are norms, maps of features, their quality."""
    outputs = [output.name for output in session.get_outputs()]
    if len(outputs) == 1:
        return str(outputs[0])
    count = form.batch or 1
    blank: NDArray[Any] = form.prepare(np.zeros((count, 3, form.size, form.size), dtype=np.uint8)).astype(number_type)
    shapes = {
        output: np.shape(value) for output, value in zip(outputs, _run(session, {name: blank}, where), strict=True)
    }
    rows = [o for o, shape in shapes.items() if len(shape) > 1 and shape[0] == count and max(shape[1:]) > 1]
    rows = [o for o in rows if max(shapes[o][1:]) == np.prod(shapes[o][1:])]
    if len(rows) != 1:
        raise OnnxInputError(f"{where}: which of its outputs is the embedding? {shapes}: keep that one alone")
    return str(rows[0])


def input_form(
    model: Any, name: str, shape: list[Any], where: str, *, whole: bool = False, colours: str = "RGB"
) -> InputForm:
    """The form of a graph's input, from its metadata where it says, else from its first nodes.

    A graph that begins with its own normalisation, y = a * x + b by any row of Sub, Add, Mul, Div and Neg, or by a
    BatchNormalization around the middle of pixels, must not be fed normalised pixels: it wants 0..255, or 0..1 where
    its zero lies within. One that begins otherwise gets [-1, 1].

    Args:
        model: an ``onnx.ModelProto``.
        shape: of the input, [B, 3, S, S] or [B, S, S, 3]; names stand for sizes that are free.
        whole: the graph takes whole numbers, which only 0..255 are.
        colours: order of the input's, where the metadata do not say.

    Raises:
        OnnxInputError: neither axis 1 nor axis 3 is of size 3, or pictures are not square.
    """
    channels_last = shape[3] == 3 and shape[1] != 3
    if not channels_last and shape[1] not in (3, None) and not isinstance(shape[1], str):
        raise OnnxInputError(f"{where}: input of shape {shape} has no axis of three colours")
    side, other = (shape[1], shape[2]) if channels_last else (shape[3], shape[2])
    if isinstance(side, int) and isinstance(other, int) and side != other:
        raise OnnxInputError(f"{where}: takes pictures of {other} x {side} pixels; aligned faces here are square")
    layout: dict[str, Any] = {
        "channels_last": channels_last,
        "batch": shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0,
        "size": side if isinstance(side, int) and side > 0 else 112,
    }
    said = {item.key: item.value for item in model.metadata_props}
    if {"colour_order", "mean", "scale"} <= said.keys():
        return InputForm(float(said["mean"]), float(said["scale"]), said["colour_order"], **layout)
    layout["colours"] = colours
    if whole:
        return InputForm(0.0, 1.0, **layout)
    factor, offset = leading_affine(model.graph, name)
    if (factor == 1).all() and (offset == 0).all():
        return InputForm(**layout)
    zero = -offset / np.where(factor == 0, 1, factor)
    takes_bytes = bool(np.abs(factor).max() < 0.2 or np.abs(zero).max() > 2)
    return InputForm(0.0, 1.0 if takes_bytes else 255.0, **layout)
