"""The model as a function of pictures: whatever form they come in, the same face has the same embedding."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.backbones.registry import build_backbone
from app.data.prepare.photograph import PhotographError
from app.evaluate import FaceModel, load_model
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
    forms = [array, image, tmp_path / "a.png", str(tmp_path / "a.png"), f"file://{tmp_path}/a.png", buffer.getvalue()]
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
