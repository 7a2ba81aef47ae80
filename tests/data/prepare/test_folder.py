"""A folder as people have it: nothing vanishes in silence, nothing is half written."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from app import prepare, storage
from app.data.dataset import open_dataset
from app.data.decode import decode_image
from app.data.prepare.duplicates import difference_hash, find_duplicates
from app.data.prepare.errors import PrepareError
from app.data.prepare.folder import FaceOptions, FolderOptions, prepare_folder
from app.data.prepare.foreign import HEIF_ENDINGS
from app.data.prepare.orl import load_faces
from app.data.prepare.photograph import ENDINGS, open_photograph
from app.data.prepare.source import Source
from app.data.prepare.tools import read_all
from app.data.record_writer import RecordWriter
from app.storage import StorageError
from tests.data.prepare.pictures import encode, put, scene


def images(folder: Path) -> list[tuple[int, np.ndarray]]:
    rows = read_all(open_dataset(str(folder)))
    return [(int(header.labels[0]), decode_image(data)) for _, header, data, _ in rows if header]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def mixed_folder(root: Path) -> None:
    """Three people: kinds, depths and names mixed, and everything that does not belong there."""
    put(root / "anna" / "1.jpg", encode(scene(1), "JPEG"))
    put(root / "anna" / "2019" / "summer" / "2.gif", encode(scene(2).convert("L"), "GIF"))
    put(root / "anna" / "3.JFIF", encode(scene(3), "JPEG"))
    put(root / "Li Wei" / "a.tiff", encode(scene(4), "TIFF"))
    put(root / "Li Wei" / "b.pgm", encode(scene(5).convert("L"), "PPM"))
    put(root / "李娜" / "#1 [x]::y?*.png", encode(scene(6, 90, 130), "PNG"))
    put(root / "李娜" / "no ending", encode(scene(7), "WEBP"))
    put(root / "anna" / "._1.jpg", b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ")
    put(root / "__MACOSX" / "anna" / "._1.jpg", b"\0\x05\x16\x07")
    put(root / "anna" / "broken.jpg", b"\xff\xd8 nothing")
    put(root / "Li Wei" / "cut.png", encode(scene(8), "PNG")[:300])
    put(root / "anna" / "notes.txt", b"who is who")
    put(root / "anna" / "new.heic", b"\0\0\0\x18ftypheic")
    put(root / "stray.jpg", encode(scene(9), "JPEG"))
    put(root / "only broken" / "1.jpg", b"")
    (root / "nobody").mkdir()


def test_everything_is_taken_or_listed_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed_folder(tmp_path / "photos")
    out = tmp_path / "out"
    assert prepare.main(["folder", "--source", str(tmp_path / "photos"), "--output", str(out)]) == 0
    labels = [label for label, _ in images(out)]
    assert labels == [0, 0, 1, 1, 1, 2, 2]
    assert json.loads((out / "people.json").read_text()) == ["Li Wei", "anna", "李娜"]
    assert {(row["file"], row["reason"]) for row in table(out / "skipped.csv")} == {
        ("anna/._1.jpg", "system file"),
        ("__MACOSX/anna/._1.jpg", "system file"),
        ("anna/broken.jpg", "unreadable"),
        ("Li Wei/cut.png", "unreadable"),
        ("anna/notes.txt", "not a picture"),
        ("anna/new.heic", "unreadable"),
        ("stray.jpg", "in no person's folder"),
        ("only broken/1.jpg", "unreadable"),
        ("only broken/", "person without a picture"),
        ("nobody/", "person without a picture"),
    }
    captured = capsys.readouterr()
    assert "7 images of 3 people" in captured.out
    assert "4 unreadable" in captured.out
    assert "2 people without a picture" in captured.out
    assert "not aligned" in captured.err
    assert prepare.main(["check", "--data", str(out)]) == 0
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size == (7 * 112, 14 + 2 * 112 + 6)


def test_without_the_extra_photographs_of_telephones_are_listed_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "photos" / "anna" / "1.jpg", encode(scene(1), "JPEG"))
    put(tmp_path / "photos" / "anna" / "2.HEIC", encode(scene(2), "HEIF"))
    assert "2 images" in prepare_folder(str(tmp_path / "photos"), str(tmp_path / "with"))
    monkeypatch.setattr("app.data.prepare.folder.ENDINGS", ENDINGS - set(HEIF_ENDINGS))
    assert "1 format not read" in prepare_folder(str(tmp_path / "photos"), str(tmp_path / "without"))
    (row,) = table(tmp_path / "without" / "skipped.csv")
    assert row["detail"] == ".heic is not read: pip install 'arcface-torchx[heif]', and it is"


@pytest.mark.parametrize(
    ("name", "reason", "advice"),
    [
        ("1.PSD", "format not read", "save it as JPEG or PNG"),
        ("1.tga", "format not read", "save it as JPEG or PNG"),
        ("DSC_1.NEF", "format not read", "a camera's raw file: export it as JPEG"),
        ("1.mov", "not a picture", ".mov is not read"),
        ("1.aae", "not a picture", ".aae is not read"),
    ],
)
def test_pictures_of_formats_that_are_not_read_are_told_from_what_is_none(
    tmp_path: Path, name: str, reason: str, advice: str
) -> None:
    put(tmp_path / "photos" / "anna" / "1.jpg", encode(scene(1), "JPEG"))
    put(tmp_path / "photos" / "anna" / name, b"any")
    assert f"1 {reason}" in prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"))
    (row,) = table(tmp_path / "out" / "skipped.csv")
    assert (row["reason"], advice in row["detail"]) == (reason, True)


def test_strict_refuses_and_writes_nothing(tmp_path: Path) -> None:
    mixed_folder(tmp_path / "photos")
    with pytest.raises(PrepareError, match=r"--strict: 8 files would be left out: .*cut\.png: unreadable") as caught:
        prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"), FolderOptions(strict=True))
    assert "and 3 more" in str(caught.value)
    assert list((tmp_path / "out").glob("*")) == []
    put(tmp_path / "sound" / "anna" / "1.jpg", encode(scene(1), "JPEG"))
    put(tmp_path / "sound" / "anna" / "._1.jpg", b"\0\x05\x16\x07")  # no picture is lost with it
    prepare_folder(str(tmp_path / "sound"), str(tmp_path / "out"), FolderOptions(strict=True))


def test_a_second_preparation_leaves_no_old_list(tmp_path: Path) -> None:
    source, out = tmp_path / "photos", tmp_path / "out"
    put(source / "a" / "1.jpg", encode(scene(1), "JPEG"))
    broken = put(source / "a" / "2.jpg", b"no")
    prepare_folder(str(source), str(out))
    assert (out / "skipped.csv").exists()
    broken.unlink()
    prepare_folder(str(source), str(out))
    assert sorted(path.name for path in out.iterdir()) == [
        "people.json",
        "property",
        "sheet.png",
        "train.idx",
        "train.rec",
    ]


def test_nothing_usable_is_an_error_with_the_names(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a" / "1.jpg", b"\xff\xd8 nothing")
    with pytest.raises(PrepareError, match=r"no image can be taken: a/: .*; a/1\.jpg: unreadable"):
        prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"))
    put(tmp_path / "flat" / "1.jpg", encode(scene(1), "JPEG"))
    with pytest.raises(PrepareError, match=r"no images there: .*: 1\.jpg: in no person's folder"):
        prepare_folder(str(tmp_path / "flat"), str(tmp_path / "out"))


@pytest.mark.parametrize("size", [0, -1, 5000])
def test_a_size_that_is_none(tmp_path: Path, size: int) -> None:
    put(tmp_path / "photos" / "a" / "1.jpg", encode(scene(1), "JPEG"))
    with pytest.raises(PrepareError, match=rf"--size must be 8\.\.1024 pixels, got {size}"):
        prepare.main(
            ["folder", "--source", str(tmp_path / "photos"), "--output", str(tmp_path / "out"), "--size", str(size)]
        )
    assert not (tmp_path / "out").exists()


def test_a_phone_photograph_stands_upright(tmp_path: Path) -> None:
    upright = np.zeros((160, 120, 3), dtype=np.uint8)
    upright[:80], upright[80:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "p" / "a" / "phone.jpg", encode(Image.fromarray(np.rot90(upright, 1).copy()), "JPEG", exif=exif))
    put(tmp_path / "p" / "a" / "plain.jpg", encode(Image.fromarray(upright), "JPEG"))
    prepare_folder(str(tmp_path / "p"), str(tmp_path / "out"))
    (_, phone), (_, plain) = images(tmp_path / "out")
    assert np.abs(phone.astype(int) - plain.astype(int)).mean() < 3
    assert phone[20, 56, 0] > 200
    assert phone[90, 56, 2] > 200


def test_who_the_person_is(tmp_path: Path) -> None:
    for name in ("office/anna/1.jpg", "office/ben/1.jpg", "home/anna/2.jpg"):
        put(tmp_path / "photos" / name, encode(scene(len(name)), "JPEG"))
    prepare_folder(str(tmp_path / "photos"), str(tmp_path / "first"))
    assert json.loads((tmp_path / "first" / "people.json").read_text()) == ["home", "office"]
    prepare_folder(str(tmp_path / "photos"), str(tmp_path / "last"), FolderOptions(person="last"))
    assert json.loads((tmp_path / "last" / "people.json").read_text()) == ["home/anna", "office/anna", "office/ben"]


def test_people_with_few_pictures_are_left_out(tmp_path: Path) -> None:
    for person, count in (("a", 1), ("b", 3), ("c", 2)):
        for number in range(count):
            put(tmp_path / "photos" / person / f"{number}.jpg", encode(scene(10 * count + number), "JPEG"))
    put(tmp_path / "photos" / "c" / "broken.jpg", b"no")  # does not count
    prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"), FolderOptions(min_images=3))
    assert [label for label, _ in images(tmp_path / "out")] == [0, 0, 0]
    assert json.loads((tmp_path / "out" / "people.json").read_text()) == ["b"]
    left_out = [row["file"] for row in table(tmp_path / "out" / "skipped.csv") if row["reason"] == "too few pictures"]
    assert left_out == ["a/0.jpg", "c/0.jpg", "c/1.jpg"]


def test_duplicates_are_listed_or_dropped(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    data = encode(scene(1), "JPEG", quality=95)
    put(source / "a" / "1.jpg", data)
    put(source / "a" / "copy.jpg", data)
    put(source / "a" / "small.png", encode(scene(1).resize((70, 70), Image.Resampling.LANCZOS), "PNG"))
    put(source / "a" / "other.jpg", encode(scene(2), "JPEG"))
    put(source / "b" / "wrong.jpg", data)  # the same picture of someone else
    text = prepare_folder(str(source), str(tmp_path / "report"))
    assert "2 with the same bytes, 1 with the same picture, 1 of them filed under another person" in text
    assert len(images(tmp_path / "report")) == 5
    rows = {(row["file"], row["same_as"], row["same"]) for row in table(tmp_path / "report" / "duplicates.csv")}
    assert rows == {
        ("a/copy.jpg", "a/1.jpg", "bytes"),
        ("a/small.png", "a/1.jpg", "picture"),
        ("b/wrong.jpg", "a/1.jpg", "bytes"),
    }
    prepare_folder(str(source), str(tmp_path / "drop"), FolderOptions(duplicates="drop"))
    assert [label for label, _ in images(tmp_path / "drop")] == [0, 0, 1]


def test_different_photographs_of_real_faces_are_no_duplicates() -> None:
    """400 photographs of 40 people, each also in another size: exactly the pairs are found."""
    faces = [open_photograph(face) for person in load_faces() for face in person]
    smaller = [face.resize((80, 80), Image.Resampling.BICUBIC) for face in faces]
    hashes = [difference_hash(face) for face in [*faces, *smaller]]
    found = {duplicate.number: duplicate.first for duplicate in find_duplicates([str(i) for i in range(800)], hashes)}
    wrong = {number: first for number, first in found.items() if number - 400 != first}
    assert len(wrong) <= 2, wrong
    assert sum(number - 400 == first for number, first in found.items()) >= 380


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "store" / "1.jpg", encode(scene(1), "JPEG"))
    (tmp_path / "photos" / "real").mkdir(parents=True)
    put(tmp_path / "photos" / "real" / "1.jpg", encode(scene(2), "JPEG"))
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "store")
    prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "people.json").read_text()) == ["linked", "real"]


def test_an_output_inside_the_source_is_no_person(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.jpg", encode(scene(1), "JPEG"))
    for _ in range(2):
        prepare_folder(str(tmp_path), str(tmp_path / "out"), FolderOptions(FaceOptions(size=32)))
    assert json.loads((tmp_path / "out" / "people.json").read_text()) == ["a"]
    assert (tmp_path / "out" / "sheet.png").exists()
    options = FolderOptions(FaceOptions(size=32), strict=True, sheet=0)
    prepare_folder(str(tmp_path), str(tmp_path / "parts" / "other"), options)
    prepare_folder(str(tmp_path), str(tmp_path / "parts" / "third"), FolderOptions(FaceOptions(size=32)))
    assert json.loads((tmp_path / "parts" / "third" / "people.json").read_text()) == ["a"]
    listed = {(row["file"], row["reason"]) for row in table(tmp_path / "parts" / "third" / "skipped.csv")}
    assert {("out/sheet.png", "beside a train.rec"), ("parts/other/train.rec", "beside a train.rec")} <= listed


def test_links_that_lead_back_and_what_is_no_file(tmp_path: Path) -> None:
    """Links to a folder above and between folders end; pipes, which would wait for ever, and dead links are listed."""
    photos = tmp_path / "photos"
    for person, seed in (("anna", 1), ("ben", 2)):
        put(photos / person / "1.jpg", encode(scene(seed), "JPEG"))
    (photos / "anna" / "up").symlink_to(photos)
    (photos / "anna" / "friend").symlink_to(photos / "ben")
    (photos / "ben" / "friend").symlink_to(photos / "anna")
    (photos / "anna" / "dead.jpg").symlink_to("nowhere.jpg")
    (photos / "anna" / "self.jpg").symlink_to("self.jpg")
    (photos / "ben" / "good.jpg").symlink_to("1.jpg")
    os.mkfifo(photos / "ben" / "pipe.jpg")
    prepare_folder(str(photos), str(tmp_path / "out"))
    listed = {(row["file"], row["reason"]) for row in table(tmp_path / "out" / "skipped.csv")}
    assert {("anna/dead.jpg", "not a file"), ("anna/self.jpg", "not a file"), ("ben/pipe.jpg", "not a file")} <= listed
    assert len(Source(str(photos)).files) < 20
    # Each person's own pictures, and those behind the link to the other.
    assert [label for label, _ in images(tmp_path / "out")] == [0, 0, 0, 1, 1, 1]


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "photos" / "anna" / "1.jpg", encode(scene(1), "JPEG"))
    put(tmp_path / "photos" / "secret" / "1.jpg", encode(scene(2), "JPEG"))
    listed: Any = LocalFileSystem.ls

    def refuse(self: LocalFileSystem, path: str, *args: Any, **kwargs: Any) -> Any:
        if path.endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return listed(self, path, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "ls", refuse)
    with pytest.raises(StorageError, match="photos/secret: list failed: this user may not"):
        prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_one_name_in_two_compositions_is_one_person_and_names_alike_are_told(tmp_path: Path) -> None:
    names = [unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë"), "Anna", "anna"]
    for seed, name in enumerate(names):
        put(tmp_path / "photos" / name / f"{seed}.jpg", encode(scene(seed), "JPEG"))
    text = prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"))
    assert "4 images of 3 people" in text
    assert text.endswith("names that may be one person: 'Anna' and 'anna'")
    assert json.loads((tmp_path / "out" / "people.json").read_text()) == ["Anna", "Zoë", "anna"]


def test_the_time_left_is_told_once_it_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        put(tmp_path / "photos" / str(i) / "1.jpg", encode(scene(i), "JPEG"))
    prepare.main(["folder", "--source", f"{tmp_path}/photos", "--output", f"{tmp_path}/out", "--sheet", "0"])
    reports = [line for line in capsys.readouterr().err.splitlines() if "photographs" in line]
    assert [("1 of 3" in line, "ETA" in line) for line in reports] == [(True, False), (False, True)]
    assert reports[-1].endswith("3 of 3 photographs | ETA 0m00s")


def test_folders_of_the_wrong_depth_are_told(tmp_path: Path) -> None:
    for i, folder in enumerate(("train/anna", "train/bob", "val/anna", "val/eve")):
        put(tmp_path / "photos" / folder / "1.jpg", encode(scene(i), "JPEG"))
    text = prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"))
    assert "4 images of 2 people" in text
    assert "no picture lies in 'train', 'val' itself, but in 4 folders below: --person last" in text
    text = prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"), FolderOptions(person="last"))
    assert "4 images of 4 people" in text
    assert text.endswith("names that may be one person: 'train/anna' and 'val/anna'")
    put(tmp_path / "photos" / "carl" / "1.jpg", encode(scene(9), "JPEG"))
    assert "--person" not in prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"))


def test_a_disk_that_is_full_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "photos" / "anna" / "1.jpg", encode(scene(1), "JPEG"))

    def full(self: RecordWriter, *_: Any) -> None:
        with storage.explained(self.url, "write"):
            raise OSError(28, "No space left on device", "train.rec")

    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(StorageError, match=r"out/train\.rec: write failed: .*No space left"):
        prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"))
    monkeypatch.undo()
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name != ".parts"]
    assert "1 images of 1 people" in prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"))
