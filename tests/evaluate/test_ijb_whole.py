"""The whole IJB-C command on a synthetic set in the published layout, against the protocol written as plain loops."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.backbones.registry import build_backbone
from app.data.decode import encode_jpeg
from app.face_points import TEMPLATE
from tests.jobs import ROOT, environment

PEOPLE, TEMPLATES = 8, 3
Vectors = dict[int, NDArray[np.float64]]


def write_set(folder: Path) -> None:
    """People as patterns in pictures of their own sizes, turned and scaled; photographs and frames of videos mixed."""
    generator = np.random.default_rng(0)
    common, own = generator.integers(0, 255, (7, 7, 3)), generator.integers(0, 255, (PEOPLE, 7, 7, 3))
    patterns = (0.85 * common + 0.15 * own).astype(np.uint8)  # people are much alike
    (folder / "loose_crop").mkdir()
    (folder / "meta").mkdir()
    faces, points, number = [], [], 0
    for template in range(1, PEOPLE * TEMPLATES + 1):
        for image in range(1 + template % 4):
            number += 1
            height, width = generator.integers(120, 260, 2)
            angle, scale = generator.uniform(-0.5, 0.5), generator.uniform(0.7, 1.6)
            turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            shift = np.array([width, height]) / 2 - turn @ np.array([56, 56])
            face = cv2.resize(patterns[(template - 1) % PEOPLE], (112, 112), interpolation=cv2.INTER_CUBIC)
            picture = cv2.warpAffine(face, np.hstack([turn, shift[:, None]]), (int(width), int(height)))
            noise = generator.normal(0, 50, picture.shape)
            jpeg = encode_jpeg(np.clip(picture + noise, 0, 255).astype(np.uint8))
            (folder / "loose_crop" / f"{number}.jpg").write_bytes(jpeg)
            media = template * 10 + (image if image < 2 else 2)  # from the third on: frames of one video
            faces.append(f"{number}.jpg {template} {media}")
            placed = TEMPLATE @ turn.T + shift + generator.normal(0, 2, (5, 2))
            score = generator.uniform(0.5, 1)
            points.append(f"{number}.jpg {' '.join(f'{v:.3f}' for v in placed.ravel())} {score:.4f}")
    every = range(1, PEOPLE * TEMPLATES + 1)
    pairs = [f"{a} {b} {int((a - b) % PEOPLE == 0)}" for a in every for b in every if a < b]
    for name, lines in [("face_tid_mid", faces), ("name_5pts_score", points), ("template_pair_label", pairs)]:
        (folder / "meta" / f"ijbc_{name}.txt").write_text("\n".join(lines) + "\n")
    for name, templates in [
        ("gallery_G1", range(1, PEOPLE // 2 + 1)),
        ("gallery_G2", range(PEOPLE // 2 + 1, PEOPLE + 1)),
        ("probe_mixed", range(PEOPLE + 1, PEOPLE * TEMPLATES + 1)),
    ]:
        rows = [f"{template},{(template - 1) % PEOPLE + 100},img/x.jpg" for template in templates]
        (folder / "meta" / f"ijbc_1N_{name}.csv").write_text("\n".join(["TEMPLATE_ID,SUBJECT_ID,FILENAME", *rows]))


def rows_of(folder: Path, name: str) -> list[list[str]]:
    return [line.split() for line in (folder / "meta" / f"ijbc_{name}.txt").read_text().splitlines()]


def templates_by_loops(folder: Path, model: torch.nn.Module) -> Vectors:
    """Template vectors as the protocol says: least squares by lstsq, pixels by OpenCV, one picture at a time."""
    sums: dict[int, dict[int, list[NDArray[np.float64]]]] = {}
    for face, row in zip(rows_of(folder, "face_tid_mid"), rows_of(folder, "name_5pts_score"), strict=True):
        read = cv2.imread(str(folder / "loose_crop" / row[0]))
        assert read is not None
        picture = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
        points = np.array(row[1:11], dtype=float).reshape(5, 2)
        # x' = a x - b y + c, y' = b x + a y + d
        equations = [[x, -y, 1, 0] for x, y in points] + [[y, x, 0, 1] for x, y in points]
        a, b, c, d = np.linalg.lstsq(np.array(equations), TEMPLATE.T.ravel(), rcond=None)[0]
        aligned = cv2.warpAffine(picture, np.array([[a, -b, c], [b, a, d]]), (112, 112))
        with torch.inference_mode():
            both = [
                model(torch.tensor(view.transpose(2, 0, 1)[None] / 127.5 - 1, dtype=torch.float32))[0].double().numpy()
                for view in (aligned, aligned[:, ::-1])
            ]
        sums.setdefault(int(face[1]), {}).setdefault(int(face[2]), []).append(sum(both) * float(row[11]))
    found = {}
    for template, media in sums.items():
        total = sum(np.mean(vectors, axis=0) for vectors in media.values())
        found[template] = total / np.linalg.norm(total)
    return found


def tar_by_loops(scores: NDArray[np.float32], same: NDArray[np.bool_], level: float) -> float:
    curve = [(np.mean(scores[~same] >= t), np.mean(scores[same] >= t)) for t in [np.inf, *np.unique(scores)]]
    nearest = min(abs(far - level) for far, _ in curve)
    return float(max(tar for far, tar in curve if abs(far - level) <= nearest + 1e-12))


def ranks_by_loops(vectors: Vectors, gallery: range, probes: range, rank: int) -> float:
    """Of the probes whose person is in the gallery: how many find it among the first ``rank``."""
    hits = []
    for probe in probes:
        person = (probe - 1) % PEOPLE + 1  # the template of that person in the galleries
        if person not in gallery:
            continue
        order = sorted(gallery, key=lambda entry: -float(vectors[probe] @ vectors[entry]))
        hits.append(person in order[:rank])
    return float(np.mean(hits))


def recall_by_loops(vectors: Vectors, probes: range, level: float) -> float:
    """insightface's figure: the threshold lets ``ceil(level * probes)`` impostor pairs reach it."""
    own: list[float] = []
    others: list[float] = []
    for probe in probes:
        for entry in range(1, PEOPLE + 1):
            score = float(vectors[probe] @ vectors[entry])
            (own if entry == (probe - 1) % PEOPLE + 1 else others).append(score)
    threshold = sorted(others, reverse=True)[math.ceil(level * len(probes)) - 1]
    return float(np.mean([score > threshold for score in own]))


