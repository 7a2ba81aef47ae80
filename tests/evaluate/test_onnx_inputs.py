"""ONNX models as other programs write them: how their graphs begin, what they take, which output is the embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from app.device import detect_device
from app.errors import AppError
from app.evaluate.model_source import open_model

SIZE = 8
RAW = np.random.default_rng(0).integers(0, 256, (3, 3, SIZE, SIZE), dtype=np.uint8)
WEIGHT = np.random.default_rng(1).normal(size=(3 * SIZE * SIZE, 4)).astype(np.float32)
CONSTANTS: dict[str, Any] = {
    "half": np.float32(127.5),
    "minus_half": np.float32(-127.5),
    "halves": np.full((1, 3, 1, 1), 127.5, np.float32),
    "picture": np.full((1, 3, SIZE, SIZE), 127.5, np.float32),
    "one": np.ones(3, np.float32),
    "none": np.zeros(3, np.float32),
    "mean": np.full(3, 127.5, np.float32),
    "variance": np.full(3, 127.5**2, np.float32),
    "unit_mean": np.full(3, 0.5, np.float32),
    "unit_variance": np.full(3, 0.25, np.float32),
    "shape": np.array([0, 3, SIZE, SIZE]),
    "swap": np.array([2, 1, 0]),
}


def node(kind: str, *inputs: str, to: str = "x", **attributes: Any) -> NodeProto:
    return helper.make_node(kind, list(inputs), [to], **attributes)


def norm(source: str, mean: str, variance: str) -> NodeProto:
    return node("BatchNormalization", source, "one", "none", mean, variance, epsilon=1e-9)


def write(
    path: Path, nodes: list[NodeProto], *, kind: int = TensorProto.FLOAT, outputs: tuple[str, ...] = ("out",)
) -> str:
    """``x`` of the nodes, flattened, times ``WEIGHT``."""
    shape: list[str | int | None] = ["batch", 3, SIZE, SIZE]
    last = [node("Flatten", "x", to="flat"), node("MatMul", "flat", "w", to="out")]
    last += [node("ReduceL2", "out", to="length", axes=[1])]
    graph = helper.make_graph(
        [*nodes, *last],
        "g",
        [helper.make_tensor_value_info("data", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in {**CONSTANTS, "w": WEIGHT}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return str(path)


def expected(images: np.ndarray[Any, Any] = RAW) -> np.ndarray[Any, Any]:
    """The linear map of pixels in [-1, 1]."""
    found: np.ndarray[Any, Any] = ((images.astype(np.float64) - 127.5) / 127.5).reshape(len(images), -1) @ WEIGHT
    return found


BEGINNINGS = {
    "batch norm of 0..255": [norm("data", "mean", "variance")],
    "batch norm of 0..1": [norm("data", "unit_mean", "unit_variance")],
    "constants behind Identity": [
        node("Identity", "half", to="a"),
        node("Sub", "data", "a", to="y"),
        node("Div", "y", "a"),
    ],
    "constants as attributes": [
        node("Constant", to="a", value_float=127.5),
        node("Sub", "data", "a", to="y"),
        node("Div", "y", "a"),
    ],
    "a reshape first": [
        node("Reshape", "data", "shape", to="z"),
        node("Sub", "z", "halves", to="y"),
        node("Div", "y", "half"),
    ],
    "somebody asks for the shape": [
        node("Shape", "data", to="s"),
        node("Sub", "data", "half", to="y"),
        node("Div", "y", "half", to="z"),
        node("Reshape", "z", "s"),
    ],
    "a mean picture": [node("Sub", "data", "picture", to="y"), node("Div", "y", "half")],
    "a negative": [node("Neg", "data", to="n"), node("Add", "n", "half", to="y"), node("Div", "y", "minus_half")],
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_pixels_are_normalised_once_however_the_graph_says_it(tmp_path: Path, name: str) -> None:
    found = open_model(write(tmp_path / "m.onnx", BEGINNINGS[name]), detect_device()).embed(RAW)
    np.testing.assert_allclose(found, expected(), rtol=1e-4, atol=1e-3)


def test_a_swap_of_colours_does_not_hide_what_follows(tmp_path: Path) -> None:
    nodes = [node("Gather", "data", "swap", to="z", axis=1), node("Sub", "z", "half", to="y"), node("Div", "y", "half")]
    found = open_model(write(tmp_path / "m.onnx", nodes), detect_device()).embed(RAW)
    np.testing.assert_allclose(found, expected(RAW[:, ::-1]), rtol=1e-4, atol=1e-3)


def test_a_learned_batch_norm_is_no_normalisation(tmp_path: Path) -> None:
    """Mean and variance 0 and 1: it begins a network that sees [-1, 1]."""
    found = open_model(write(tmp_path / "m.onnx", [norm("data", "none", "one")]), detect_device()).embed(RAW)
    np.testing.assert_allclose(found, expected(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64, TensorProto.DOUBLE])
def test_graphs_that_take_other_numbers(tmp_path: Path, kind: int) -> None:
    nodes = [
        helper.make_node("Cast", ["data"], ["z"], to=TensorProto.FLOAT),
        node("Sub", "z", "half", to="y"),
        node("Div", "y", "half"),
    ]
    found = open_model(write(tmp_path / "m.onnx", nodes, kind=kind), detect_device()).embed(RAW)
    np.testing.assert_allclose(found, expected(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("outputs", [("out", "length"), ("length", "out"), ("x", "out", "length")])
def test_the_embedding_among_several_outputs(tmp_path: Path, outputs: tuple[str, ...]) -> None:
    model = open_model(write(tmp_path / "m.onnx", BEGINNINGS["a mean picture"], outputs=outputs), detect_device())
    np.testing.assert_allclose(model.embed(RAW), expected(), rtol=1e-4, atol=1e-3)


def test_two_rows_a_picture_are_asked_about(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", BEGINNINGS["a mean picture"], outputs=("out", "flat"))
    with pytest.raises(AppError, match=r"which of its outputs is the embedding\? .*flat"):
        open_model(path, detect_device())


def test_text_is_no_picture(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["data"], ["x"], to=1)]
    with pytest.raises(AppError, match=r"takes tensor\(bool\), not pixels"):
        open_model(write(tmp_path / "m.onnx", nodes, kind=TensorProto.BOOL), detect_device())
