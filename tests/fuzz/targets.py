"""What is fuzzed: for every format some sound files, and the reader that answers each with a value or an AppError."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from app.backbones.registry import build_backbone
from app.checkpoint.manager import CheckpointManager, TrainingState
from app.checkpoint.manifest import Manifest
from app.config.options import load_recipe, parse_recipe, to_toml
from app.config.recipe import Recipe
from app.data.bin_sets import dump_set, parse_set
from app.data.dataset import open_dataset
from app.data.decode import decode_image, encode_jpeg
from app.data.node_arrays import node_folder
from app.data.prepare.folder import FaceOptions, make_face
from app.data.reader import RecordReader
from app.data.recordio import RecordError, class_of
from app.device import detect_device
from app.run_folder import load_model
from app.weights import parse_weights
from app.world import World
from tests.jobs import write_faces


@dataclass(frozen=True)
class Target:
    """A format: sound files of it, and its reader."""

    seeds: list[bytes]
    read: Callable[[bytes], object]
    text: bool = False


def make_targets(folder: Path) -> dict[str, Target]:
    """All targets; ``folder`` is theirs."""
    write_faces(str(folder / "faces"), classes=2, per_class=2)
    record, index = ((folder / "faces" / f"train.{ending}").read_bytes() for ending in ("rec", "idx"))
    jpeg = encode_jpeg(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    return {
        "rec": Target([record], lambda data: _read_dataset(folder / "r", data, index)),
        "idx": Target([index], lambda data: _read_dataset(folder / "i", record, data), text=True),
        "bin": Target(_sets(jpeg), _read_set),
        "image": Target(_images(), decode_image),
        "photograph": Target(_photographs(), lambda data: make_face(data, FaceOptions(size=32), None, "x")),
        "manifest": Target(_manifests(folder), lambda data: Manifest.from_json("manifest.json", data), text=True),
        "model.json": _model_json(folder / "model"),
        "toml": Target([to_toml(Recipe()).encode()], lambda data: _read_recipe(folder, "toml", data), text=True),
        "py": Target([_CONFIG], lambda data: _read_recipe(folder, "py", data), text=True),
        "pt": Target(_weights(), lambda data: parse_weights("x.pt", data)),
    }


_CONFIG = b"""from easydict import EasyDict as edict
config = edict()
config.dataset = "emore"
config.margin_list = (1.0, 0.5, 0.0)
config.batch_size = 2 ** 7
config.num_image = int(5e6)
import os
roots, config.lr = {"a": os.environ.get("FACES_OF_NOBODY", "/data")}, [0.1, 0.2][-1]
config.rec = roots["a"] or not True
config.output = open("x")
if config.dataset == "emore":
    config.num_epoch = 16
    def lr_step_func(epoch):
        return 0.1 ** len([m for m in [8, 14] if m - 1 <= epoch])
    config.lr_func = lr_step_func
config.warmup_epoch = config.num_epoch // 10
"""


def _read_dataset(folder: Path, record: bytes, index: bytes) -> None:
    folder.mkdir(exist_ok=True)
    if kept := node_folder():
        shutil.rmtree(kept)  # each input is a file of its own, and its index would be kept a day
    (folder / "train.rec").write_bytes(record)
    (folder / "train.idx").write_bytes(index)
    dataset = open_dataset(str(folder))
    reader = RecordReader(dataset)
    for position, data in reader.stream(range(min(len(dataset), 50))):
        try:
            header, image = reader.parse(position, data)
            class_of(header)
            decode_image(image)
        except RecordError:
            continue


def _read_set(data: bytes) -> None:
    pairs = parse_set("x.bin", "x", data)
    pairs.decode(0, min(len(pairs.images), 4), 32)


def _read_recipe(folder: Path, ending: str, data: bytes) -> object:
    if ending == "toml":
        try:
            return parse_recipe(data.decode(), "name", "x.toml")
        except UnicodeDecodeError:
            pass
    path = folder / f"x.{ending}"
    path.write_bytes(data)
    return load_recipe(str(path))


def _sets(jpeg: bytes) -> list[bytes]:
    array = np.frombuffer(jpeg, np.uint8)
    contents = [
        ([jpeg] * 4, [True, False]),
        ([array] * 4, np.array([1, 0])),
        ([bytearray(jpeg)] * 4, [np.bool_(1)] * 2),
    ]
    return [pickle.dumps(content, protocol) for content in contents for protocol in (0, 2, 5)] + [
        dump_set([jpeg] * 4, [True, False])
    ]


def _images() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    found = []
    formats: list[tuple[str, dict[str, Any]]] = [
        *(("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("GIF", {}), ("WEBP", {})),
        *(("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}), ("PPM", {})),
    ]
    for form, options in formats:
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, form, **options)
        found.append(buffer.getvalue())
    return found


def _photographs() -> list[bytes]:
    """The same with EXIF, which says how to turn them."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a picture", 72.0
    found = _images()
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        noise.save(buffer, form, exif=exif.tobytes())
        found.append(buffer.getvalue())
    return found


def _manifests(folder: Path) -> list[bytes]:
    manager = CheckpointManager(str(folder / "checkpoints"), World(0, 1, 0, detect_device()))
    manifest = manager.save(TrainingState(1, {"a": torch.ones(2)}, {"b": torch.ones(3, 2)}, (0, 3), {"loss": 0.5}))
    return [manifest.to_json()]


def _model_json(folder: Path) -> Target:
    folder.mkdir()
    torch.save(build_backbone("r10_small", embedding_size=8, image_size=32).state_dict(), folder / "model.pt")
    digest = hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest()
    about = {"backbone": "r10_small", "embedding_size": 8, "image_size": 32, "sha256": digest}

    def read(data: bytes) -> None:
        (folder / "model.json").write_bytes(data)
        load_model(str(folder))

    return Target([json.dumps(about).encode()], read, text=True)


def _weights() -> list[bytes]:
    torch.manual_seed(0)
    layer = torch.nn.BatchNorm1d(4)
    found = []
    for value in (layer.state_dict(), {"state_dict_backbone": layer.state_dict(), "epoch": 1}):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
            found.append(buffer.getvalue())
    arrays = {name: value.numpy() for name, value in layer.state_dict().items()}
    beside = {"state_dict": layer.state_dict(), "args": argparse.Namespace(lr=0.1), "seen": {1}, "best": np.float64(1)}
    buffer = io.BytesIO()
    torch.save(beside, buffer)
    npz = io.BytesIO()
    np.savez(npz, **arrays)
    of_numpy = [buffer.getvalue(), pickle.dumps(arrays, 4), npz.getvalue()]
    return [*found, *of_numpy, safetensors.torch.save(layer.state_dict())]
