"""Options and places that make no sense: one line that names them, and nothing is written or lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app import prepare
from app.data.dataset import open_dataset
from app.data.prepare.folder import prepare_folder
from app.data.prepare.tools import check_dataset
from app.errors import AppError
from tests.data.prepare.pictures import encode, put, scene
from tests.jobs import environment, write_faces


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for person in ("ann", "bob"):
        for number in (1, 2):
            put(tmp_path / "photos" / person / f"{number}.jpg", encode(scene(hash((person, number)) % 99), "JPEG"))
    return tmp_path / "photos"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], r"--workers must be 1 or more, got 0"),
        (["--min-images", "0"], r"--min-images must be 1 or more, got 0"),
        (["--min-images", "-1"], r"--min-images must be 1 or more, got -1"),
        (["--sheet", "-5"], r"--sheet must be 0 or more, got -5"),
        (["--size", "1000000"], r"--size must be 8\.\.1024 pixels, got 1000000"),
        (["--source", ""], r"--source is empty"),
        (["--output", " "], r"--output is empty"),
        (["--source", "photos/ann/1.jpg"], r"photos/ann/1\.jpg: a file: name the folder"),
        (["--output", "./photos/"], r"\./photos/: the output is the source itself"),
        (["--source", "nowhere"], r"nowhere: list failed: it does not exist"),
        (["--output", "photos/ann/1.jpg"], r"photos/ann/1\.jpg.*a part of this path is a file"),
    ],
)
def test_a_folder_option_that_makes_no_sense(
    photos: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    before = everything(photos.parent)
    with pytest.raises(AppError, match=message):
        prepare.main(["folder", "--source", "photos", "--output", "out", *options])
    assert everything(photos.parent) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shuffle", "--data", "set", "--output", "./set"], r"\./set: the output is the dataset itself"),
        (["mend", "--data", "set", "--output", "link"], r"link: the output is the dataset itself"),
        (["merge", "--data", "set", "--data", "set", "--output", "set/"], r"the output is one of the datasets"),
        (["check", "--data", "set/train.rec"], r"name the folder, not the file in it: set"),
        (
            ["check", "--data", "photos"],
            r"photos: no train\.rec there; photographs need one subfolder a person, and app\.prepare folder",
        ),
        (["sheet", "--data", ".", "--output", "s.png"], r"no train\.rec there, but in \./link, \./set: name one"),
        (["merge", "--data", "set", "--data", "", "--output", "x"], r"--data is empty"),
        (["split", "--data", "set", "--output", "x", "--people", "0"], r"--people must be 1\.\.2, got 0"),
        (["split", "--data", "set", "--output", "x", "--people", "3"], r"--people must be 1\.\.2, got 3"),
        (["split", "--data", "set", "--output", "x", "--people", "2", "--pairs", "-2"], r"--pairs must be an even"),
        (["sheet", "--data", "set", "--output", "s.png", "--count", "0"], r"--count must be 1 or more"),
        (["sheet", "--data", "set", "--output", "s.png", "--start", "-1"], r"--start 0 or more, got 50 and -1"),
        (["pairs", "--data", "set", "--output", "x.bin", "--count", "-2"], r"--count must be an even number up to"),
    ],
)
def test_a_tool_of_datasets_refuses_what_makes_no_sense(
    photos: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    write_faces("set", classes=3, per_class=2)
    Path("link").symlink_to("set")
    before = everything(photos.parent)
    with pytest.raises(AppError, match=message):
        prepare.main(arguments)
    assert everything(photos.parent) == before


def test_one_record_is_shuffled(tmp_path: Path) -> None:
    write_faces(str(tmp_path / "set"), classes=1, per_class=1)
    assert prepare.main(["shuffle", "--data", str(tmp_path / "set"), "--output", str(tmp_path / "one")]) == 0
    assert len(open_dataset(str(tmp_path / "one"))) == 1


def test_held_out_pairs_of_an_earlier_split_do_not_stay(tmp_path: Path) -> None:
    write_faces(str(tmp_path / "set"), classes=3, per_class=3)
    for people, there in (("2", True), ("1", False)):
        prepare.main(["split", "--data", str(tmp_path / "set"), "--output", str(tmp_path / "p"), "--people", people])
        assert (tmp_path / "p" / "train" / "held-out.bin").exists() is there


def test_dots_and_lines_are_listed_and_one_person_alone_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "photos" / "ann"
    put(source / "1.jpg", encode(scene(1), "JPEG"))
    put(source / "two.mpo", encode(scene(2), "MPO", save_all=True, append_images=[scene(3)]))
    put(source / "dot.png", encode(scene(4, 1, 1), "PNG"))
    put(source / "line.png", encode(scene(5, 2000, 20), "PNG"))
    prepare.main(["folder", "--source", str(source.parent), "--output", str(tmp_path / "out"), "--sheet", "0"])
    said = capsys.readouterr().out
    assert "2 images of 1 people" in said
    assert "left out: 2 too small" in said
    assert "one person only: nothing can be learned from it" in said
    listed = (tmp_path / "out" / "skipped.csv").read_text()
    assert "ann/dot.png,too small,1 x 1 pixels" in listed
    assert "ann/line.png,too small,2000 x 20 pixels" in listed


def test_names_of_any_bytes_end_in_a_dataset_and_in_files_that_can_be_read(tmp_path: Path) -> None:
    people = [b"new\nline", b"tab\there", b"quo\"te's, comma;", "emoji 😀".encode(), b"latin \xe9"]
    for i, person in enumerate(people):
        folder = os.path.join(os.fsencode(tmp_path), b"photos", person)
        os.makedirs(folder)
        Path(os.fsdecode(folder), os.fsdecode(person + b".jpg")).write_bytes(encode(scene(i), "JPEG"))
        Path(os.fsdecode(folder), "broken.jpg").write_bytes(b"no")
    done = subprocess.run(
        [sys.executable, "-m", "app.prepare", "folder", "--source", "photos", "--output", "caf\u00e9"],
        cwd=tmp_path,
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"caf\\xe9: 5 images of 5 people" in done.stdout
    names = json.loads((tmp_path / "caf\u00e9" / "people.json").read_text(encoding="utf-8"))
    assert sorted(names) == sorted(map(os.fsdecode, people))
    assert check_dataset(str(tmp_path / "caf\u00e9"))[1] == []


# Root may write anywhere; without this capability its files' permissions count for it too.
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []


@pytest.mark.skipif(bool(UNPRIVILEGED) and shutil.which("setpriv") is None, reason="root without setpriv")
def test_who_may_not_write_or_read_is_told_where_and_nothing_is_lost(photos: Path) -> None:
    prepare_folder(str(photos), str(photos.parent / "set"))
    before = everything(photos.parent)

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [*UNPRIVILEGED, sys.executable, "-m", "app.prepare", *arguments],
            cwd=photos.parent,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    photos.parent.chmod(0o555)
    for arguments, name in (
        (["folder", "--source", "photos", "--output", "out"], "out"),
        (["split", "--data", "set", "--output", "parts", "--people", "1"], "parts"),
        (["shuffle", "--data", "set", "--output", "other"], "other"),
        (["pairs", "--data", "set", "--output", "x.bin", "--count", "2"], "x.bin"),
        (["sheet", "--data", "set", "--output", "s.png"], "s.png"),
    ):
        code, said = run(*arguments)
        assert code == 65, said
        assert said.startswith(f"error: {name}"), said
        assert "permission" in said.lower(), said
        assert said.count("\n") == 1, said
    photos.parent.chmod(0o755)
    assert everything(photos.parent) == before
    for folder in (photos, photos / "ann", photos / "bob"):
        folder.chmod(0o555)  # a source that is read only is enough
    (photos / "bob" / "1.jpg").chmod(0)
    assert run("folder", "--source", "photos", "--output", "out")[0] == 0
    assert "bob/1.jpg,unreadable," in (photos.parent / "out" / "skipped.csv").read_text()


def test_records_of_another_program_are_not_overwritten(photos: Path, tmp_path: Path) -> None:
    write_faces(str(tmp_path / "theirs"))
    before = (tmp_path / "theirs" / "train.rec").read_bytes()
    with pytest.raises(AppError, match=r"theirs/train\.rec was not made from photographs"):
        prepare_folder(str(photos), str(tmp_path / "theirs"))
    assert (tmp_path / "theirs" / "train.rec").read_bytes() == before
    for _ in range(2):  # one's own are made anew, also after a stop between the records and the names
        prepare_folder(str(photos), str(tmp_path / "ours"))
    (tmp_path / "ours" / "people.json").unlink()
    (tmp_path / "ours" / ".parts").mkdir()
    prepare_folder(str(photos), str(tmp_path / "ours"))
