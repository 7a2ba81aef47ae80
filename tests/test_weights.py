"""Files of torch.save: what torch's own loader gives, without running anything, in memory bounded by the file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.backbones.registry import build_backbone
from app.run_folder import load_model
from app.torch_file import load_torch
from app.weights import ModelError, load_foreign, load_weights, parse_weights, read_centres, read_names

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
]
DTYPES += [torch.uint8, torch.bool]


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def equal(left: Any, right: Any) -> bool:
    if isinstance(right, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right.detach())
    if isinstance(right, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in right)
    if isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


@pytest.mark.parametrize("zipped", [True, False])
def test_it_reads_what_torch_wrote(zipped: bool) -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    value = {
        "kinds": [torch.arange(6).to(dtype) for dtype in DTYPES],
        "views": [base, base.T, base[1:4, 2], base[0, 0], base.view(-1)[5:]],
        "empty": torch.empty(0, 512),
        "parameter": nn.Parameter(torch.ones(2)),
        "numbers": (1, -2, 2**40, 0.5, None, True),
        "state": nn.BatchNorm2d(3).state_dict(),
        "optimizer": _optimizer_state(),
        7: torch.Size([3, 4]),
    }
    data = saved(value, _use_new_zipfile_serialization=zipped)
    assert equal(load_torch(data), torch.load(io.BytesIO(data), weights_only=True))


def _optimizer_state() -> dict[str, Any]:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("wrapped", [False, True])
def test_state_dicts_of_backbones_come_back(wrapped: bool) -> None:
    model = build_backbone("r10_small", embedding_size=32, image_size=32)
    state = OrderedDict((f"module.{k}" if wrapped else k, v) for k, v in model.state_dict().items())
    read = parse_weights("x.pt", saved(state))
    assert equal(read, dict(model.state_dict()))
    load_weights(build_backbone("r10_small", embedding_size=32, image_size=32), read, "x.pt")


def test_tensors_that_torch_could_only_copy_to_arrays_are_read() -> None:
    """``_rebuild_device_tensor_from_numpy``: what torch writes for a device whose storages it does not know."""
    state = build_backbone("r10_small", embedding_size=8, image_size=32).state_dict()

    class OfDevice:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

        def __reduce_ex__(self, protocol: Any) -> Any:
            array = self.tensor.float().numpy() if self.tensor.dtype is torch.bfloat16 else self.tensor.numpy()
            return torch._utils._rebuild_device_tensor_from_numpy, (array, self.tensor.dtype, "npu:0", False)

    state = {**state, "conv1.weight": state["conv1.weight"].bfloat16()}
    read = parse_weights("x.pt", saved({name: OfDevice(value) for name, value in state.items()}))
    assert equal(read, state)
    assert read["conv1.weight"].dtype is torch.bfloat16
    for arguments in (("text", torch.float32, "npu:0", False), (np.array(["a"]), torch.float32, "npu:0", False)):

        class Bad:
            def __reduce_ex__(self, protocol: Any, arguments: Any = arguments) -> Any:
                return torch._utils._rebuild_device_tensor_from_numpy, arguments

        with pytest.raises(ModelError, match=r"x\.pt"):
            parse_weights("x.pt", saved({"conv1.weight": Bad()}))


def test_tensors_of_an_npu_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def rebuild(*_: Any) -> None:
        raise AssertionError("only a name in the file")

    class Npu:
        def __init__(self, tensor: Tensor, layout: int) -> None:
            self.tensor, self.layout = tensor, layout

        def __reduce_ex__(self, protocol: Any) -> Any:
            t = self.tensor
            return rebuild, (
                t._typed_storage(),
                t.storage_offset(),
                tuple(t.size()),
                t.stride(),
                False,
                OrderedDict(),
                self.layout,
            )

    module = types.ModuleType("torch_npu.utils.storage")
    rebuild.__module__, rebuild.__qualname__ = module.__name__, "_rebuild_npu_tensor"
    module._rebuild_npu_tensor = rebuild  # type: ignore[attr-defined]
    for name in ("torch_npu", "torch_npu.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state = build_backbone("r10_small", embedding_size=32, image_size=32).state_dict()
    npu = OrderedDict((name, Npu(value, 29 if value.dim() == 2 else 2)) for name, value in state.items())
    centres = torch.randn(10, 32)
    data = saved({"epoch": 1, "state_dict_backbone": npu, "state_dict_softmax_fc": {"weight": Npu(centres, 2)}})
    (tmp_path / "checkpoint_npu_0.pt").write_bytes(data)
    for name in ("torch_npu", "torch_npu.utils", "torch_npu.utils.storage"):
        monkeypatch.delitem(sys.modules, name)
    assert equal(parse_weights("x.pt", data), dict(state))
    assert torch.equal(read_centres(str(tmp_path / "checkpoint_npu_{rank}.pt"), 10, 32, 3, 7), centres[3:7])


def test_class_centres_of_2021_are_read(tmp_path: Path) -> None:
    centres = torch.randn(10, 8)
    for rank, part in enumerate(centres.split(4)):
        torch.save(part.clone(), tmp_path / f"rank_{rank}_softmax_weight.pt")
    pattern = str(tmp_path / "rank_{rank}_softmax_weight.pt")
    assert torch.equal(read_centres(pattern, 10, 8, 2, 9), centres[2:9])
    with pytest.raises(ModelError, match="10 class centres in 3 files, the run has 11"):
        read_centres(pattern, 11, 8, 0, 4)
    assert torch.equal(read_centres(pattern, 5, 8, 1, 4, sub_centres=2), centres[2:8].view(3, 16))
    with pytest.raises(ModelError, match="4 centres are not 3 a class"):
        read_centres(pattern, 4, 8, 0, 4, sub_centres=3)
    with pytest.raises(ModelError, match=r"centres of shape \(4, 8\)"):
        read_centres(pattern, 10, 16, 0, 4)


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_files_that_want_to_run_something_are_refused_by_name(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for value, name in [
        ({"a": _Call(os.system, f"touch {mark}")}, r"posix\.system"),
        ({"a": _Call(bytearray, 10**11)}, "bytes that are not written as text"),
        (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
        (
            {"a": _Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (1,), (1,), False)},
            "_rebuild_meta_tensor",
        ),
    ]:
        for zipped in (True, False):
            with pytest.raises(ModelError, match=name):
                parse_weights("x.pt", saved(value, _use_new_zipfile_serialization=zipped))
    assert not mark.exists()


def _repacked(data: bytes, compression: int, **extra: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, extra.get(entry.filename.rsplit("/", 1)[-1], old.read(entry.filename)))
    return buffer.getvalue()


def test_a_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = _repacked(saved({"a": torch.zeros(30 << 20)}), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 20
    with pytest.raises(ModelError, match="unpacks to"):
        parse_weights("x.pt", bomb)


def test_shapes_beyond_their_storage_are_refused() -> None:
    data = saved({"a": torch.zeros(1).expand(1 << 40)})
    with pytest.raises(ModelError, match="in a storage of 1 elements"):
        parse_weights("x.pt", data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        b"\x80\x02.",
        b"<html>",
        pickle.dumps([1], protocol=2),
        saved({"a": 1}),
        saved([1]),
        saved({}),
    ],
)
def test_what_is_no_state_dict_is_one_clear_message(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"^x\.pth: not a state dict .+"):
        parse_weights("x.pth", data)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("byte", [0xFF, 0xC3, 0x00])
def test_a_byte_that_is_no_text_is_told_wherever_it_stands(zipped: bool, byte: int) -> None:
    """In names of tensors, types, places and storages, in numbers and opcodes: a value or one clear message."""
    whole = saved({"weight": torch.ones(3), "epoch": "1"}, _use_new_zipfile_serialization=zipped)
    messages = []
    for position in range(len(whole)):
        try:
            parse_weights("x.pt", whole[:position] + bytes([byte]) + whole[position + 1 :])
        except ModelError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(re.match(r"x\.pt: .+", message) for message in messages)


def test_truncated_and_damaged_files_are_told() -> None:
    for zipped in (True, False):
        whole = saved({"a": torch.randn(100, 10)}, _use_new_zipfile_serialization=zipped)
        for length in range(0, len(whole), 97):
            with pytest.raises(ModelError, match=r"^x\.pt: not a state dict .+"):
                parse_weights("x.pt", whole[:length])


@pytest.mark.parametrize(
    "change",
    [
        {"embedding_size": 100_000},
        {"embedding_size": 10**15},
        {"embedding_size": 10**30},
        {"image_size": 10**400},
        {"embedding_size": -1},
        {"embedding_size": 0},
        {"image_size": 0},
        {"image_size": 100_000},
        {"embedding_size": "many"},
        {"embedding_size": None},
        {"backbone": "r100"},
    ],
)
def test_an_absurd_description_takes_no_memory(tmp_path: Path, change: dict[str, Any]) -> None:
    data = saved(build_backbone("r10_small", embedding_size=32, image_size=32).state_dict())
    about = {
        "backbone": "r10_small",
        "embedding_size": 32,
        "image_size": 32,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (tmp_path / "model.pt").write_bytes(data)
    (tmp_path / "model.json").write_text(json.dumps(about))
    load_model(str(tmp_path))
    (tmp_path / "model.json").write_text(json.dumps(about | change))
    with pytest.raises(ModelError):
        load_model(str(tmp_path))


def test_bytes_of_bools_that_are_neither_0_nor_1_are_bools() -> None:
    data = saved({"a": torch.tensor([True, False, True])})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data/0"))
        start = data.index(archive.read(name), archive.getinfo(name).header_offset)
    read = load_torch(data[:start] + b"\x07\x00\x02" + data[start + 3 :])["a"]
    assert np.array_equal(read.numpy().view(np.uint8), [1, 0, 1])


def foreign(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("prefix", ["module.", "features.module.", "model.", "net.backbone."])
def test_foreign_prefixes_are_taken_off_and_heads_left_out(prefix: str) -> None:
    model = build_backbone("r10_small", embedding_size=8, image_size=32)
    other = build_backbone("r10_small", embedding_size=8, image_size=32)
    state = {"head.kernel": torch.zeros(8, 5), **foreign(other, prefix)}
    with pytest.warns(UserWarning, match=r"left out, as no part of the backbone: head\.kernel"):
        load_foreign(model, state, "x.pth")
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_checkpoint_of_lightning_and_names_of_others_are_read(tmp_path: Path) -> None:
    other = build_backbone("r10_small", embedding_size=8, image_size=32)
    state = {name.replace("layer", "stage."): value for name, value in other.state_dict().items()}
    state = {name: value for name, value in state.items() if "num_batches_tracked" not in name}  # before torch 0.4.1
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "state_dict": foreign_names(state)}, path)
    names = tmp_path / "names.json"
    names.write_text('{"^encoder/": "", "stage\\\\.": "layer"}')
    model = build_backbone("r10_small", embedding_size=8, image_size=32)
    load_foreign(model, parse_weights(str(path), path.read_bytes()), str(path), names=read_names(str(names)))
    assert torch.equal(model.state_dict()["layer2.0.conv1.weight"], other.state_dict()["layer2.0.conv1.weight"])
    names.write_text('{"(": ""}')
    with pytest.raises(ModelError, match="not an object of regular expressions"):
        read_names(str(names))
    with pytest.raises(ModelError, match="another architecture"):
        load_foreign(model, parse_weights(str(path), path.read_bytes()), str(path))


def foreign_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"encoder/{name}": value for name, value in state.items()}


@pytest.mark.parametrize("name", ["r10_small", "mbf", "vit_t"])
def test_weights_for_bgr_compute_the_same_from_rgb(name: str) -> None:
    other = build_backbone(name, embedding_size=8, image_size=36).double().eval()
    model = build_backbone(name, embedding_size=8, image_size=36).double().eval()
    load_foreign(model, dict(other.state_dict()), "x.pth", colours="BGR")
    images = torch.randn(2, 3, 36, 36, dtype=torch.float64)
    torch.testing.assert_close(model(images), other(images.flip(1)))
    assert not torch.allclose(model(images), other(images))
