"""Datasets made one, and a dataset that was written badly made sound: every record is where it belongs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app import prepare
from app.data.dataset import open_dataset
from app.data.prepare.errors import PrepareError
from app.data.prepare.folder import prepare_folder
from app.data.prepare.tools import read_all
from app.data.record_writer import RecordWriter
from app.data.recordio import ImageHeader, pack_image
from app.errors import AppError
from tests.data.prepare.pictures import encode, put, scene


def rows(url: Path) -> list[tuple[int, bytes]]:
    return [(int(header.labels[0]), image) for _, header, image, _ in read_all(open_dataset(str(url))) if header]


def make(root: Path, name: str, people: dict[str, list[int]]) -> str:
    """A dataset of scenes by person."""
    for person, seeds in people.items():
        for seed in seeds:
            put(root / f"photos-{name}" / person / f"{seed}.jpg", encode(scene(seed), "JPEG"))
    prepare_folder(str(root / f"photos-{name}"), str(root / name))
    return str(root / name)


@pytest.mark.parametrize(
    ("people", "expected", "names"),
    [
        ("separate", [(0, 1), (0, 2), (1, 3), (2, 4), (2, 5), (3, 6)], ["anna", "ben", "anna (2)", "zoe"]),
        ("shared", [(0, 1), (0, 2), (0, 4), (0, 5), (1, 3), (2, 6)], ["anna", "ben", "zoe"]),
    ],
)
def test_datasets_become_one(
    people: str, expected: list[tuple[int, int]], names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make(tmp_path, "one", {"anna": [1, 2], "ben": [3]})
    two = make(tmp_path, "two", {"anna": [4, 5], "zoe": [6]})
    where = ["--data", one, "--data", two, "--output", f"{tmp_path}/both", "--people", people]
    assert prepare.main(["merge", *where]) == 0
    assert f"6 images of {len(names)} people from 2 datasets" in capsys.readouterr().out
    assert rows(tmp_path / "both") == [(label, encode(scene(seed), "JPEG")) for label, seed in expected]
    assert json.loads((tmp_path / "both" / "people.json").read_text()) == names
    assert (tmp_path / "both" / "property").read_text() == f"{len(names)},112,112"
    assert prepare.main(["check", "--data", f"{tmp_path}/both"]) == 0


def test_what_cannot_be_merged_says_why_and_nothing_is_written(tmp_path: Path) -> None:
    one = make(tmp_path, "one", {"anna": [1, 2], "ben": [3]})
    two = make(tmp_path, "two", {"zoe": [6]})
    (tmp_path / "two" / "people.json").unlink()
    output = ["--output", f"{tmp_path}/both"]
    for arguments, message in (
        (["--data", one], "give --data twice"),
        (["--data", one, "--data", two, "--people", "shared"], r"two: no people.json there"),
        (["--data", one, "--data", f"{tmp_path}/absent"], "absent/train.rec.*does not exist"),
    ):
        with pytest.raises(AppError, match=message):
            prepare.main(["merge", *arguments, *output])
    with pytest.raises(PrepareError, match="the output is one of the datasets"):
        prepare.main(["merge", "--data", one, "--data", two, "--output", f"{one}/"])
    assert not (tmp_path / "both").exists()
    assert prepare.main(["merge", "--data", one, "--data", two, *output]) == 0
    assert [label for label, _ in rows(tmp_path / "both")] == [0, 0, 1, 2]
    assert not (tmp_path / "both" / "people.json").exists()
    (tmp_path / "one" / "people.json").write_text('["anna"]')
    with pytest.raises(PrepareError, match="2 classes, but people\\.json has 1 names"):
        prepare.main(["merge", "--data", one, "--data", two, "--output", f"{tmp_path}/more"])


def damaged(url: Path) -> None:
    """As im2rec leaves it: the header counts six images of three people; key 2 was skipped, key 5 is no picture."""
    with RecordWriter(f"{url}/train.rec") as writer:
        writer.write(0, pack_image(ImageHeader((7.0, 10.0), is_array=True), b""))
        for key, label in ((1, 0), (3, 0), (4, 2), (5, 2), (6, 2)):
            image = b"no picture" if key == 5 else encode(scene(key), "JPEG")
            writer.write(key, pack_image(ImageHeader((float(label),), key), image))
        for label, (start, stop) in enumerate(((1, 4), (4, 4), (4, 7))):
            header = ImageHeader((float(start), float(stop)), 7 + label, is_array=True)
            writer.write(7 + label, pack_image(header, b""))
    (url / "people.json").write_text('["anna", "nobody", "zoe"]')


def test_a_header_that_announces_too_much_is_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(tmp_path / "bad")
    with pytest.warns(UserWarning, match="announces 6 images, the index has 5"):
        assert prepare.main(["mend", "--data", f"{tmp_path}/bad", "--output", f"{tmp_path}/good"]) == 0
    said = capsys.readouterr().out
    assert "4 images of 2 people" in said
    assert "left out: 1 unreadable; listed in skipped.csv" in said
    assert "1 classes without an image went away" in said
    expected = [(0, 1), (0, 3), (1, 4), (1, 6)]
    assert rows(tmp_path / "good") == [(label, encode(scene(key), "JPEG")) for label, key in expected]
    assert json.loads((tmp_path / "good" / "people.json").read_text()) == ["anna", "zoe"]
    assert "key 5,unreadable" in (tmp_path / "good" / "skipped.csv").read_text()
    assert prepare.main(["check", "--data", f"{tmp_path}/good"]) == 0  # and without the warning: pytest would show it
    assert open_dataset(f"{tmp_path}/good").num_classes == 2
    with pytest.raises(PrepareError, match="name another folder"):
        prepare.main(["mend", "--data", f"{tmp_path}/bad", "--output", f"{tmp_path}/bad/"])
