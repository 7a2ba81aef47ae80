"""Checkpoints as other trainers write them: settings and numpy's numbers beside the weights, names, colours, forms."""

from __future__ import annotations

import argparse
import collections
import io
import pathlib
import pickle
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from app.backbones.registry import build_backbone, register
from app.errors import AppError
from app.evaluate import load_model
from app.export import main as export
from app.weights import ModelError, parse_weights, read_centres

SMALL = "ir_small_of_a_test"


@pytest.fixture(scope="module", autouse=True)
def _small_ir() -> None:
    from functools import partial

    from app.backbones.ir import IR

    register(SMALL, partial(IR, (1, 1, 1, 1), widths=(8, 8, 8, 16)))


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = build_backbone(SMALL, embedding_size=16, image_size=32).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            assert module.running_mean is not None
            module.running_mean.normal_()
    return model


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def class_of(module: str, name: str, *bases: type, monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that pickles under a name of somebody else's library."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
    made = type(name, bases or (object,), {"__module__": module})
    monkeypatch.setattr(sys.modules[module], name, made, raising=False)
    return made


def same(read: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    return list(read) == list(state) and all(torch.equal(read[name], state[name]) for name in state)


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_beside_the_weights_are_passed_over(zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kinds that arcface_torch, face.evoLVe, MagFace, FaceX-Zoo and AdaFace (Lightning 1.4) keep in checkpoints."""
    state = {name: value.clone() for name, value in small().state_dict().items()}
    edict = class_of("easydict", "EasyDict", dict, monkeypatch=monkeypatch)(lr=0.1, nested={"a": [1]})
    edict.lr = 0.1  # an attribute too, as EasyDict sets it
    attributes = class_of("pytorch_lightning.utilities.parsing", "AttributeDict", dict, monkeypatch=monkeypatch)
    callback = class_of("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", monkeypatch=monkeypatch)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [12, 20, 24])
    checkpoint = {
        "epoch": np.int64(3),
        "best": np.float64(0.99),
        "flags": np.array([True, False]),
        "args": argparse.Namespace(lr=0.1, arch="r50", path=pathlib.PurePosixPath("a") and pathlib.PosixPath("a/b")),
        "config": edict,
        "simple": types.SimpleNamespace(a=1),
        "hyper_parameters": attributes(m=0.4, device=torch.device("cuda", 1)),
        "callbacks": {callback: {"best_model_score": torch.tensor(1.0), "best_model_path": "x"}},
        "lr_schedulers": [schedule.state_dict()],
        "history": collections.defaultdict(list, {"loss": [1.0], -1: 2, None: 3}),
        "seen": {1, 2},
        "none_seen": set(),
        "state_dict": collections.OrderedDict(state),
    }
    assert same(parse_weights("x.ckpt", saved(checkpoint, _use_new_zipfile_serialization=zipped)), state)


def test_what_is_called_and_not_known_is_still_refused_in_any_place() -> None:
    for value in ({"args": collections.UserDict(a=1)}, {"hook": print}, {"hook": getattr}):
        with pytest.raises(
            ModelError, match=r"it holds (.*UserDict|__builtin__\.(print|getattr)), which is not weights"
        ):
            parse_weights("x.pt", saved({**value, "state_dict": {"a": torch.zeros(1)}}))
    # Protocol 2 and later make objects of a class by an opcode of their own.
    with pytest.raises(ModelError, match=r"it holds .*subprocess\.Popen"):
        parse_weights("x.pt", b"\x80\x02csubprocess\nPopen\n)\x81.")
    # A dict that holds itself where the weights would be.
    with pytest.raises(ModelError, match="not a state dict of a backbone"):
        parse_weights("x.pt", b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.")


def test_arrays_of_numpy_are_weights_too() -> None:
    state = {name: value.clone() for name, value in small().state_dict().items()}
    arrays = {name: value.numpy() for name, value in state.items()}
    for data in (
        saved(arrays),
        saved({"state_dict": arrays}),
        pickle.dumps(arrays, protocol=2),
        pickle.dumps(collections.OrderedDict(arrays), protocol=4),
        pickle.dumps({"model": arrays}, protocol=5),
    ):
        assert same(parse_weights("x.pt", data), state)
    turned = {name: np.array(value, dtype=value.dtype.newbyteorder(">"), order="F") for name, value in arrays.items()}
    assert same(parse_weights("x.pt", saved(turned)), state)
    for bad in (np.array(["a"]), np.array([1], dtype=np.uint64), np.array([1j])):
        with pytest.raises(ModelError, match=r"^x\.pt: not a state dict"):
            parse_weights("x.pt", saved({"a": bad}))


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_arrays_of_a_file_of_numpys_are_weights_too() -> None:
    state = {name: value.clone() for name, value in small().state_dict().items()}
    arrays = {name: np.array(value.numpy(), order="F") for name, value in state.items()}
    assert same(parse_weights("x.npz", npz(**arrays)), state)
    turned = {name: value.astype(value.dtype.newbyteorder(">")) for name, value in arrays.items()}
    assert same(parse_weights("x.npz", npz(**turned)), state)


def test_files_of_numpys_that_lie_are_told() -> None:
    good = npz(a=np.zeros((3, 4), np.float32))
    packed = io.BytesIO()
    np.savez_compressed(packed, a=np.zeros(3))
    for data, message in (
        (npz(a=np.array([print], dtype=object)), "holds object, not numbers"),
        (npz(a=np.zeros(3, dtype=[("x", "f4")])), "not numbers"),
        (npz(a=np.array(["text"])), "not numbers"),
        (npz(a=np.zeros(3, complex)), "not numbers"),
        (good.replace(b"(3, 4), ", b"(3, 9), "), "not those of its shape"),
        (good.replace(b"(3, 4), ", b"(-3,-4),"), "not those of its shape"),
        (good.replace(b"'descr'", b"[[[[[[["), "is no array of numpy's"),
        (good.replace(b"NUMPY\x01", b"NUMPY\x09"), "is no array of numpy's"),
        (packed.getvalue(), "is packed, encrypted or there twice"),
    ):
        assert data != good
        with pytest.raises(ModelError, match=r"x\.npz: not a state dict") as caught:
            parse_weights("x.npz", data)
        assert message in str(caught.value)


def test_safetensors_are_what_their_library_reads() -> None:
    state = {name: value.clone() for name, value in small().state_dict().items()}
    state |= {"half": torch.ones(3).half(), "brain": torch.ones(2, 0).bfloat16(), "none": torch.tensor(3)}
    data = safetensors.torch.save(state, metadata={"format": "pt"})
    read = parse_weights("x.safetensors", data)
    assert {n: (v.dtype, v.shape) for n, v in read.items()} == {n: (v.dtype, v.shape) for n, v in state.items()}
    assert all(torch.equal(read[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}',
        '{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"a":3}',
        '{"a":',
        "[]",
    ],
)
def test_safetensors_that_lie_are_told(header: str) -> None:
    data = len(header).to_bytes(8, "little") + header.encode() + bytes(8)
    with pytest.raises(ModelError, match=r"^x\.safetensors: not a state dict"):
        parse_weights("x.safetensors", data)


CENTRES = torch.arange(10 * 16, dtype=torch.float32).view(10, 16)


@pytest.mark.parametrize(
    ("held", "where"),
    [
        ({"weight": CENTRES}, "face.evoLVe's head"),
        ({"module.weight": CENTRES}, "the same, wrapped"),
        ({"kernel": CENTRES.T.contiguous()}, "CurricularFace's head"),
        ({"state_dict": {"model.a": torch.zeros(16, 3), "head.kernel": CENTRES.T}}, "AdaFace's checkpoint"),
        ({"state_dict": {"module.features.module.fc.weight": CENTRES, "module.fc.weight": CENTRES.T}}, "MagFace's"),
        ({"state_dict": {"backbone.fc.weight": torch.zeros(16, 4), "head.weight": CENTRES}}, "FaceX-Zoo's"),
        ({"state_dict_softmax_fc": {"weight": CENTRES, "weight_exp_avg": CENTRES}}, "PartialFCAdamW's"),
        ({"weight": CENTRES.numpy()}, "an array"),
        (CENTRES.numpy(), "nothing but an array"),
    ],
)
def test_centres_are_found_under_everybodys_names(tmp_path: Path, held: Any, where: str) -> None:
    torch.save(held, tmp_path / "head.pth")
    assert torch.equal(read_centres(str(tmp_path / "head.pth"), 10, 16, 2, 9), CENTRES[2:9]), where
    with pytest.raises(ModelError, match="10 class centres in 1 files, the run has 9 classes"):
        read_centres(str(tmp_path / "head.pth"), 9, 16, 0, 9)


def test_centres_that_are_not_told_apart_are_asked_for(tmp_path: Path) -> None:
    torch.save({"head.weight": CENTRES, "fc.weight": CENTRES}, tmp_path / "head.pth")
    with pytest.raises(ModelError, match=r"which of head\.weight, fc\.weight are the centres"):
        read_centres(str(tmp_path / "head.pth"), 10, 16, 0, 10)
    torch.save({"epoch": 3, "conv.weight": CENTRES}, tmp_path / "head.pth")
    with pytest.raises(
        ModelError, match=r"centres are not there, among epoch, conv\.weight; they are to be \[classes, 16\]"
    ):
        read_centres(str(tmp_path / "head.pth"), 10, 16, 0, 10)


def test_a_backbone_where_centres_belong_is_no_head(tmp_path: Path) -> None:
    """``fc.weight`` is MagFace's name of the centres, and the last layer of the reference's networks."""
    state = build_backbone("r10_small", embedding_size=16, image_size=32).state_dict()
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(ModelError, match=r"centres are not there, among conv1\.weight"):
        read_centres(str(tmp_path / "backbone.pth"), state["fc.weight"].shape[1], 16, 0, 10)


def test_another_backbone_than_was_named_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.evaluate.model_source.backbone_names", lambda: ["edgeface_xxs", "ir_18", "r18"])
    state = build_backbone("ir_18").state_dict()
    torch.save({f"model.{name}": value for name, value in state.items()}, tmp_path / "x.pth")
    with pytest.raises(AppError, match=r"weights of another architecture.*; they are those of --backbone ir_18$"):
        load_model(tmp_path / "x.pth", backbone="r18")
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(AppError, match=r"set model\.backbone and embedding_size$"):
        load_model(tmp_path / "x.pth", backbone="r18")


@pytest.mark.parametrize("ending", ["ckpt", "pth.tar", "safetensors", "bin", "npz"])
def test_a_model_of_another_program_is_opened_and_exported(tmp_path: Path, ending: str) -> None:
    """As AdaFace publishes its models: Lightning's prefix, a head beside, BGR; CVLface as safetensors."""
    model = small()
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    path = tmp_path / f"adaface.{ending}"
    if ending == "safetensors":
        safetensors.torch.save_file(state, path)
    elif ending == "npz":
        path.write_bytes(npz(**{name: value.numpy() for name, value in state.items()}))
    else:
        torch.save({"state_dict": {**state, "head.kernel": torch.zeros(16, 9)}, "epoch": 1}, path)
    faces = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    given = (torch.from_numpy(faces[..., ::-1].transpose(0, 3, 1, 2).copy()).float() - 127.5) / 127.5
    with torch.no_grad():
        expected = nn.functional.normalize(model(given)).numpy()
    options = ["--backbone", SMALL, "--embedding-size", "16", "--weights-colours", "BGR", "--image-size", "32"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left out is told: the head
        assert export(["--model", str(path), *options, "--output", str(tmp_path / "model.pt")]) == 0
        assert export(["--model", str(path), *options, "--output", str(tmp_path / "model.onnx")]) == 0
    for form in ("model.pt", "model.onnx"):
        assert np.abs(load_model(tmp_path / form).embed(faces) - expected).max() < 1e-4, form
    with pytest.raises(AppError, match="pass --backbone"):
        load_model(path)