@pytest.mark.slow  # two processes of torchrun
def test_the_command_says_what_plain_loops_say(tmp_path: Path) -> None:
    write_set(tmp_path)
    torch.manual_seed(0)
    model = build_backbone("r10_small", embedding_size=32)
    for _ in range(3):  # statistics of its BatchNorms
        model(torch.randn(16, 3, 112, 112))
    model.eval()
    torch.save(model.state_dict(), tmp_path / "b.pth")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "app.evaluate", "ijb", "--data", str(tmp_path), "--set", "ijbc", "--batch-size", "7"),
            *("--model", str(tmp_path / "b.pth"), "--backbone", "r10_small", "--embedding-size", "32"),
            *(
                "--output",
                str(tmp_path / "o.json"),
                "--scores",
                str(tmp_path / "s.npy"),
                "--roc",
                str(tmp_path / "r.png"),
            ),
        ],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    vectors = templates_by_loops(tmp_path, model)
    pairs = np.array(rows_of(tmp_path, "template_pair_label"), dtype=int)
    scores, same = np.load(tmp_path / "s.npy"), pairs[:, 2] == 1
    np.testing.assert_allclose(scores, [vectors[a] @ vectors[b] for a, b, _ in pairs], atol=5e-4)
    report = json.loads((tmp_path / "o.json").read_text())
    for level, tar in report["tar_at_far"].items():
        assert tar == pytest.approx(tar_by_loops(scores, same, float(level)), abs=1e-9), level
    assert 0.2 < report["tar_at_far"]["1e-01"] < 1  # the set is neither hopeless nor easy
    first, second = range(1, PEOPLE // 2 + 1), range(PEOPLE // 2 + 1, PEOPLE + 1)
    probes = range(PEOPLE + 1, PEOPLE * TEMPLATES + 1)
    found = report["identification"]
    for rank in (1, 5, 10):
        mean = np.mean([ranks_by_loops(vectors, gallery, probes, rank) for gallery in (first, second)])
        assert found[f"rank-{rank}"] == pytest.approx(mean), rank
        assert found[f"G1+G2 rank-{rank}"] == pytest.approx(
            ranks_by_loops(vectors, range(1, PEOPLE + 1), probes, rank)
        ), rank
    for level in (0.01, 0.1):
        assert found[f"G1+G2 recall@{level}"] == pytest.approx(recall_by_loops(vectors, probes, level)), level
    assert f"rank-1: {found['rank-1']:.4f}" in done.stdout
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
