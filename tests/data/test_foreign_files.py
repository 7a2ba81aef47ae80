"""Datasets as people have them: odd indexes, lists, property files, folders and names. Each gives its right samples,
or one sentence that names the file."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app import storage
from app.config.options import parse_arguments
from app.data.build import make_loader, open_source
from app.data.config import DataConfig
from app.data.decode import encode_jpeg
from app.data.label_list import open_labels
from app.data.mixture import Mixture
from app.data.record_writer import RecordWriter
from app.data.recordio import ImageHeader, pack_image
from app.errors import AppError
from tests.jobs import write_faces

JPEG = encode_jpeg(np.zeros((32, 32, 3), dtype=np.uint8))
LINES = [f"{key}\t{(key - 1) // 4}\tp/{key}.jpg" for key in range(1, 13)]


def labels_of(url: object, **options: object) -> list[int]:
    """How many images each class has in an epoch of batches of one."""
    config = DataConfig(url=str(url), image_size=32, **options)  # type: ignore[arg-type]
    source = open_source(config, 0)
    loader = make_loader(source, config, num_classes=source.num_classes, batch_size=1, logical_workers=1, seed=0)
    found = [int(label) for step in loader.steps(0, 0, [0]) for batch in step for label in batch.labels]
    loader.close()
    return np.bincount(found, minlength=source.num_classes).tolist()


def write_plain(folder: Path, labels: list[float]) -> Path:
    """Records without a header record, and a property file that says two classes."""
    with RecordWriter(str(folder / "train.rec")) as writer:
        for key, label in enumerate(labels, start=1):
            writer.write(key, pack_image(ImageHeader((label,), key), JPEG))
    (folder / "property").write_text("2,32,32")
    return folder


def write_folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(JPEG)
    return folder


FOLDER = [f"{person}/{number}.jpg" for person in ("ann", "bob") for number in range(4)]


INDEXES: dict[str, Callable[[bytes], bytes]] = {
    "windows": lambda text: text.replace(b"\n", b"\r\n"),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "blank lines": lambda text: b"\n\n" + text.replace(b"\n", b"\n \n"),
    "spaces": lambda text: text.replace(b"\t", b"  "),
    "old mac": lambda text: text.replace(b"\n", b"\r"),
    "no key 0": lambda text: text.partition(b"\n")[2],
    "a line twice": lambda text: text + text.split(b"\n")[5] + b"\n",
    "no last line end": lambda text: text[:-1],
    "one key for two records": lambda text: text.replace(b"\n6\t", b"\n5\t"),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_however_it_is_written_gives_all_images(tmp_path: Path, kind: str) -> None:
    write_faces(str(tmp_path), classes=3, per_class=4)
    path = tmp_path / "train.idx"
    path.write_bytes(INDEXES[kind](path.read_bytes()))
    assert labels_of(tmp_path) == [4, 4, 4]


WRONG_INDEXES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "negative key": (lambda text: text.replace(b"\n5\t", b"\n-5\t"), r"not an index of lines"),
    "key beyond int64": (lambda text: text.replace(b"\n5\t", b"\n" + b"9" * 20 + b"\t"), "no keys and offsets"),
    "offset beyond int64": (lambda text: text[:-1] + b"9" * 20, "no keys and offsets"),
    "two keys for one byte": (lambda text: text + b"99\t" + text.split()[11] + b"\n", "leaves no room"),
    "text behind it": (lambda text: text + b"garbage\n", "not an index of lines"),
    "zeros behind it": (lambda text: text + b"\0" * 7, "not an index of lines"),
    "utf-16": (lambda text: text.decode().encode("utf-16"), "not an index of lines"),
    "commas": (lambda text: text.replace(b"\t", b","), "not an index of lines"),
    "three columns": (lambda text: text.replace(b"\n", b"\t1\n"), "does not belong to this .rec"),
}


@pytest.mark.parametrize("kind", WRONG_INDEXES)
def test_an_index_that_is_none_is_told(tmp_path: Path, kind: str) -> None:
    write_faces(str(tmp_path), classes=3, per_class=4)
    change, message = WRONG_INDEXES[kind]
    path = tmp_path / "train.idx"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(AppError, match=rf"train\.idx.*{message}"):
        labels_of(tmp_path)


@pytest.mark.parametrize("cut", [1, 40, 600])
def test_a_file_cut_in_its_last_record_is_told_at_the_start(tmp_path: Path, cut: int) -> None:
    write_plain(tmp_path, [0.0, 1.0] * 4)
    data = (tmp_path / "train.rec").read_bytes().rstrip(b"\0")
    (tmp_path / "train.rec").write_bytes(data[:-cut])
    with pytest.raises(AppError, match=r"train\.rec.*the file is truncated"):
        open_source(DataConfig(url=str(tmp_path)), 0)


def test_an_index_of_a_part_and_bytes_behind_the_last_record_are_said(tmp_path: Path) -> None:
    write_plain(tmp_path, [0.0, 1.0] * 4)
    lines = (tmp_path / "train.idx").read_text().splitlines()
    (tmp_path / "train.idx").write_text("\n".join(lines[:4]))
    with pytest.warns(UserWarning, match=r"train\.idx: its last record ends at byte \d+ of the \d+ in"):
        assert labels_of(tmp_path) == [2, 2]
    (tmp_path / "train.idx").write_text("\n".join(lines))
    with (tmp_path / "train.rec").open("ab") as file:
        file.write(b"trailing garbage")
    with pytest.warns(UserWarning, match="what follows is not trained"):
        assert labels_of(tmp_path) == [4, 4]


@pytest.mark.parametrize("label", [1.5, float("nan"), -1.0, float("inf"), 3e9, 2.0])
def test_a_label_that_is_no_class_ends_the_run_and_names_its_record(tmp_path: Path, label: float) -> None:
    write_plain(tmp_path, [0.0, 1.0, label, 1.0])
    with pytest.raises(AppError, match=r"train\.rec: record key 3 .*is outside 0\.\.1 or no whole number"):
        labels_of(tmp_path)


def test_more_classes_than_a_records_label_can_tell_need_a_list(tmp_path: Path) -> None:
    write_plain(tmp_path, [0.0, 1.0, 2.0**24])
    (tmp_path / "property").write_text(f"{2**24 + 1},32,32")
    with pytest.raises(AppError, match=r"train\.rec: 16777217 classes, .*float32.*data\.labels"):
        open_source(DataConfig(url=str(tmp_path)), 0)
    (tmp_path / "property").write_text(f"{2**24},32,32")
    assert len(open_source(DataConfig(url=str(tmp_path)), 0)) == 3
    (tmp_path / "x.lst").write_text(f"1\t0\n2\t{2**24 - 1}\n3\t{2**24 + 1}\n")
    assert open_source(DataConfig(url=str(tmp_path), labels="x.lst"), 0).num_classes == 2**24 + 2


@pytest.mark.parametrize("text", ["2", "2,32", "\ufeff2,32,32", "2,32,32\r\n"])
def test_property_files_that_say_two(tmp_path: Path, text: str) -> None:
    write_plain(tmp_path, [0.0, 1.0] * 2)
    (tmp_path / "property").write_bytes(text.encode())
    assert labels_of(tmp_path) == [2, 2]


@pytest.mark.parametrize("text", ["", "0,32,32", "-2,32,32", "2 32 32", "9" * 30, "2.5,1,1"])
def test_property_files_that_say_nothing(tmp_path: Path, text: str) -> None:
    write_plain(tmp_path, [0.0, 1.0] * 2)
    (tmp_path / "property").write_text(text)
    with pytest.raises(AppError, match=r"property: expected 'classes,height,width'"):
        labels_of(tmp_path)


@pytest.mark.parametrize(("people", "images"), [(1, 1), (1, 5), (4, 1)])
def test_one_person_and_one_image(tmp_path: Path, people: int, images: int) -> None:
    write_faces(str(tmp_path), classes=people, per_class=images)
    assert labels_of(tmp_path) == [images] * people


@pytest.mark.parametrize(("batch", "workers"), [(100, 1), (1, 50)])
def test_a_batch_or_more_workers_than_records_is_told(tmp_path: Path, batch: int, workers: int) -> None:
    write_faces(str(tmp_path), classes=2, per_class=4)
    config = DataConfig(url=str(tmp_path))
    with pytest.raises(AppError, match=f"8 images, fewer than one global batch of {batch} x {workers}"):
        make_loader(open_source(config, 0), config, num_classes=2, batch_size=batch, logical_workers=workers, seed=0)


LISTS = {
    "windows": "\r\n".join(LINES),
    "byte order mark": "\ufeff" + "\n".join(LINES),
    "columns named": "\n".join(["id\tlabel\tpath", *LINES]),
    "blank lines": "\n\n".join(LINES) + "\n\n",
    "decimal labels": "\n".join(line.replace("\tp", ".000000\tp") for line in LINES),
    "quoted": "\n".join(f'{key},"p, {key}.jpg",{(key - 1) // 4}' for key in range(1, 13)),
    "absolute paths": "\n".join(line.replace("p/", "/data/of its own/") for line in LINES),
    "more keys than records": "\n".join([*LINES, "77\t2\tp/77.jpg"]),
    "a line twice": "\n".join([*LINES, LINES[3]]),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_labels_however_it_is_written(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.data.text_lines.PIECE", 7)
    (tmp_path / "x.lst").write_bytes(LISTS[kind].encode())
    keys = np.arange(12, 0, -1)
    assert open_labels(str(tmp_path / "x.lst"), keys, "").labels.tolist() == [(key - 1) // 4 for key in keys.tolist()]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3\t-1\tp", "line 13"),
        ("13\tnan\tp", "line 13"),
        ("13\tinf\tp", "line 13"),
        ("13\t1e300\tp", "line 13"),
        ("13\t0.5\tp", "line 13"),
        ("13\t100000000000\tp", "from 0 to 134217727"),
        ("13", "line 13"),
        (",key,label\n0,1,2", "line 13"),
        ("3\t9\tp", "key 3 has the labels 0 and 9"),
    ],
)
def test_a_line_that_is_wrong_is_told(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "x.lst").write_text("\n".join([*LINES, line]))
    with pytest.raises(AppError, match=message):
        open_labels(str(tmp_path / "x.lst"), np.arange(1, 13), "")
    (tmp_path / "x.lst").write_text("\n".join(["1\tx\ty\tz", *LINES[1:]]))
    with pytest.raises(AppError, match="line 1"):
        open_labels(str(tmp_path / "x.lst"), np.arange(1, 13), "")
    (tmp_path / "x.lst").write_text("\n".join([",key,label", *(f"{key},{key},0" for key in range(1, 13))]))
    with pytest.raises(AppError, match="the first column has no name"):
        open_labels(str(tmp_path / "x.lst"), np.arange(1, 13), "")


def test_an_empty_list_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.lst").write_text("")
    with pytest.raises(AppError, match=r"x\.lst: no label for the record with key 1"):
        open_labels(str(tmp_path / "x.lst"), np.arange(1, 4), "")


def test_folders_are_read_through_links_and_without_what_systems_leave(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", *FOLDER, "bob/._1.jpg", ".thumbs/1.jpg", "__MACOSX/bob/1.jpg", "ann/a.JPG")
    (folder / "nobody").mkdir()
    (folder / "bob" / "lost.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "zoe").symlink_to(folder / "bob")
    (folder / "loop").symlink_to(folder)
    (tmp_path / "link").symlink_to(folder)
    with pytest.warns(UserWarning, match=r"1 of 4 subfolders hold no image, such as 'nobody': they are no classes"):
        assert labels_of(tmp_path / "link") == [5, 4, 4]
    assert labels_of(f"{folder}/") == [5, 4, 4]
    assert labels_of(os.path.relpath(folder)) == [5, 4, 4]


def test_names_in_folders_mean_nothing(tmp_path: Path) -> None:
    names = [f"{person}/{'n' * 200}{number}[*]? #%41.jpg" for person in ("ü ñ", "d[1]", "y" * 250) for number in (1, 2)]
    assert labels_of(write_folder(tmp_path, *names)) == [2, 2, 2]


def test_images_in_nobodys_folder_are_said_and_deeper_ones_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, *FOLDER, "group.jpg")
    with pytest.warns(UserWarning, match="1 images in no person's subfolder"):
        assert labels_of(tmp_path) == [4, 4]
    write_folder(tmp_path, "ann/holidays/9.jpg")
    with pytest.raises(AppError, match=r"1 deeper, such as ann/holidays/9\.jpg"):
        labels_of(tmp_path)


def test_a_folder_in_a_bucket_is_the_same_source(bucket_url: str, tmp_path: Path) -> None:
    write_folder(tmp_path, *FOLDER, "bob/._1.jpg")
    for name in [*FOLDER, "bob/._1.jpg"]:
        storage.write_bytes(storage.join(bucket_url, name), JPEG)
    assert labels_of(bucket_url) == [4, 4]
    assert open_source(DataConfig(url=bucket_url), 0).tag == open_source(DataConfig(url=str(tmp_path)), 0).tag


@pytest.fixture
def three(tmp_path: Path) -> str:
    """Two .rec files of three and two people, and a folder of two."""
    write_faces(str(tmp_path / "a"), classes=3, per_class=4)
    write_faces(str(tmp_path / "b"), classes=2, per_class=4)
    write_folder(tmp_path / "c", *FOLDER)
    return f"{tmp_path}/a, {tmp_path}/b,{tmp_path}/c,"


def test_records_a_list_and_a_folder_train_together(three: str, tmp_path: Path) -> None:
    (tmp_path / "b" / "train.lst").write_text("\n".join(f"{key}\t{key % 4}\tp" for key in range(1, 9)))
    assert labels_of(three, labels="train.lst") == [4, 4, 4, 2, 2, 2, 2, 4, 4]
    with pytest.raises(AppError, match=r"no other\.lst beside a train\.rec"):
        labels_of(three, labels="other.lst")
    with pytest.raises(AppError, match=r"no train\.lst beside a train\.rec"):
        labels_of(tmp_path / "c", labels="train.lst")


@pytest.mark.parametrize(
    "weights",
    [
        ("1",),
        ("1e308", "1e308", "1e308"),
        ("0", "0", "0"),
        ("1", "2", "0"),
        ("1", "2", "-1"),
        ("1", "2", "nan"),
        ("1", "2", "inf"),
        ("a", "b", "c"),
        ("1",) * 4,
    ],
)
def test_weights_that_are_none_are_told(three: str, weights: tuple[str, ...]) -> None:
    with pytest.raises(AppError, match=r"data\.weights must be"):
        labels_of(three, weights=weights)


def test_weights_far_apart_are_told_and_others_hold(three: str, tmp_path: Path) -> None:
    with pytest.raises(AppError, match="1000 times the smallest"):
        labels_of(three, weights=("1e-9", "1", "1"))
    assert labels_of(three, weights=("0.5", "1", "0.75")) == [4, 4, 4, 8, 8, 8, 4]
    with pytest.raises(AppError, match="must be a number above 0"):
        labels_of(tmp_path / "a", weights=("1", "2"))
    with pytest.raises(AppError, match="must be a number above 0"):
        labels_of(tmp_path / "a", weights=("inf",))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{a},{a}/", "twice"),
        ("{a},{a}/../{name}", "twice"),
        ("file://{a},{a}", "twice"),
        ("{a},{link}", "twice"),
        (" , ", "names no folder"),
        ("{a},synthetic", "cannot be joined"),
        ("", "no dataset"),
    ],
)
def test_urls_that_cannot_be_joined(tmp_path: Path, url: str, message: str) -> None:
    write_faces(str(tmp_path / "set"), classes=2, per_class=2)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    names = {"a": tmp_path / "set", "name": "set", "link": tmp_path / "link"}
    with pytest.raises(AppError, match=message):
        open_source(DataConfig(url=url.format(**names)), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["x"]', "3 classes, its people.json 1 names"),
        ('["x", "y", "x"]', "'x' stands there twice"),
        ('{"x": 1}', "a list of names"),
        ('[["x"], ["y"], ["z"]]', "a list of names"),
        ("[null, 1, 2]", "a list of names"),
        ("[true, false, 2]", "a list of names"),
        ('["\u00e9", "e\u0301", "x"]', "stands there twice"),
        ("[]", "3 classes, its people.json 0 names"),
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "people.json"),
    ],
)
def test_names_that_are_none_are_told(three: str, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a" / "people.json").write_text(text)
    with pytest.raises(AppError, match=message):
        labels_of(three, people="shared")


def test_people_are_shared_by_name_and_their_names_are_part_of_the_run(three: str, tmp_path: Path) -> None:
    (tmp_path / "a" / "people.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(["bob", "cid", "dan"]).encode())
    with pytest.warns(UserWarning, match=r"b: no people\.json there"):
        assert labels_of(three, people="shared") == [8, 4, 4, 4, 4, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = open_source(DataConfig(url=three, people="shared"), 0)
        (tmp_path / "a" / "people.json").write_text(json.dumps(["cid", "bob", "dan"]))
        after = open_source(DataConfig(url=three, people="shared"), 0)
    assert isinstance(before, Mixture)
    assert before.tag != after.tag


@pytest.mark.parametrize(
    "options",
    [
        *({"window_mb": 1e-9}, {"window_mb": 1e12}, {"block_mb": 1e-9}, {"block_mb": 1e9}),
        *({"window": 1}, {"window": 10**12}, {"shuffle": "full"}, {"shuffle": "none"}),
        *({"cache": "{tmp}/cache", "cache_gb": 1e-9}, {"cache": "{tmp}/train.rec"}),
    ],
)
def test_windows_blocks_and_caches_of_any_size_give_every_image_once(
    tmp_path: Path, options: dict[str, object]
) -> None:
    write_faces(str(tmp_path), classes=5, per_class=4)
    if "cache" in options:
        options = {**options, "cache": str(options["cache"]).format(tmp=tmp_path)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"data\.cache")
        assert labels_of(tmp_path, **options) == [4] * 5


def test_a_cache_says_that_it_keeps_no_folder_of_images(three: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"data\.cache: .*/c is a folder of images, which it does not keep") as said:
        assert labels_of(three, cache=str(tmp_path / "cache")) == [4] * 7
    assert len(said) == 1


def test_a_cache_is_a_local_folder(tmp_path: Path) -> None:
    write_faces(str(tmp_path), classes=2, per_class=2)
    with pytest.raises(AppError, match=r"data\.cache is s3://b/c"):
        labels_of(tmp_path, cache="s3://b/c")


@pytest.mark.parametrize("option", ["--data.window-mb", "--data.block-mb", "--data.cache-gb"])
@pytest.mark.parametrize("value", ["1e300", "inf", "nan", "0", "-1"])
def test_sizes_that_no_machine_has_are_refused(option: str, value: str) -> None:
    with pytest.raises(AppError, match=f"{option}: .*got {value.replace('1e300', '.*')}"):
        parse_arguments(["--recipe", "orl", "--data.url", "faces", option, value])
