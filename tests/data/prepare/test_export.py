"""Records back to images: the bytes of each, under its class and key, which make the same dataset again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from app.data.dataset import open_dataset
from app.data.prepare.tools import read_all
from app.prepare import main
from tests.jobs import write_faces


def test_every_image_comes_back_byte_by_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_faces(str(tmp_path / "set"), classes=3, per_class=2)
    assert main(["export", "--data", str(tmp_path / "set"), "--output", str(tmp_path / "out")]) == 0
    assert "6 images of 3 people" in capsys.readouterr().out
    found = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.jpg")}
    expected = {}
    for position, header, image, _ in read_all(open_dataset(str(tmp_path / "set"))):
        assert header is not None
        expected[f"{position // 2:07d}/{position + 1:08d}.jpg"] = image
    assert found == expected


def test_people_come_back_under_their_names_and_no_name_leads_elsewhere(tmp_path: Path) -> None:
    names = [
        "Zoë M. d'Or",
        "安娜",
        "../up",
        "..",
        ".hidden",
        "a/b",
        "Ann",
        "ann",
        "",
        "0000001",
        "x\ny",
        "n" * 300,
        "end.",
    ]
    write_faces(str(tmp_path / "set"), classes=len(names) + 1, per_class=1)
    (tmp_path / "set" / "people.json").write_text(json.dumps(names))
    assert main(["export", "--data", str(tmp_path / "set"), "--output", str(tmp_path / "a" / "out")]) == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    found = {path.name: [file.name for file in path.iterdir()] for path in (tmp_path / "a" / "out").iterdir()}
    folders = [*names[:2], *(f"{label:07d}" for label in range(2, len(names) + 1))]
    assert found == {folder: [f"{label + 1:08d}.jpg"] for label, folder in enumerate(folders)}


def test_a_folder_of_people_comes_back_as_the_same_dataset(tmp_path: Path) -> None:
    for person in ("Li Wei", "ann"):
        (tmp_path / "photos" / person).mkdir(parents=True)
        Image.new("RGB", (40, 30), (len(person), 90, 20)).save(tmp_path / "photos" / person / "1.png")
    for step, (source, data, back) in enumerate((("photos", "set", "back"), ("back", "again", "twice"))):
        more = ["--size", "32", "--align", "none"] if step == 0 else ["--size", "32"]
        assert main(["folder", "--source", str(tmp_path / source), "--output", str(tmp_path / data), *more]) == 0
        assert main(["export", "--data", str(tmp_path / data), "--output", str(tmp_path / back)]) == 0
    assert (tmp_path / "again" / "people.json").read_bytes() == (tmp_path / "set" / "people.json").read_bytes()
    assert sorted(path.parent.name for path in (tmp_path / "twice").rglob("*.jpg")) == ["Li Wei", "ann"]
