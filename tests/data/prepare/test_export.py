"""Records back to images: the bytes of each, under its class and key, which make the same dataset again."""

from __future__ import annotations

from pathlib import Path

import pytest

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
