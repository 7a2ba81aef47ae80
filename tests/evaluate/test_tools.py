"""IJB against loops written from the protocol, alignment, and the small tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from app import storage
from app.backbones.registry import build_backbone
from app.data.decode import encode_jpeg
from app.data.recordio import RecordError
from app.errors import AppError
from app.evaluate import alignment, flops, ijb
from app.evaluate.__main__ import main
from app.evaluate.judgement import judge
from app.face_points import TEMPLATE
from tests.jobs import write_faces


def make_ijb(url: str, images: int = 24) -> None:
    """A tiny set in the published layout: 6 people, 2 templates each, 2 images a template in 1 or 2 media."""
    generator = np.random.default_rng(0)
    faces, points = [], []
    for i in range(images):
        picture = generator.integers(0, 255, (150, 130, 3), dtype=np.uint8)
        storage.write_bytes(f"{url}/loose_crop/{i}.jpg", encode_jpeg(picture))
        template, media = i // 2 + 1, (i if i % 4 < 2 else i // 2) + 100
        faces.append(f"{i}.jpg {template} {media}")
        moved = TEMPLATE + 10 + generator.normal(0, 1, (5, 2))
        points.append(f"{i}.jpg " + " ".join(f"{v:.3f}" for v in moved.ravel()) + f" {generator.uniform(0.5, 1):.4f}")
    templates = images // 2
    pairs = [
        f"{a} {b} {int((a - 1) // 2 == (b - 1) // 2)}" for a in range(1, templates) for b in range(a + 1, templates + 1)
    ]
    for name, lines in [("face_tid_mid", faces), ("template_pair_label", pairs), ("name_5pts_score", points)]:
        storage.write_bytes(f"{url}/meta/ijbc_{name}.txt", "\n".join(lines).encode())


def test_templates_and_scores_are_those_of_the_loops(tmp_path: Path) -> None:
    make_ijb(str(tmp_path))
    metadata = ijb.load_metadata(str(tmp_path), "ijbc")
    generator = np.random.default_rng(1)
    person = (metadata.templates - 1) // 2
    centres = generator.normal(size=(6, 8))
    plain = (centres[person] + generator.normal(0, 0.7, (24, 8))).astype(np.float32)
    flipped = (centres[person] + generator.normal(0, 0.7, (24, 8))).astype(np.float32)
    pooled_units = ijb.pool_templates(ijb.combine(plain, flipped, metadata), metadata)
    result = ijb.tar_at_fars(ijb.score_pairs(*pooled_units, metadata.pairs), metadata.issame)
    # The protocol as loops: media averaged, templates summed and normalised, cosine of pairs, TAR read off the curve.
    weighted = (plain + flipped) * metadata.faceness[:, None]
    pooled = {}
    for template in np.unique(metadata.templates):
        rows = metadata.templates == template
        total = sum(weighted[rows & (metadata.media == m)].mean(0) for m in np.unique(metadata.media[rows]))
        pooled[template] = total / np.linalg.norm(total)
    scores = np.array([pooled[a] @ pooled[b] for a, b in metadata.pairs])
    ids, templates = ijb.pool_templates(weighted.astype(np.float32), metadata)
    for template, unit in zip(ids, templates, strict=True):
        np.testing.assert_allclose(unit, pooled[template], rtol=1e-5)
    thresholds = np.sort(scores)[::-1]
    far = np.array([(scores[~metadata.issame] >= t).mean() for t in thresholds])
    tar = np.array([(scores[metadata.issame] >= t).mean() for t in thresholds])
    assert result["1e-01"] == pytest.approx(tar[np.abs(far - 0.1) == np.abs(far - 0.1).min()].max())
    assert set(result) == {f"1e-0{n}" for n in range(1, 7)}
    assert 0 < result["1e-01"] <= 1
    bare = ijb.combine(plain, flipped, metadata, use_flip=False, use_norm=False, use_faceness=False)
    np.testing.assert_allclose(bare, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-6)


def test_alignment_brings_the_points_to_their_places() -> None:
    angle, scale, shift = 0.3, 1.7, np.array([20.0, -4.0])
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = TEMPLATE @ rotation.T + shift
    transform = alignment.similarity(points, TEMPLATE)
    np.testing.assert_allclose(points @ transform[:, :2].T + transform[:, 2], TEMPLATE, atol=1e-8)
    # A white dot on each point is where it should be in the aligned picture.
    image = np.zeros((300, 300, 3), dtype=np.uint8)
    moved = points + 60
    for x, y in moved:
        image[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3] = 255
    aligned = alignment.align(image, moved)
    for x, y in TEMPLATE:
        assert aligned[round(y), round(x), 0] > 100


def test_metadata_that_does_not_fit_is_named(tmp_path: Path) -> None:
    make_ijb(str(tmp_path))
    path = tmp_path / "meta" / "ijbc_template_pair_label.txt"
    path.write_text("1 2 1\n1 99 0\n")
    with pytest.raises(RecordError, match=r"templates without an image: \[99\]"):
        ijb.load_metadata(str(tmp_path), "ijbc")
    path.write_text("1 2\n")
    with pytest.raises(RecordError, match="line 1 has 2 columns, not 3"):
        ijb.load_metadata(str(tmp_path), "ijbc")


def test_the_tools_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "b.pth"
    torch.save(build_backbone("r10_small", embedding_size=32).state_dict(), weights)
    model = ["--model", str(weights), "--backbone", "r10_small", "--embedding-size", "32"]
    make_ijb(str(tmp_path / "ijb"))
    outputs = [
        "--output",
        str(tmp_path / "ijb.json"),
        "--scores",
        str(tmp_path / "s.npy"),
        "--roc",
        str(tmp_path / "r.png"),
    ]
    assert main(["ijb", *model, "--data", str(tmp_path / "ijb"), *outputs]) == 0
    out = capsys.readouterr().out
    assert "TAR@FAR=1e-04" in out
    assert "| Methods | 1e-06 |" in out
    assert np.load(tmp_path / "s.npy").shape == (66,)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    write_faces(str(tmp_path / "set"), classes=3, per_class=5)
    assert main(["embed", *model, "--data", str(tmp_path / "set"), "--output", str(tmp_path / "e.npz")]) == 0
    saved = np.load(tmp_path / "e.npz")
    assert saved["embeddings"].shape == (15, 32)
    assert saved["labels"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    with pytest.raises(AppError, match="--data DATASET, or --images"):
        main(["embed", *model, "--output", str(tmp_path / "x.npz")])
    with pytest.raises(AppError, match="--flip and --align are for --images"):
        main(["embed", *model, "--data", str(tmp_path / "set"), "--output", str(tmp_path / "x.npz"), "--flip"])
    assert not (tmp_path / "x.npz").exists()
    face = tmp_path / "ijb" / "loose_crop" / "0.jpg"
    capsys.readouterr()
    assert main(["similarity", *model, str(face), str(face)]) == 0
    assert "cosine 1.0000, squared distance 0.0000" in capsys.readouterr().out


def test_two_faces_are_judged_by_the_last_verification_of_the_model(tmp_path: Path) -> None:
    sets = {"lfw": {"threshold": 1.2}, "mine": {"threshold": 0.5}, "odd": {"threshold": "x"}}
    report = tmp_path / "run" / "verification" / "report.json"
    report.parent.mkdir(parents=True)
    for content, expected in (
        (
            json.dumps({"sets": sets}),
            [
                "taken for one person by the threshold of lfw: cosine 0.4000, squared distance 1.2000",
                "taken for two people by the threshold of mine: cosine 0.7500, squared distance 0.5000",
            ],
        ),
        ("{", []),
        ("[]", []),
        ('{"sets": []}', []),
    ):
        report.write_text(content)
        for model in ("run", "run/", "run/model.pt", "run/model.onnx", "run/checkpoints"):
            assert judge(f"{tmp_path}/{model}", 0.5) == expected
    report.unlink()
    assert judge(f"{tmp_path}/run", 0.5) == []


@pytest.mark.parametrize(
    ("name", "parameters", "giga"), [("r18", 24_025_600, 2.6), ("r50", 43_590_848, 6.3), ("mbf", 2_059_520, 0.44)]
)
def test_flops_and_parameters_are_the_published_ones(name: str, parameters: int, giga: float) -> None:
    operations, counted = flops.count(name)
    assert counted == parameters
    assert operations / 1e9 == pytest.approx(giga, rel=0.05)
