"""Whose records are images and whose identities, where the header's float32 numbers cannot say it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from app.data.dataset import open_dataset
from app.data.decode import encode_jpeg
from app.data.record_writer import RecordWriter, _rounded_down, write_identity_layout
from app.data.recordio import ImageHeader, RecordError, pack_image
from app.prepare import main
from tests.jobs import write_faces

JPEG = encode_jpeg(np.zeros((32, 32, 3), np.uint8))


def write_sparse(folder: Path, count: int, classes: int, labels: tuple[float, float]) -> None:
    """A file whose last image has key ``count``; the others between are left out, as face2rec2 does."""
    with RecordWriter(str(folder / "train.rec")) as writer:
        writer.write(0, pack_image(ImageHeader(labels, is_array=True), b""))
        for key in (1, count - 1, count):
            writer.write(key, pack_image(ImageHeader((0.0,), key), JPEG))
        for label in range(classes):
            header = ImageHeader((1.0, float(count + 1)), count + 1 + label, is_array=True)
            writer.write(count + 1 + label, pack_image(header, b""))


@pytest.mark.filterwarnings("ignore:.*the header announces")
@pytest.mark.parametrize("count", [5, 2**24 - 3, 2**24 - 1, 2**24, 2**24 + 1, 2**24 + 2, 2**25 + 3, 42_474_557])
@pytest.mark.parametrize("classes", [1, 2, 9, 10])
@pytest.mark.parametrize("rounding", ["nearest", "down"])
def test_counts_are_exact_above_what_float32_holds(tmp_path: Path, count: int, classes: int, rounding: str) -> None:
    exact = (count + 1, count + 1 + classes)
    rounded = [float(np.float32(number)) if rounding == "nearest" else _rounded_down(number) for number in exact]
    write_sparse(tmp_path, count, classes, (rounded[0], rounded[1]))
    dataset = open_dataset(str(tmp_path))
    assert dataset.keys.tolist() == [1, count - 1, count]
    assert dataset.num_classes == classes
    assert len(dataset.identity_starts) == classes


def test_what_the_writer_rounds_is_never_above_the_number() -> None:
    for number in (1, 2**24, 2**24 + 1, 2**24 + 3, 17_451_890, 42_474_558, 44_534_464, 2**31 + 1):
        assert number - float(np.spacing(np.float32(number))) < _rounded_down(number) <= number
        assert np.float32(_rounded_down(number)) == _rounded_down(number)


@pytest.mark.parametrize(
    ("announced", "behind"), [((5.0, 7.0), "4 records from key 5"), ((9.0, 9.0), ""), ((9.0, 11.0), "")]
)
def test_images_behind_those_of_the_header_are_said(
    tmp_path: Path, announced: tuple[float, float], behind: str
) -> None:
    with RecordWriter(str(tmp_path / "train.rec")) as writer:
        writer.write(0, pack_image(ImageHeader(announced, is_array=True), b""))
        for key in range(1, 9):
            writer.write(key, pack_image(ImageHeader((float(key % 2),), key), JPEG))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(open_dataset(str(tmp_path))) == announced[0] - 1
    assert [behind in str(warning.message) for warning in said] == [True] * bool(behind)


@pytest.mark.parametrize("unordered", [False, True])
def test_images_appended_behind_the_identities_are_said(tmp_path: Path, *, unordered: bool) -> None:
    write_faces(str(tmp_path), classes=2, per_class=3)
    rec, idx = tmp_path / "train.rec", tmp_path / "train.idx"
    with RecordWriter(str(tmp_path / "more" / "train.rec")) as writer:
        writer.write(9, pack_image(ImageHeader((0.0,), 9), JPEG))
    lines = [*idx.read_text().splitlines(), f"9\t{rec.stat().st_size}"]
    rec.write_bytes(rec.read_bytes() + (tmp_path / "more" / "train.rec").read_bytes())
    idx.write_text("\n".join(lines[:2] + lines[:1:-1] if unordered else lines) + "\n")
    with pytest.warns(UserWarning, match="1 records from key 9 on lie behind the 6 images that the header announces"):
        assert len(open_dataset(str(tmp_path))) == 6


@pytest.mark.parametrize(
    "labels", [(math.nan, 5.0), (5.0, math.inf), (1e30, 2e30), (0.0, 3.0), (5.0, 2.0), (2.5, 4.0), (-3.0, 1.0)]
)
def test_a_damaged_header_is_told(tmp_path: Path, labels: tuple[float, float]) -> None:
    write_sparse(tmp_path, 5, 2, labels)
    with pytest.raises(RecordError, match="record 0 says that images end at"):
        open_dataset(str(tmp_path))


def test_a_header_that_announces_billions_takes_no_memory(tmp_path: Path) -> None:
    write_sparse(tmp_path, 5, 2, (6.0, 2e9))
    for name, labels in (("a", (6.0, 2e9)), ("b", (2e9, 4e9))):
        (tmp_path / name).mkdir()
        write_sparse(tmp_path / name, 5, 2, labels)
        with pytest.raises(RecordError, match="announces"):
            open_dataset(str(tmp_path / name))


def test_more_classes_than_a_label_can_say_are_refused(tmp_path: Path) -> None:
    labels = range(2**24 + 1)
    with pytest.raises(ValueError, match="float32"), RecordWriter(str(tmp_path / "train.rec")) as writer:
        write_identity_layout(writer, labels, iter(()))


def test_a_lost_index_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_faces(str(tmp_path), classes=3, per_class=4)
    index = tmp_path / "train.idx"
    before = index.read_bytes()
    for damaged in (None, b"0 0 extra words\n", before[:20]):
        index.unlink()
        if damaged:
            index.write_bytes(damaged)
        assert main(["index", "--data", str(tmp_path)]) == 0
        assert index.read_bytes() == before
    assert "16 records" in capsys.readouterr().out
    assert main(["check", "--data", str(tmp_path)]) == 0


@pytest.mark.parametrize("label", [-1.0, math.nan, 2.5, math.inf])
def test_check_finds_labels_that_are_no_class(tmp_path: Path, label: float, capsys: pytest.CaptureFixture[str]) -> None:
    with RecordWriter(str(tmp_path / "train.rec")) as writer:
        for key in range(8):
            writer.write(key, pack_image(ImageHeader((label if key == 5 else float(key % 2),), key), JPEG))
    assert main(["check", "--data", str(tmp_path)]) == 1
    problem = capsys.readouterr().err
    assert "record key 5 " in problem
    assert ("outside 0..1" if label == -1 else "is not a class") in problem
