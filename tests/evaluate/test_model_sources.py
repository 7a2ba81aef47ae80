"""One trained model, opened in every way: the same accuracy from each; and what cannot be opened."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from app import storage
from app.config.options import parse_arguments
from app.data.bin_sets import dump_set
from app.data.decode import encode_jpeg
from app.device import detect_device
from app.errors import AppError
from app.evaluate import load_model
from app.head.class_shards import class_range
from app.train import main as train
from app.training.build import make_trainer
from app.training.plan import ElasticPlan
from app.training.start import start_from_weights
from app.verify import main as verify
from app.weights import read_centres
from app.world import World
from tests.jobs import SMALL, write_faces


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_faces(str(folder / "faces"), classes=4, per_class=12)
    generator = np.random.default_rng(0)
    images = [encode_jpeg(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(80)]
    storage.write_bytes(str(folder / "faces" / "noise.bin"), dump_set(images, [True, False] * 20))
    where = ["--data.url", str(folder / "faces"), "--output.url", str(folder / "runs")]
    assert train([*SMALL, *where, "--train.epochs", "1", "--verify.sets", "noise"]) == 0
    return folder


def accuracy(run: Path, model: str, *options: str) -> float:
    report = str(run / "report")
    assert verify(["--model", model, "--sets-url", str(run / "faces"), "--report", report, *options]) == 0
    found = json.loads((run / "report" / "report.json").read_text())
    with Image.open(run / "report" / "hardest_noise.jpg") as picture:
        assert picture.size == (8 * 112, 2 * (2 * 14 + 2 * 112 + 6))
    return float(found["sets"]["noise"]["accuracy"])


def test_run_folder_checkpoint_state_dict_and_onnx_agree(run: Path) -> None:
    folder = str(run / "runs" / "orl")
    expected = accuracy(run, folder)
    assert accuracy(run, folder + "/checkpoints") == expected
    assert accuracy(run, folder + "/model.pt") == expected
    assert accuracy(run, folder + "/best") == expected  # the only verification was the best
    assert accuracy(run, folder + "/model.onnx") == pytest.approx(expected, abs=0.03)


def test_one_set_is_named_by_its_file_too(run: Path, tmp_path: Path) -> None:
    model = ["--model", str(run / "runs" / "orl"), "--no-baseline", "--report", str(tmp_path)]
    assert verify([*model, "--sets-url", str(run / "faces" / "noise.bin")]) == 0
    assert list(json.loads((tmp_path / "report.json").read_text())["sets"]) == ["noise"]
    with pytest.raises(AppError, match=r"other\.bin: .*does not exist"):
        verify([*model, "--sets-url", str(run / "faces" / "other.bin")])


def test_an_exported_model_tells_its_run_and_step(run: Path, tmp_path: Path) -> None:
    own = json.loads((run / "runs" / "orl" / "model.json").read_text())
    model = onnx.load(run / "runs" / "orl" / "model.onnx")
    for step, expected in (
        (str(own["step"]), ("orl", own["step"])),
        ("-1", ("m.onnx", 0)),
        ("1" * 5000, ("m.onnx", 0)),
        ("²", ("m.onnx", 0)),
    ):
        next(item for item in model.metadata_props if item.key == "step").value = step
        onnx.save(model, tmp_path / "m.onnx")
        about = load_model(tmp_path / "m.onnx").about
        assert (about["recipe"], about["step"], about["backbone"]) == (*expected, "onnx")
    assert own["step"] > 0


def test_every_form_opens_from_a_bucket(run: Path, bucket_url: str) -> None:
    folder = run / "runs" / "orl"
    for path in folder.rglob("*"):
        if path.is_file() and "events" not in path.parts:
            storage.write_bytes(storage.join(bucket_url, str(path.relative_to(folder))), path.read_bytes())
    face = np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    expected = load_model(folder).embed([face])
    for name in ("", "checkpoints", "model.pt", "best", "model.onnx"):
        found = load_model(storage.join(bucket_url, name) if name else bucket_url).embed([face])
        assert np.allclose(found, expected, atol=1e-4), name


def test_a_bare_state_dict_needs_a_backbone(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "backbone.pth"
    torch.save(torch.load(run / "runs" / "orl" / "model.pt", weights_only=True), bare)
    with pytest.raises(AppError, match="pass --backbone"):
        accuracy(run, str(bare))
    with pytest.raises(AppError, match=r"weights of another architecture.*set model\.backbone"):
        accuracy(run, str(bare), "--backbone", "r18")


def test_weights_that_would_run_code_are_refused(run: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("1/0",)

    path = tmp_path / "backbone.pth"
    torch.save({"x": Evil()}, path)
    with pytest.raises(AppError, match="not a state dict that can be loaded safely"):
        accuracy(run, str(path), "--backbone", "r18")


def test_a_damaged_model_is_told(run: Path, tmp_path: Path) -> None:
    for name in ("model.json", "model.pt"):
        data = (run / "runs" / "orl" / name).read_bytes()
        (tmp_path / name).write_bytes(data if name == "model.json" else data[:-1] + b"x")
    with pytest.raises(AppError, match=r"SHA-256 is not the one in model\.json"):
        accuracy(run, str(tmp_path))
    (tmp_path / "bad.onnx").write_bytes(b"not onnx")
    with pytest.raises(AppError, match="not an ONNX model"):
        accuracy(run, str(tmp_path / "bad.onnx"))


def test_a_checkpoint_of_the_reference_is_read(run: Path, tmp_path: Path) -> None:
    # checkpoint_gpu_0.pt holds the backbone under a key of its own, as DistributedDataParallel names it.
    state = torch.load(io.BytesIO((run / "runs" / "orl" / "model.pt").read_bytes()), weights_only=True)
    wrapped = {"epoch": 1, "state_dict_backbone": {f"module.{name}": value for name, value in state.items()}}
    path = tmp_path / "checkpoint_gpu_0.pt"
    torch.save(wrapped, path)
    options = ["--data.url", str(run / "faces"), "--output.url", str(tmp_path / "runs"), "--model.init", str(path)]
    assert train([*SMALL, *options, "--train.last-step", "1"]) == 0
    path.unlink()  # a run that goes on has its own weights and reads these no more
    assert train([*SMALL, *options, "--train.last-step", "2"]) == 0


def write_reference_checkpoints(folder: Path, ranks: int) -> torch.Tensor:
    """A file a rank with its share of ten centres, the first ranks one more; returns all centres."""
    centres = torch.randn(10, 32, generator=torch.Generator().manual_seed(1))
    for rank, share in enumerate(torch.tensor_split(centres, ranks)):
        torch.save({"epoch": 3, "state_dict_softmax_fc": {"weight": share}}, folder / f"checkpoint_gpu_{rank}.pt")
    return centres


@pytest.mark.parametrize(("ranks", "processes"), [(1, 3), (3, 1), (4, 3)])
def test_class_centres_of_the_reference_are_taken_over_by_any_number_of_ranks(
    tmp_path: Path, ranks: int, processes: int
) -> None:
    centres = write_reference_checkpoints(tmp_path, ranks)
    pattern = str(tmp_path / "checkpoint_gpu_{rank}.pt")
    shares = [read_centres(pattern, 10, 32, *class_range(10, processes, rank)) for rank in range(processes)]
    assert torch.equal(torch.cat(shares), centres)
    with pytest.raises(AppError, match=rf"10 class centres in {ranks} files, the run has 11 classes"):
        read_centres(pattern, 11, 32, 0, 11)
    with pytest.raises(AppError, match=r"centres of shape .* are to be \[classes, 64\]"):
        read_centres(pattern, 10, 64, 0, 10)


def test_a_run_starts_from_the_centres_of_the_reference(run: Path, tmp_path: Path) -> None:
    centres = write_reference_checkpoints(tmp_path, 2)
    pattern = str(tmp_path / "checkpoint_gpu_{rank}.pt")
    recipe = parse_arguments([*SMALL, "--head.init", pattern, "--data.url", str(run / "faces")])
    trainer = make_trainer(recipe, World(0, 1, 0, detect_device()), ElasticPlan(1, 1), 10)
    start_from_weights(recipe, trainer)
    assert torch.equal(trainer.head.centres, centres)


def test_another_folder_or_file_than_a_model_is_told(run: Path, tmp_path: Path) -> None:
    finished = run / "runs" / "orl"
    (checkpoint, *_) = sorted(path for path in (finished / "checkpoints").iterdir() if path.name.startswith("step-"))
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    packed = tmp_path / "buffalo.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("w600k_r50.onnx", b"x")
    (tmp_path / "renamed.onnx").write_bytes((finished / "model.pt").read_bytes())
    (tmp_path / "renamed.pt").write_bytes((finished / "model.onnx").read_bytes())
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "net.pth").write_bytes(b"x")
    table = {
        run / "faces": "a dataset, not a model",
        run / "runs": r"a folder of runs: name one, .*/runs/orl",
        unfinished: r"not finished.*name .*/unfinished/checkpoints",
        checkpoint: r"one checkpoint: name the folder that holds it, .*/checkpoints$",
        packed: r"a zip archive of ONNX models \(w600k_r50\.onnx\)",
        tmp_path / "renamed.onnx": r"a file of torch\.save: give it a name that ends with \.pt",
        tmp_path / "renamed.pt": r"an ONNX model: give it a name that ends with \.onnx",
        tmp_path / "loose": r"loose/net\.pth: name the file, with --backbone",
        tmp_path / "nowhere": "does not exist, or holds nothing",
        run / "faces" / "train.rec": "a dataset, not a model",
    }
    for path, says in table.items():
        with pytest.raises(AppError, match=says):
            load_model(path, backbone="r18" if path.suffix == ".pt" else "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no model is named"),
        ("gone.pt", r"gone\.pt: read failed: it does not exist"),
        ("gone.onnx", r"gone\.onnx: read failed: it does not exist"),
        ("empty.pt", r"empty\.pt: .*empty"),
        ("empty.onnx", r"empty\.onnx: .*an empty file"),
        ("onnx.pt", r"onnx\.pt: .*ONNX"),
        ("state.onnx", r"state\.onnx: .*give it a name that ends with \.pt"),
        ("folder.pt", r"folder\.pt: .*it is a folder"),
        ("https://host/run?X-Amz-Signature=abc", r"https://host/run\?X-Amz-Signature=\*\*\* has a query"),
    ],
)
def test_what_lies_under_a_models_name_is_told_before_anything_is_asked_for(
    run: Path, tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = run / "runs" / "orl"
    Path("onnx.pt").write_bytes((folder / "model.onnx").read_bytes())
    Path("state.onnx").write_bytes((folder / "model.pt").read_bytes())
    Path("empty.pt").touch()
    Path("empty.onnx").touch()
    Path("folder.pt").mkdir()
    with pytest.raises(AppError, match=message):
        load_model(name)
