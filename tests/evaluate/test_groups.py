"""Figures by group and by quality, against counts by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from app import prepare
from app.backbones.registry import build_backbone
from app.errors import AppError
from app.evaluate.__main__ import main
from app.evaluate.groups import GroupsError, compare_groups, format_groups, threshold_at
from app.evaluate.metrics import verification_metrics
from app.evaluate.quality import REJECTS, error_against_reject, quality_report
from app.evaluate.verification import SetResult
from tests.data.prepare.pictures import encode, put, scene


def result(name: str, genuine: list[float], impostor: list[float]) -> SetResult:
    distances = np.array([d for both in zip(genuine, impostor, strict=True) for d in both])
    issame = np.array([True, False] * len(genuine))
    return SetResult(name, verification_metrics(distances, issame), 1.0, distances, issame)


# Ten pairs of a kind each. Of the 20 impostors a tenth may be accepted: 0.5 and 0.6, the threshold is the third, 1.0.
WELL = result("well", [0.1] * 9 + [0.9], [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9])
BADLY = result("badly", [0.1] * 6 + [1.0, 1.0, 1.2, 1.4], [0.5, 0.6, 1.5, 1.5, 1.5, 1.6, 1.6, 1.6, 1.6, 1.6])


def test_groups_are_judged_by_one_threshold() -> None:
    report = compare_groups([WELL, BADLY], 0.1)
    assert report.threshold == 1.0
    well, badly = report.groups
    assert (well.fpr, well.fnr, well.accuracy_at_threshold) == (0, 0, 1)
    assert (badly.fpr, badly.fnr, badly.accuracy_at_threshold) == (0.2, 0.4, 0.7)
    over = report.summary()["over_groups"]
    assert over["fpr"] == pytest.approx({"mean": 0.1, "std": 0.1, "spread": 0.2})
    assert over["fnr"] == pytest.approx({"mean": 0.2, "std": 0.2, "spread": 0.4})
    assert report.summary()["skewed_error_ratio"] == pytest.approx((1 - badly.accuracy) / (1 - well.accuracy))
    clear = compare_groups([BADLY, result("clear", [0.1] * 10, [3.0] * 10)], 0.1)
    assert clear.summary()["skewed_error_ratio"] is None  # one group has no error
    assert well.accuracy == WELL.metrics.accuracy
    assert "spread" in format_groups(report)
    swapped = compare_groups([BADLY, result("as badly", *halves(BADLY))], 0.1)
    assert swapped.summary()["skewed_error_ratio"] == 1.0


def halves(of: SetResult) -> tuple[list[float], list[float]]:
    return of.distances[of.issame].tolist(), of.distances[~of.issame].tolist()


def test_what_cannot_be_compared() -> None:
    with pytest.raises(GroupsError, match="1 set found: two or more are needed"):
        compare_groups([WELL], 0.1)
    with pytest.raises(GroupsError, match=r"20 impostor pairs resolve shares from 0\.05"):
        compare_groups([WELL, BADLY], 0.01)
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(GroupsError):
            threshold_at(np.arange(10.0), share)


def test_ties_accept_no_more_than_is_allowed() -> None:
    distances = np.array([0.5] * 5 + [1.0] * 5)
    assert threshold_at(distances, 0.3) == 0.5  # below it nothing lies: a sixth of all would be five
    assert (distances < threshold_at(distances, 0.5)).sum() == 5


def test_error_against_reject_is_that_of_the_loop() -> None:
    generator = np.random.default_rng(0)
    issame = generator.random(400) < 0.5
    distances, quality = generator.uniform(0, 4, 400), generator.uniform(0, 1, 400)
    rates = error_against_reject(distances, issame, quality, 1.5)
    pairs = sorted(zip(quality[issame], distances[issame], strict=True))
    for share, rate in zip(REJECTS, rates, strict=True):
        rest = pairs[int(share * len(pairs) + 1e-9) :]
        assert rate == pytest.approx(sum(d >= 1.5 for _, d in rest) / len(rest))


def test_a_quality_that_knows_and_one_that_does_not() -> None:
    issame = np.array([True, False] * 100)
    distances = np.where(issame, 0.5, 3.0)
    distances[:40:2] = 3.5  # 20 of 100 genuine pairs are missed
    knows = np.where(distances > 3.2, 1.0, 2.0)
    norms = np.stack([np.full(200, 5.0), knows], axis=1)  # the worse picture counts
    report = quality_report(distances, issame, norms, 0.01)
    assert report["fnr"][0] == pytest.approx(0.2)
    assert report["fnr"][REJECTS.index(0.1)] == pytest.approx(10 / 90)
    assert report["fnr"][REJECTS.index(0.2)] == 0
    assert report["fnr"] == report["best"]
    blind = quality_report(distances, issame, norms[:, :1].repeat(2, axis=1), 0.01)
    assert blind["area_best"] < blind["area_at_random"] == pytest.approx(0.2)


def test_from_the_layout_of_rfw_to_the_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """data/<Group>/<person>/<person>_0001.jpg and txts/<Group>/<Group>_pairs.txt, as RFW has them."""
    for number, group in enumerate(("African", "Asian")):
        lines = []
        for person in range(6):
            for picture in (1, 2):
                name = f"m.0{person}/m.0{person}_{picture:04d}.jpg"
                put(tmp_path / "data" / group / name, encode(scene(100 * number + 10 * person + picture), "JPEG"))
            lines += [f"m.0{person}\t1\t2", f"m.0{person}\t1\tm.0{(person + 1) % 6}\t2"]
        put(tmp_path / "txts" / group / f"{group}_pairs.txt", "\n".join(lines).encode())
        where = ["--source", f"{tmp_path}/data/{group}", "--pairs", f"{tmp_path}/txts/{group}/{group}_pairs.txt"]
        assert prepare.main(["pairs", *where, "--output", f"{tmp_path}/sets/{group}.bin"]) == 0
    torch.manual_seed(0)
    torch.save(build_backbone("r10_small", embedding_size=32).state_dict(), tmp_path / "b.pth")
    model = ["--model", f"{tmp_path}/b.pth", "--backbone", "r10_small", "--embedding-size", "32", "--fpr", "0.2"]
    where = ["--data", f"{tmp_path}/sets", "--output", f"{tmp_path}/out.json"]
    assert main(["groups", *model, *where]) == 0
    assert set(json.loads((tmp_path / "out.json").read_text())["groups"]) == {"African", "Asian"}
    fpr = {name: group["fpr"] for name, group in json.loads((tmp_path / "out.json").read_text())["groups"].items()}
    assert 0 < (fpr["African"] + fpr["Asian"]) / 2 <= 0.2
    capsys.readouterr()
    assert main(["quality", *model, *where]) == 0
    assert "African: FNR at FPR 0.2" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out.json").read_text())["Asian"]["fnr"]) == len(REJECTS)
    with pytest.raises(AppError, match=r"txts: no \.bin file there"):
        main(["groups", *model, "--data", f"{tmp_path}/txts"])
