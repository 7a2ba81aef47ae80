"""Files that are no weights are told apart by what they are."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from app.file_kinds import describe_kind
from app.weights import ModelError, parse_weights


def packed(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def onnx_model() -> bytes:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    return bytes(helper.make_model(graph, producer_name="pytorch").SerializeToString())


def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (onnx_model, r"an ONNX model: give it a name that ends with \.onnx"),
        (lambda: packed("det_10g.onnx", "w600k_r50.onnx"), r"a zip archive of ONNX models \(det_10g\.onnx, w600k"),
        (lambda: packed("a.txt"), "a zip archive: unpack it"),
        (script, "TorchScript"),
        (
            lambda: safetensors.torch.save({"a": torch.zeros(2)})[:-1],
            "truncated, or its tensors lie on each other: 'a'",
        ),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (lambda: b"\n<!DOCTYPE html><html>", "a web page"),
        (lambda: b"\x12\x01" + bytes(6) + b"rest", "parameters of MXNet"),
        (lambda: b"", "an empty file"),
        (
            lambda: saved(torch.nn.Linear(2, 2)),
            r"linear\.Linear.*save model\.state_dict\(\) instead",
        ),
        (lambda: saved({"weight": torch.zeros(10, 512)}), r"class centres \(a head\).*name the file of the backbone"),
        (lambda: saved({"state_dict_softmax_fc": {"weight": torch.zeros(10, 8)}}), "class centres"),
        (lambda: saved({"epoch": 3, "optimizer": {"a": 1}}), r"keys are epoch, optimizer: save the state dict"),
        (lambda: saved([torch.zeros(1)]), "a list"),
    ],
)
def test_what_is_no_backbone_says_what_it_is(make: object, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        parse_weights("models/x.pt", make())  # type: ignore[operator]
    assert str(caught.value).startswith("models/x.pt: ")
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sound_weights_are_not_called_something_else() -> None:
    data = saved({"a": torch.zeros(3)})
    assert describe_kind(data) == ""
    assert list(parse_weights("x.pt", data)) == ["a"]
    assert describe_kind(np.array([1, 2], dtype=np.float32).tobytes()) == ""


@given(st.binary(max_size=200))
def test_any_bytes_are_described(data: bytes) -> None:
    for head in (b"", b"PK\x03\x04", b"\x08\x08", b'\x09\0\0\0\0\0\0\0{"'):
        assert isinstance(describe_kind(head + data), str)


def test_the_onnx_library_agrees() -> None:
    onnx.checker.check_model(onnx.load_from_string(onnx_model()))
