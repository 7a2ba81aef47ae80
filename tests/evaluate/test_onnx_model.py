"""ONNX models of others: normalisation inside or outside, fixed batches, layouts; and what is no such model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from app import storage
from app.backbones.registry import build_backbone
from app.device import detect_device, onnx_providers
from app.errors import AppError
from app.evaluate.model_source import Foreign, open_model
from app.evaluate.onnx_model import input_form

SIZE = 8
RAW = np.random.default_rng(0).integers(0, 256, (3, 3, SIZE, SIZE), dtype=np.uint8)
WEIGHT = np.random.default_rng(1).normal(size=(3 * SIZE * SIZE, 4)).astype(np.float32)


def write(
    path: Path, before: list[tuple[str, Any]], *, batch: int | str = "batch", shape: list[Any] | None = None
) -> str:
    """A linear model behind some arithmetic on its input."""
    nodes, constants, name = [], [], "data"
    for number, (kind, value) in enumerate(before):
        array = np.asarray(value, dtype=np.float32)
        constants.append(numpy_helper.from_array(array, f"c{number}"))
        nodes.append(helper.make_node(kind, [name, f"c{number}"], [f"x{number}"]))
        name = f"x{number}"
    constants.append(numpy_helper.from_array(WEIGHT, "w"))
    nodes += [helper.make_node("Flatten", [name], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["out"])]
    shape = shape or [batch, 3, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [shape[0], 4])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return str(path)


def expected(images: np.ndarray[Any, Any] = RAW) -> np.ndarray[Any, Any]:
    """What every model below should give: the linear map of pixels in [-1, 1]."""
    result: np.ndarray[Any, Any] = ((images.astype(np.float64) - 127.5) / 127.5).reshape(len(images), -1) @ WEIGHT
    return result


@pytest.mark.parametrize(
    "before",
    [
        [],  # outside: the trainer's own export
        [("Sub", 127.5), ("Mul", 1 / 127.5)],  # MXNet's exports
        [("Sub", [[[127.5]], [[127.5]], [[127.5]]]), ("Div", 127.5)],
        [("Mul", 1 / 127.5), ("Sub", 1.0)],
        [("Mul", 1 / 255), ("Sub", 0.5), ("Div", 0.5)],
        [("Sub", 0.5), ("Mul", 2.0)],  # wants 0..1
        [("Mul", 2.0), ("Add", -1.0)],
    ],
)
def test_pixels_are_normalised_once(tmp_path: Path, before: list[tuple[str, Any]]) -> None:
    model = open_model(write(tmp_path / "m.onnx", before), detect_device())
    assert model.image_size == SIZE
    np.testing.assert_allclose(model.embed(RAW), expected(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_fixed_batch_is_filled_up(tmp_path: Path, batch: int) -> None:
    model = open_model(write(tmp_path / "m.onnx", [], batch=batch), detect_device())
    np.testing.assert_allclose(model.embed(RAW), expected(), rtol=1e-4, atol=1e-3)


def test_metadata_says_more_than_the_graph(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = onnx.load(write(path, []))
    helper.set_model_props(model, {"colour_order": "BGR", "mean": "127.5", "scale": "127.5"})
    path.write_bytes(model.SerializeToString())
    found = open_model(str(path), detect_device()).embed(RAW)
    np.testing.assert_allclose(found, expected(RAW[:, ::-1]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("before", [[], [("Sub", 127.5), ("Mul", 1 / 127.5)], [("Sub", 0.5), ("Mul", 2.0)]])
def test_the_order_of_colours_can_be_said_where_the_file_says_none(
    tmp_path: Path, before: list[tuple[str, Any]]
) -> None:
    path = write(tmp_path / "m.onnx", before)
    found = open_model(path, detect_device(), foreign=Foreign("BGR")).embed(RAW)
    np.testing.assert_allclose(found, expected(RAW[:, ::-1]), rtol=1e-4, atol=1e-3)
    model = onnx.load(path)
    helper.set_model_props(model, {"colour_order": "RGB", "mean": "0", "scale": "1"})
    Path(path).write_bytes(model.SerializeToString())
    known, said = (open_model(path, detect_device(), foreign=Foreign(order)).embed(RAW) for order in ("BGR", "RGB"))
    np.testing.assert_array_equal(known, said)  # the file knows it


def test_channels_last_is_seen(tmp_path: Path) -> None:
    model = open_model(write(tmp_path / "m.onnx", [], shape=["batch", SIZE, SIZE, 3]), detect_device())
    np.testing.assert_allclose(model.embed(RAW), expected(RAW.transpose(0, 2, 3, 1)), rtol=1e-4, atol=1e-3)


def test_arithmetic_that_meets_another_branch_is_not_normalisation() -> None:
    """Two users of the input: nothing may be concluded from either."""
    nodes = [
        helper.make_node("Mul", ["data", "c"], ["a"]),
        helper.make_node("Add", ["a", "data"], ["out"]),
    ]
    value = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 4, 4])
    graph = helper.make_graph(nodes, "g", [value], [], [numpy_helper.from_array(np.array(3, dtype=np.float32), "c")])
    form = input_form(helper.make_model(graph), "data", [1, 3, 4, 4], "x")
    assert (form.mean, form.scale) == (127.5, 127.5)


def test_what_is_no_model_of_faces_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(AppError, match="not an ONNX model that can be run"):
        open_model(str(tmp_path / "bad.onnx"), detect_device())
    with pytest.raises(AppError, match="no axis of three colours"):
        open_model(write(tmp_path / "m.onnx", [], shape=[1, 12, SIZE, 2]), detect_device())


def test_providers_follow_what_is_there_and_the_chosen_device(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ["CPUExecutionProvider", "CANNExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.delenv("ARCFACE_DEVICE", raising=False)
    assert onnx_providers(there) == ["CUDAExecutionProvider", "CANNExecutionProvider", "CPUExecutionProvider"]
    assert onnx_providers(there[:2]) == ["CANNExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setenv("ARCFACE_DEVICE", "cpu")
    assert onnx_providers(there) == ["CPUExecutionProvider"]


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "..", "a/b.bin", "", "s3:x", "w\x1b[2J.bin"])
def test_tensors_in_other_files_are_refused_wherever_they_stand(tmp_path: Path, location: str) -> None:
    path = tmp_path / "model.onnx"
    write(path, [("Sub", 127.5)])
    for inside in (False, True):
        model = onnx.load(str(path))
        if inside:  # in the attribute of a node
            model.graph.node.append(helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(WEIGHT)))
            tensor = model.graph.node[-1].attribute[0].t
        else:
            tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        other = tmp_path / f"{inside}.onnx"
        other.write_bytes(model.SerializeToString())
        with pytest.raises(AppError, match="read from the model's own folder alone") as caught:
            open_model(str(other), detect_device())
        assert str(caught.value).isprintable()


def export_apart(folder: Path) -> torch.nn.Module:
    """A backbone as today's ``torch.onnx.export`` writes it: the weights in ``model.onnx.data``."""
    torch.manual_seed(0)
    model = build_backbone("r10_small", embedding_size=16, image_size=32).eval()
    folder.mkdir(exist_ok=True)
    torch.onnx.export(model, (torch.zeros(1, 3, 32, 32),), folder / "model.onnx", external_data=True, verbose=False)
    assert (folder / "model.onnx.data").stat().st_size > 100_000
    return model


