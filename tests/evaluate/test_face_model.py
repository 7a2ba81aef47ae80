"""The model as a function of pictures: whatever form they come in, the same face has the same embedding."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.backbones.registry import build_backbone
from app.data.decode import decode_image
from app.data.prepare.alignment import align_face
from app.data.prepare.detection import shared_detector
from app.data.prepare.orl import load_faces
from app.data.prepare.photograph import PhotographError
from app.errors import AppError
from app.evaluate import FaceModel, load_model
from app.evaluate.__main__ import main
from app.storage import StorageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FaceModel:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    torch.save(build_backbone("r10_small", embedding_size=64, image_size=112).state_dict(), folder / "m.pt")
    return load_model(folder / "m.pt", backbone="r10_small", embedding_size=64)


def pixels(seed: int, height: int = 112, width: int = 112) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def test_every_form_of_a_picture_is_the_same_face(model: FaceModel, tmp_path: Path) -> None:
    array, other = pixels(1), pixels(2)
    image = Image.fromarray(array)
    image.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    forms: list[Any] = [
        array,
        image,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        f"file://{tmp_path}/a.png",
        buffer.getvalue(),
    ]
    together = model.embed([*forms, other])
    assert together.shape == (7, 64)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(together[:6], together[0], atol=1e-5)
    assert not np.allclose(together[6], together[0], atol=1e-2)
    for form in forms:
        assert np.allclose(model.embed(form), together[:1], atol=1e-5)
    assert np.allclose(model.embed(np.stack([array, other])), together[[0, 6]], atol=1e-5)
    assert np.allclose(model.embed(iter([array, other]), batch_size=1), together[[0, 6]], atol=1e-5)
    assert model.similarity(array, other) == pytest.approx(float(together[0] @ together[6]), abs=1e-4)


def test_an_image_of_pillow_is_the_file_that_it_was_opened_from(model: FaceModel, tmp_path: Path) -> None:
    turned, clear = Image.Exif(), Image.fromarray(pixels(1)).convert("RGBA")
    turned[0x0112] = 6
    Image.fromarray(pixels(1)).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(pixels(1)[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    clear.putalpha(Image.fromarray(pixels(2)[..., 0]))
    clear.save(tmp_path / "clear.png")
    for name in ("turned.png", "deep.png", "clear.png"):
        with Image.open(tmp_path / name) as image:
            assert np.allclose(model.embed(image), model.embed(tmp_path / name), atol=1e-5)
            assert not np.allclose(model.embed(image), model.embed(np.asarray(image.convert("RGB"))), atol=1e-3)


def test_what_is_no_picture_is_told_by_its_type(model: FaceModel, tmp_path: Path) -> None:
    array = pixels(1)
    for wrong, kind in ((None, "NoneType"), (5, "int"), ([[array]], "list"), ([torch.zeros(3)], "torch.Tensor")):
        with pytest.raises(AppError, match=rf"picture 0: a path, bytes, a PIL image or .* is expected, got {kind}"):
            model.embed(wrong)  # type: ignore[arg-type]
    for shape in ((64, 64), (64, 64, 4), (5,)):
        with pytest.raises(AppError, match=rf"picture 0: expected RGB uint8 \[H, W, 3\], got uint8 \[{shape[0]}"):
            model.embed(np.zeros(shape, np.uint8))
    Image.fromarray(array).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-200])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(AppError, match="picture 0: unreadable: OSError"):
        model.embed(image)


def test_flips_make_a_face_and_its_mirror_one(model: FaceModel) -> None:
    array = pixels(3)
    assert np.allclose(model.embed(array, flip=True), model.embed(array[:, ::-1].copy(), flip=True), atol=1e-5)
    assert not np.allclose(model.embed(array), model.embed(array[:, ::-1].copy()), atol=1e-3)


def test_a_phone_photograph_is_turned(model: FaceModel) -> None:
    upright = pixels(4, 120, 90)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright, 1).copy()).save(buffer, "PNG", exif=exif)
    assert np.allclose(model.embed(buffer.getvalue()), model.embed(upright), atol=1e-4)


def test_what_is_no_picture_is_named(model: FaceModel, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no")
    with pytest.raises(PhotographError, match=r"bad\.jpg: unreadable"):
        model.embed(str(tmp_path / "bad.jpg"))
    with pytest.raises(StorageError, match="does not exist"):
        model.embed(str(tmp_path / "none.jpg"))
    with pytest.raises(PhotographError, match=r"picture 1: expected RGB uint8 \[H, W, 3\], got float64 \[4, 4\]"):
        model.embed([pixels(1), np.zeros((4, 4))])  # type: ignore[list-item]
    with pytest.raises(PhotographError, match="embed was given none"):
        model.embed([])


def test_a_folder_is_embedded_by_command_from_a_path_and_a_url(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: FaceModel
) -> None:
    torch.manual_seed(0)
    torch.save(build_backbone("r10_small", embedding_size=64, image_size=112).state_dict(), tmp_path / "m.pt")
    options = ["--model", str(tmp_path / "m.pt"), "--backbone", "r10_small", "--embedding-size", "64"]
    photos = tmp_path / "photos"
    (photos / "Li Wei" / "2020").mkdir(parents=True)
    for name, seed in (("a.PNG", 1), ("Li Wei/b.png", 2), ("Li Wei/2020/c.png", 3)):
        Image.fromarray(pixels(seed)).save(photos / name, "PNG")
    for name, data in (("bad.jpg", b"\xff\xd8 no"), ("empty.png", b""), ("notes.txt", b"no"), ("._a.PNG", b"no")):
        (photos / name).write_bytes(data)
    one, output = f"file://{photos}/a.PNG", ["--output", f"file://{tmp_path}/e.npz"]
    assert main(["embed", *options, "--images", str(photos), one, "--batch-size", "2", *output]) == 0
    said = capsys.readouterr()
    assert "4 embeddings of 64 numbers" in said.out
    lines = said.err.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["left out", "bad.jpg", "unreadable"],
        ["left out", "empty.png", "unreadable"],
    ]
    with np.load(tmp_path / "e.npz", allow_pickle=False) as saved:
        assert saved["names"].tolist() == ["Li Wei/2020/c.png", "Li Wei/b.png", "a.PNG", one]
        assert np.allclose(saved["embeddings"], model.embed([pixels(seed) for seed in (3, 2, 1, 1)]), atol=1e-5)
    inside = str(photos / "Li Wei")
    assert main(["embed", *options, "--images", str(photos), inside + "/", *output]) == 0
    assert f"left out: {photos}/bad.jpg: unreadable" in capsys.readouterr().err
    with np.load(tmp_path / "e.npz", allow_pickle=False) as saved:
        of_all = [f"{photos}/{name}" for name in ("Li Wei/2020/c.png", "Li Wei/b.png", "a.PNG")]
        assert saved["names"].tolist() == [*of_all, f"{inside}/2020/c.png", f"{inside}/b.png"]
    (tmp_path / "none" / "x").mkdir(parents=True)
    for folder, message in (("none", "no picture: .*none: none could be taken"), ("absent", "absent.*does not exist")):
        with pytest.raises(AppError, match=message):
            main(["embed", *options, "--images", str(tmp_path / folder), "--output", str(tmp_path / "x.npz")])
    assert not (tmp_path / "x.npz").exists()


def test_faces_are_aligned_on_demand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(build_backbone("r10_small", embedding_size=64, image_size=112).state_dict(), tmp_path / "m.pt")
    plain, aligning = (
        load_model(tmp_path / "m.pt", backbone="r10_small", embedding_size=64, align=align)
        for align in ("none", "detector")
    )
    face = Image.fromarray(decode_image(load_faces()[0][0])).resize((92, 112))
    photo = Image.new("RGB", (400, 300), (120, 120, 120))
    photo.paste(face.resize((138, 168)), (40, 60))
    expected = align_face(photo, shared_detector().faces(photo)[0])
    assert np.allclose(aligning.embed(photo), plain.embed(expected), atol=1e-5)
    # The same face elsewhere in the picture is the same to one, and not to the other.
    moved = Image.new("RGB", (400, 300), (120, 120, 120))
    moved.paste(face.resize((138, 168)), (200, 100))
    assert 1 - aligning.similarity(photo, moved) < 0.5 * (1 - plain.similarity(photo, moved))
    with pytest.raises(PhotographError, match=r"picture 1: without a face: none found"):
        aligning.embed([photo, pixels(7, 112, 112)])
