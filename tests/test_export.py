"""app.export: every form of ONNX gives the embeddings of the run, and is read back as what it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from app.backbones.registry import build_backbone
from app.device import detect_device
from app.errors import AppError
from app.evaluate.model_source import open_model
from app.export import main
from app.train import main as train
from tests.jobs import SMALL, write_faces

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_faces(str(folder / "faces"), classes=4, per_class=12)
    options = ["--data.url", str(folder / "faces"), "--output.url", str(folder), "--train.epochs", "1"]
    assert train([*SMALL, *options, "--output.onnx", "false"]) == 0
    return folder / "orl"


def units(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = values / np.linalg.norm(values, axis=1, keepdims=True)
    return found


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--opset", "11"),
        ("--opset", "20", "--input-name", "data", "--output-name", "fc1"),
        ("--batch", "2"),
        ("--normalise", "inside"),
        ("--colours", "BGR", "--normalise", "inside"),
        ("--fp16",),
        ("--simplified",),
        ("--simplified", "--opset", "11", "--batch", "2", "--normalise", "inside", "--colours", "BGR"),
        ("--simplified", "--fp16", "--opset", "20"),
    ],
    ids=" ".join,
)
def test_every_form_embeds_as_the_run_does(run: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "m.onnx"
    assert main(["--model", str(run), "--output", str(path), *options]) == 0
    expected = open_model(str(run), detect_device("cpu")).embed(IMAGES)
    found = open_model(str(path), detect_device("cpu"))
    assert found.image_size == 32
    bound = 2e-2 if "--fp16" in options else 1e-4
    assert np.abs(units(found.embed(IMAGES)) - units(expected)).max() < bound
    model = onnx.load(path)
    said = {item.key: item.value for item in model.metadata_props}
    about = json.loads((run / "model.json").read_text())
    assert (said["recipe"], said["step"], said["size"]) == ("orl", str(about["step"]), "32")
    assert said["normalisation"] == ("inside" if "inside" in options else "outside")
    assert said["colour_order"] == ("BGR" if "BGR" in options else "RGB")
    assert len(said["weights_sha256"]) == 64
    if "--opset" in options:
        assert model.opset_import[0].version == int(options[options.index("--opset") + 1])
    if "data" in options:
        assert (model.graph.input[0].name, model.graph.output[0].name) == ("data", "fc1")
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes[0] == (2 if "--batch" in options else 0)


@pytest.mark.parametrize("backbone", ["r10_small", "mbf", "vit_t", "edgeface_xxs"])
def test_simplified_graphs_have_fewer_nodes_and_the_same_embeddings(tmp_path: Path, backbone: str) -> None:
    torch.save(build_backbone(backbone, embedding_size=16, image_size=36).state_dict(), tmp_path / "w.pth")
    given = ["--model", str(tmp_path / "w.pth"), "--backbone", backbone, "--embedding-size", "16", "--image-size", "36"]
    nodes, found = [], []
    for name, options in (("plain.onnx", ()), ("less.onnx", ("--simplified",))):
        assert main([*given, "--output", str(tmp_path / name), *options]) == 0
        nodes.append(len(onnx.load(tmp_path / name).graph.node))
        session = onnxruntime.InferenceSession(tmp_path / name)
        images = np.random.default_rng(1).normal(size=(5, 3, 36, 36)).astype(np.float32)
        found.append(np.asarray(session.run(["embedding"], {"input": images})[0]))
    assert nodes[1] < 0.8 * nodes[0]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["r10_small", "ir_18", "mbf"])
def test_opencv_computes_the_same_from_any_batch(tmp_path: Path, backbone: str) -> None:
    cv2 = pytest.importorskip("cv2")
    torch.manual_seed(0)
    torch.save(build_backbone(backbone, embedding_size=16, image_size=32).state_dict(), tmp_path / "w.pth")
    given = ["--model", str(tmp_path / "w.pth"), "--backbone", backbone, "--embedding-size", "16", "--image-size", "32"]
    assert main([*given, "--output", str(tmp_path / "m.onnx")]) == 0
    network = cv2.dnn.readNetFromONNX(str(tmp_path / "m.onnx"))
    for count in (1, 3):
        faces = [np.ascontiguousarray(face.transpose(1, 2, 0)[..., ::-1]) for face in IMAGES[:count]]  # as cv2.imread
        network.setInput(cv2.dnn.blobFromImages(faces, 1 / 127.5, (32, 32), (127.5,) * 3, swapRB=True))
        expected = open_model(str(tmp_path / "m.onnx"), detect_device("cpu")).embed(IMAGES[:count])
        assert np.abs(units(network.forward()) - units(expected)).max() < 1e-4


def test_several_batches_are_a_file_each(run: Path, tmp_path: Path) -> None:
    assert main(["--model", str(run), "--output", str(tmp_path / "m.onnx"), "--batch", "1,4"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m_b1.onnx", "m_b4.onnx"]


def test_a_checkpoint_becomes_a_model_without_training(run: Path, tmp_path: Path) -> None:
    steps = sorted({int(path.name.split("-")[1]) for path in (run / "checkpoints").iterdir() if path.is_dir()})
    first = steps[0]
    output = tmp_path / "model.pt"
    assert main(["--model", str(run / "checkpoints"), "--step", str(first), "--output", str(output)]) == 0
    about = json.loads((tmp_path / "model.json").read_text())
    assert (about["step"], about["backbone"]) == (first, "r10_small")
    opened = open_model(str(tmp_path), detect_device("cpu"))
    assert opened.about["step"] == first
    assert np.isfinite(opened.embed(IMAGES)).all()
    with pytest.raises(AppError, match=r"no checkpoint of step 999; there are \["):
        main(["--model", str(run), "--step", "999", "--output", str(output)])


def test_torch_export_computes_the_same_for_any_batch(run: Path, tmp_path: Path) -> None:
    assert main(["--model", str(run), "--output", str(tmp_path / "m.pt2")]) == 0
    program = torch.export.load(str(tmp_path / "m.pt2")).module()
    images = (torch.from_numpy(IMAGES).float() - 127.5) / 127.5
    expected = open_model(str(run), detect_device("cpu")).embed(IMAGES)
    for count in (1, 3):
        np.testing.assert_allclose(program(images[:count]).detach().numpy(), expected[:count], rtol=1e-4, atol=1e-5)


def test_foreign_weights_and_mistakes(tmp_path: Path) -> None:
    torch.save(build_backbone("r10_small", embedding_size=16, image_size=32).state_dict(), tmp_path / "w.pth")
    sizes = ["--embedding-size", "16", "--image-size", "32"]
    given = ["--model", str(tmp_path / "w.pth"), "--backbone", "r10_small", *sizes]
    with pytest.raises(AppError, match=r"must end with \.onnx, \.pt2 or \.pt"):
        main([*given, "--output", str(tmp_path / "m.engine")])
    with pytest.raises(AppError, match=r"--batch must be dynamic, a number"):
        main([*given, "--output", str(tmp_path / "m.onnx"), "--batch", "1,x"])
    with pytest.raises(AppError, match="pass --backbone"):
        main(["--model", str(tmp_path / "w.pth"), "--output", str(tmp_path / "m.onnx")])
