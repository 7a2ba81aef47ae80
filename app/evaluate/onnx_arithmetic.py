"""What an ONNX graph does to its input before anything else: y = factor * x + offset."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Affine = tuple[NDArray[np.float64], NDArray[np.float64]]

# They move values about and change none; of Gather, the swap of colours.
_MOVES = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Gather", "Slice", "Dropout")
# They ask for sizes and see no values.
_ASKS = ("Shape", "Size")


def leading_affine(graph: Any, name: str) -> Affine:
    """Factor and offset, of one or three colours, of the arithmetic that a graph begins with; 1 and 0 without any.

    Args:
        graph: an ``onnx.GraphProto``.
        name: of its input.
    """
    constants = _Constants(graph)
    factor, offset = np.ones(1), np.zeros(1)
    while True:
        users = [node for node in graph.node if name in node.input and node.op_type not in _ASKS]
        if len(users) != 1:
            return factor, offset
        node = users[0]
        if node.op_type in _MOVES and node.input[0] == name:
            name = node.output[0]
            continue
        step = _normalisation(node, constants, factor, offset) if node.op_type == "BatchNormalization" else None
        step = step or _step(node, name, constants)
        if step is None:
            return factor, offset
        factor, offset = factor * step[0], offset * step[0] + step[1]
        name = node.output[0]


class _Constants:
    """Arrays by name: initializers, Constant nodes, and what is made of them without a change of values."""

    def __init__(self, graph: Any) -> None:
        self.tensors = {item.name: item for item in graph.initializer}
        self.numbers: dict[str, NDArray[Any]] = {}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute:
                value = node.attribute[0]
                if value.name == "value":
                    self.tensors[node.output[0]] = value.t
                elif value.name in ("value_float", "value_floats"):
                    self.numbers[node.output[0]] = np.array(value.f if value.name == "value_float" else value.floats)
            elif node.op_type in _MOVES and len(node.input) == 1 and node.input[0] in self.tensors:
                self.tensors[node.output[0]] = self.tensors[node.input[0]]

    def get(self, name: str) -> NDArray[Any] | None:
        """The array of that name, made when it is asked for: weights of other layers are not copied."""
        from onnx import numpy_helper

        if name in self.tensors:
            return np.asarray(numpy_helper.to_array(self.tensors[name]))
        return self.numbers.get(name)


def _step(node: Any, name: str, constants: _Constants) -> Affine | None:
    """Of one node of arithmetic with a constant; None where it is another."""
    if node.op_type == "Neg":
        return -np.ones(1), np.zeros(1)
    value = constants.get(next((item for item in node.input if item != name), ""))
    if node.op_type not in ("Sub", "Add", "Mul", "Div") or value is None or not value.size:
        return None
    number, first, one = value.astype(np.float64).ravel(), node.input[0] == name, np.ones(1)
    if len(number) not in (1, 3):
        # A mean picture says as much as its mean; what follows asks for ranges alone.
        number = number.mean(keepdims=True)
    match node.op_type:
        case "Add":
            return one, number
        case "Sub":
            return (one, -number) if first else (-one, number)
        case "Mul":
            return number, 0 * number
    return (one / number, 0 * number) if first and (number != 0).all() else None


def _normalisation(
    node: Any, constants: _Constants, factor: NDArray[np.float64], offset: NDArray[np.float64]
) -> Affine | None:
    """Of a BatchNormalization whose mean is that of pixels 0..255 or 0..1; None where it may be one of [-1, 1].

    Faces in [-1, 1] have a mean about 0 and below it in green and blue, so 0.3 to 0.7 in all colours is of 0..1.
    """
    values = [constants.get(item) for item in node.input[1:5]]
    if any(value is None or value.size not in (1, 3) for value in values):
        return None
    scale, shift, mean, variance = (np.asarray(value, dtype=np.float64) for value in values)
    zero = (mean - offset) / factor
    if not ((np.abs(zero) > 2).all() or ((zero > 0.3) & (zero < 0.7)).all()):
        return None
    epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
    slope = scale / np.sqrt(variance + epsilon)
    # The learned scale and shift say nothing of the input's range, so the zero is the mean's.
    return slope, shift * 0 - slope * mean