def test_weights_beside_the_model_are_read_as_torch_writes_them(tmp_path: Path, bucket_url: str) -> None:
    model = export_apart(tmp_path / "here")
    images = np.random.default_rng(0).integers(0, 255, (3, 3, 32, 32), dtype=np.uint8)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images).float() / 127.5 - 1).numpy()
    for name in ("model.onnx", "model.onnx.data"):
        storage.write_bytes(f"{bucket_url}/{name}", (tmp_path / "here" / name).read_bytes())
    for url in (str(tmp_path / "here" / "model.onnx"), f"{bucket_url}/model.onnx"):
        np.testing.assert_allclose(open_model(url, detect_device()).embed(images), expected, atol=1e-4)


def test_weights_beside_the_model_that_do_not_fit_it_are_told(tmp_path: Path) -> None:
    export_apart(tmp_path)
    path, beside = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    whole = beside.read_bytes()
    beside.write_bytes(whole[:-100])
    with pytest.raises(AppError, match=r"which has \d+; its shape needs \d+: is it the file that was written with"):
        open_model(str(path), detect_device())
    beside.unlink()
    with pytest.raises(AppError, match=r"model\.onnx\.data"):
        open_model(str(path), detect_device())
    beside.write_bytes(whole)
    model = onnx.load(str(path), load_external_data=False)
    big = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    for number in range(50):  # all the same share: more memory than there are files for
        again = model.graph.initializer.add()
        again.CopyFrom(big)
        again.name = f"again{number}"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(AppError, match="claim more than"):
        open_model(str(path), detect_device())


def test_sizes_that_no_file_holds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path, [])
    for dims in ([2**40, 2**40], [-1, 4], [2**62]):
        model = onnx.load(str(path))
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        path.with_name("other.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(AppError, match="not an ONNX model that can be run"):
            open_model(str(path.with_name("other.onnx")), detect_device())


def test_metadata_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path, [])
    model = onnx.load(str(path))
    helper.set_model_props(model, {"colour_order": "RGB", "mean": "a", "scale": "1"})
    path.write_bytes(model.SerializeToString())
    with pytest.raises(AppError, match="cannot be told from the graph"):
        open_model(str(path), detect_device())
