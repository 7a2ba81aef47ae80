"""Pair lists as people have them, and pairs drawn from people who were held out."""

from __future__ import annotations

import json
import unicodedata
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import prepare
from app.data.bin_sets import load_set
from app.data.dataset import open_dataset
from app.data.prepare.errors import PrepareError
from app.data.prepare.pair_list import read_pairs
from app.data.prepare.pairs import draw_pairs
from app.data.prepare.source import Source
from app.data.prepare.tools import read_all
from tests.data.prepare.pictures import encode, put, scene

PEOPLE = ("Ana_Maria", "Li Wei", "李娜", "José")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set") / "lfw"
    for i, person in enumerate(PEOPLE):
        for n in (1, 2):
            put(root / person / f"{person}_{n:04d}.jpg", encode(scene(10 * i + n), "JPEG"))
    return root


ANA = ("Ana_Maria/Ana_Maria_0001.jpg", "Ana_Maria/Ana_Maria_0002.jpg")
LI = ("Li Wei/Li Wei_0001.jpg", "Li Wei/Li Wei_0002.jpg")
NA = ("李娜/李娜_0001.jpg", "李娜/李娜_0002.jpg")
LISTS = {
    "spaces": (f"{ANA[0]} {ANA[1]} 1\n{ANA[0]}   {NA[0]} 0\n", [(*ANA, True), (ANA[0], NA[0], False)]),
    "spaces in names": (f"{LI[0]} {LI[1]} 1\n{ANA[0]} {LI[1]} 0", [(*LI, True), (ANA[0], LI[1], False)]),
    "tabs": (f"{LI[0]}\t{LI[1]}\t1\n", [(*LI, True)]),
    "quotes": (f'"{LI[0]}" "{LI[1]}" 1\n', [(*LI, True)]),
    "commas": (f"{LI[0]},{LI[1]},1\n{ANA[0]}, {LI[1]}, 0\n", [(*LI, True), (ANA[0], LI[1], False)]),
    "quoted commas": (f'"{LI[0]}","{LI[1]}","1"\n', [(*LI, True)]),
    "semicolons": (f"{LI[0]};{LI[1]};0\n", [(*LI, False)]),
    "titles": (f"first,second,same\n{LI[0]},{LI[1]},1\n", [(*LI, True)]),
    "words": (f"{LI[0]},{LI[1]},True\n{ANA[0]},{LI[1]},different\n", [(*LI, True), (ANA[0], LI[1], False)]),
    "label first": (f"1 {ANA[0]} {ANA[1]}\n0\t{ANA[0]}\t{LI[0]}\n", [(*ANA, True), (ANA[0], LI[0], False)]),
    "not ascii": (f"{NA[0]} {NA[1]} 1\n", [(*NA, True)]),
    "decomposed": (
        unicodedata.normalize("NFD", "José/José_0001.jpg José/José_0002.jpg 1"),
        [("José/José_0001.jpg", "José/José_0002.jpg", True)],
    ),
    "windows": (f"\ufeff{ANA[0]} {ANA[1]} 1\r\n".replace("/", "\\"), [(*ANA, True)]),
    "comments and blank lines": (f"# mine\n\n./{ANA[0]} ./{ANA[1]} 1\n\n", [(*ANA, True)]),
    "old Macintosh lines": (f"{ANA[0]},{ANA[1]},1\r{ANA[0]},{LI[0]},0\r", [(*ANA, True), (ANA[0], LI[0], False)]),
    "indented comment": (f"  # mine\n{ANA[0]} {ANA[1]} 1\n", [(*ANA, True)]),
    "quotes behind a space": (f'"{LI[0]}", "{LI[1]}", 1\n', [(*LI, True)]),
    "yes and no": (f"a,b,same\n{LI[0]},{LI[1]},yes\n{ANA[0]},{LI[1]},No\n", [(*LI, True), (ANA[0], LI[1], False)]),
    "numbers with a point": (f"{LI[0]};{LI[1]};1.0\n{ANA[0]};{LI[1]};0.0\n", [(*LI, True), (ANA[0], LI[1], False)]),
    "a title with a mark": (f"\ufefffile_a;file_b;same\r\n{LI[0]};{LI[1]};1\r\n", [(*LI, True)]),
    "lfw": ("1\t1\nAna_Maria\t1\t2\nAna_Maria\t1\tLi Wei\t2\n", [(*ANA, True), (ANA[0], LI[1], False)]),
    "lfw development": ("1\nLi Wei\t1\t2\n李娜\t1\tLi Wei\t2\n", [(*LI, True), (NA[0], LI[1], False)]),
    "lfw with spaces": ("10 300\nAna_Maria 1 2\nAna_Maria 2 李娜 1\n", [(*ANA, True), (ANA[1], NA[0], False)]),
    "lfw as a table": (
        "name,imagenum1,imagenum2,\nLi Wei,1,2,\nLi Wei,1,李娜,2\n",
        [(*LI, True), (LI[0], NA[1], False)],
    ),
    "lfw without its first line": ("Ana_Maria\t1\t2\n", [(*ANA, True)]),
    "lfw with numbers of lines": (
        "id,name,n1,name2,n2\n1,Li Wei,1,2,\n2,Li Wei,1,李娜,2\n",
        [(*LI, True), (LI[0], NA[1], False)],
    ),
    "counts above paths": (f"10 300\n{ANA[0]} {ANA[1]} 1\n", [(*ANA, True)]),
    "an index of pandas": (
        f",first,second,same\n0,{LI[0]},{LI[1]},1\n1,{ANA[0]},{LI[1]},0\n",
        [(*LI, True), (ANA[0], LI[1], False)],
    ),
    "an index that looks like labels": (
        f"0 {ANA[0]} {ANA[1]} 1\n1 {ANA[0]} {NA[0]} 0\n",
        [(*ANA, True), (ANA[0], NA[0], False)],
    ),
    "folds in front": (
        f"1\t{LI[0]}\t{LI[1]}\t1\n1\t{ANA[0]}\t{LI[1]}\t0\n2\t{ANA[0]}\t{ANA[1]}\t1\n",
        [(*LI, True), (ANA[0], LI[1], False), (*ANA, True)],
    ),
    "scores behind": (
        f"a,b,is_same,score\n{LI[0]},{LI[1]},1,0\n{ANA[0]},{LI[1]},0,0.5\n",
        [(*LI, True), (ANA[0], LI[1], False)],
    ),
    "a title tells the label": (
        f"fold,label,a,b\n1,0,{ANA[0]},{LI[1]}\n1,1,{LI[0]},{LI[1]}\n1,1,{ANA[0]},{ANA[1]}\n",
        [(ANA[0], LI[1], False), (*LI, True), (*ANA, True)],
    ),
    "the label in the middle": (f"{LI[0]},1,{LI[1]}\n{ANA[0]},0,{LI[1]}\n", [(*LI, True), (ANA[0], LI[1], False)]),
    "bars": (f"{LI[0]}|{LI[1]}|1\n", [(*LI, True)]),
    "genuine and impostor": (
        f"{LI[0]},{LI[1]},genuine\n{ANA[0]},{LI[1]},Impostor\n",
        [(*LI, True), (ANA[0], LI[1], False)],
    ),
    "match and mismatch": (
        f"a,b,match\n{LI[0]},{LI[1]},match\n{ANA[0]},{LI[1]},mismatch\n",
        [(*LI, True), (ANA[0], LI[1], False)],
    ),
    "paths of another machine": (
        f"/home/me/lfw/{ANA[0]} lfw/{ANA[1]} 1\n" + f"C:\\lfw\\{ANA[0]} ./{NA[0]} 0\n".replace("/", "\\"),
        [(*ANA, True), (ANA[0], NA[0], False)],
    ),
    "URLs": (f"s3://faces/lfw/{LI[0]},s3://faces/lfw/{LI[1]},1\n", [(*LI, True)]),
    "no endings": ("Ana_Maria/Ana_Maria_0001 Ana_Maria/Ana_Maria_0002 1\n", [(*ANA, True)]),
    "one picture a line": (
        f"{ANA[0]} 1\n{ANA[1]} 1\n{ANA[0]} 0\n{LI[0]} 0\r\n",
        [(*ANA, True), (ANA[0], LI[0], False)],
    ),
    "one picture a line, of folds and without folders": (
        "Ana_Maria_0001.jpg 2\nAna_Maria_0002.jpg 2\nLi Wei_0001.jpg 10\nLi Wei_0002.jpg 10\n"
        "Ana_Maria_0001.jpg 0\n李娜_0001.jpg 0\n",
        [(*ANA, True), (*LI, True), (ANA[0], NA[0], False)],
    ),
    "one picture a line, by tabs": (f"{LI[0]}\t1\n{LI[1]}\t1\n", [(*LI, True)]),
    "no folders": ("Li Wei_0001.jpg,李娜_0002.jpg,0\n", [(LI[0], NA[1], False)]),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_is_read(kind: str, folder: Path, tmp_path: Path) -> None:
    text, expected = LISTS[kind]
    put(tmp_path / "pairs.txt", text.encode())
    found = read_pairs(str(tmp_path / "pairs.txt"), Source(str(folder)))
    assert [(pair.first, pair.second, pair.same) for pair in found] == expected


def test_a_name_may_look_like_a_comment(tmp_path: Path) -> None:
    for name in ("#1/a.jpg", "b/1.jpg"):
        put(tmp_path / "photos" / name, encode(scene(1), "JPEG"))
    put(tmp_path / "pairs.csv", b"#1/a.jpg,b/1.jpg,0\n# b/1.jpg, none, 1\n#b/1.jpg,b/1.jpg\n")
    (pair,) = read_pairs(str(tmp_path / "pairs.csv"), Source(str(tmp_path / "photos")))
    assert (pair.first, pair.second, pair.same) == ("#1/a.jpg", "b/1.jpg", False)


def test_a_list_in_utf_16(folder: Path, tmp_path: Path) -> None:
    put(tmp_path / "pairs.txt", f"{NA[0]}\t{NA[1]}\t1\r\n".encode("utf-16"))
    (pair,) = read_pairs(str(tmp_path / "pairs.txt"), Source(str(folder)))
    assert (pair.first, pair.second) == NA


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (f"{ANA[0]} {ANA[1]}\n".encode(), "line 1: expected 'image image 0|1'"),
        (f"{ANA[0]} {ANA[1]} 1\n{ANA[0]} x/none.jpg 1\n".encode(), "line 2: no picture x/none.jpg"),
        (f"{ANA[0]} {ANA[1]} 2\n".encode(), "line 1: expected"),
        (f"{ANA[0]} 1\n{ANA[1]} 1\n{ANA[0]} 1\n".encode(), "line 3: the other picture of this pair is missing"),
        (f"{ANA[0]} 1\n{ANA[1]} 0\n".encode(), "lines 1 and 2 are one pair, .* ends in 1 and the other in 0"),
        (f"{ANA[0]} 1\nx/none.jpg 1\n".encode(), "line 2: no picture x/none.jpg"),
        (
            f"{ANA[0]},{ANA[1]},0,1\n{ANA[0]},{LI[1]},0,0\n{ANA[1]},{LI[1]},0,0\n".encode(),
            r"columns 3 and 4 may each say .*: put a line of titles above, with 'label' over the right one",
        ),
        (
            f"7,{ANA[0]},{ANA[1]},1\n8,{ANA[0]},{LI[1]},2\n9,{LI[0]},{LI[1]},1\n".encode(),
            "line 2: expected 0 or 1 in co",
        ),
        (f"7,{ANA[0]},{ANA[1]},1\n8,{ANA[0]},x.jpg,0\n".encode(), r"line 2: no picture x\.jpg"),
        (f"7,{ANA[0]},{ANA[1]},1\n8,{ANA[0]},{ANA[1]}\n".encode(), "line 2: 3 columns, the others 4: names with"),
        (
            f"{ANA[0]} train/{ANA[1]} 1\n".encode(),
            r"line 1: no picture train/.*_0002\.jpg in .*/lfw; Ana_Maria/Ana_Maria_0002\.jpg is there: write paths",
        ),
        ("李娜/1.jpg 李娜/2.jpg 1\n".encode("gbk"), "line 1: not UTF-8: save the file as UTF-8"),
        (b"1\t1\nAna_Maria\t1\t9\n", "line 2: no picture Ana_Maria/Ana_Maria_0009"),
        (b"1\t1\nAna_Maria\t1\n", "line 2: expected 'name n1 n2'"),
        ("1 1\nAna_Maria 1 ²\n".encode(), "line 2: expected 'name n1 n2'"),
        (b"\x00\x01\x02", "line 1: expected 'image image 0|1'"),
        (b"", "no pair in it"),
        (b"# only this\n\n", "no pair in it"),
        (b"10\t300\n", "no pair in it"),
    ],
)
def test_a_line_that_is_none_is_named_and_nothing_is_written(
    folder: Path, tmp_path: Path, data: bytes, message: str
) -> None:
    put(tmp_path / "pairs.txt", data)
    with pytest.raises(PrepareError, match=message.replace("|", r"\|")):
        prepare.main(
            ["pairs", "--source", str(folder), "--pairs", str(tmp_path / "pairs.txt"), "--output", f"{tmp_path}/x.bin"]
        )
    assert not (tmp_path / "x.bin").exists()


def test_the_damaged_pictures_of_a_list_are_named_together(tmp_path: Path) -> None:
    put(tmp_path / "img" / "a.jpg", encode(scene(1), "JPEG"))
    put(tmp_path / "img" / "b.jpg", b"\xff\xd8 no")
    put(tmp_path / "img" / "c.jpg", b"")
    arguments = ["--source", f"{tmp_path}/img", "--pairs", f"{tmp_path}/pairs.txt", "--output", f"{tmp_path}/x"]
    put(tmp_path / "pairs.txt", b"a.jpg b.jpg 1\n")
    with pytest.raises(PrepareError, match=r"pairs\.txt: a picture cannot be taken: line 1: b\.jpg: unreadable \("):
        prepare.main(["pairs", *arguments])
    put(tmp_path / "pairs.txt", b"a.jpg b.jpg 1\na.jpg c.jpg 0\nb.jpg c.jpg 0\n")
    with pytest.raises(
        PrepareError, match=r"2 pictures cannot be taken: line 1: b\.jpg: .*; line 2: c\.jpg: unreadable \(an empty"
    ):
        prepare.main(["pairs", *arguments])
    assert not (tmp_path / "x").exists()


def test_damaged_pictures_of_a_folder_are_left_out_of_drawn_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, person in enumerate(("ann", "bob", "cid")):
        for n in range(4):
            put(tmp_path / "img" / person / f"{n}.jpg", encode(scene(10 * number + n), "JPEG"))
    put(tmp_path / "img/bob/2.jpg", b"\xff\xd8 no")
    put(tmp_path / "img/cid/0.jpg", b"")
    arguments = ["pairs", "--source", f"{tmp_path}/img", "--output", f"{tmp_path}/x.bin", "--count"]
    assert prepare.main([*arguments, "24"]) == 0  # all genuine pairs that are left
    out = capsys.readouterr().out
    assert "24 pairs, 12 of them genuine, of 10 images" in out
    assert "left out: 2 that cannot be taken: bob/2.jpg: unreadable" in out
    assert "cid/0.jpg: unreadable (an empty file)" in out
    drawn = load_set(f"{tmp_path}/x.bin")
    assert (len(drawn.images), sum(drawn.issame)) == (48, 12)
    with pytest.raises(PrepareError, match=r"without 2 pictures that cannot be taken: .*up to 24, got 26"):
        prepare.main([*arguments, "26"])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=2, max_size=8).filter(lambda sizes: max(sizes) > 1),
    seed=st.integers(0, 5),
    share=st.floats(0.01, 1),
)
def test_drawn_pairs_are_balanced_distinct_true_and_repeatable(sizes: list[int], seed: int, share: float) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).tolist()
    genuine = sum(labels[a] == labels[b] for a, b in combinations(range(len(labels)), 2))
    most = min(genuine, len(list(combinations(range(len(labels)), 2))) - genuine)
    count = 2 * max(1, int(share * most))
    pairs = draw_pairs(labels, count, seed)
    assert len(pairs) == count
    assert [same for *_, same in pairs] == [True, False] * (count // 2)
    assert all((labels[a] == labels[b]) == same and a < b for a, b, same in pairs)
    assert len({(a, b) for a, b, _ in pairs}) == count
    assert pairs == draw_pairs(labels, count, seed)
    assert len(draw_pairs(labels, 0, seed)) == 2 * min(3000, most)
    with pytest.raises(PrepareError, match=f"an even number up to {2 * most}, got {2 * most + 2}"):
        draw_pairs(labels, 2 * most + 2, seed)


def test_many_people_are_drawn_from_without_listing_all_pairs() -> None:
    labels = np.repeat(np.arange(30_000), 5)
    pairs = draw_pairs(labels.tolist(), 6000, 1)
    assert len({(a, b) for a, b, _ in pairs}) == 6000
    drawn = np.array([(a, b) for a, b, _ in pairs])
    assert ((labels[drawn[:, 0]] == labels[drawn[:, 1]]) == np.tile([True, False], 3000)).all()
    assert abs(drawn.mean() / len(labels) - 0.5) < 0.02  # from everywhere


def test_every_pair_is_as_likely_as_any_other() -> None:
    labels = [0, 0, 0, 1, 1, 2]
    counts: dict[tuple[int, int], int] = {}
    for seed in range(600):
        for a, b, _ in draw_pairs(labels, 2, seed):
            counts[a, b] = counts.get((a, b), 0) + 1
    genuine = [count for (a, b), count in counts.items() if labels[a] == labels[b]]
    impostors = [count for (a, b), count in counts.items() if labels[a] != labels[b]]
    assert (len(genuine), len(impostors)) == (4, 11)
    assert min(genuine) > 110  # 150 each, deviation 11
    assert min(impostors) > 28  # 55 each, deviation 7


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0]])
def test_pairs_that_cannot_be_drawn_say_why(labels: list[int]) -> None:
    with pytest.raises(PrepareError, match=r"no balanced pairs: .* at least two people"):
        draw_pairs(labels, 0, 0)


def test_pairs_of_a_folder_and_of_a_dataset(folder: Path, tmp_path: Path) -> None:
    assert prepare.main(["pairs", "--source", str(folder), "--output", f"{tmp_path}/own.bin", "--count", "8"]) == 0
    own = load_set(f"{tmp_path}/own.bin")
    assert own.issame.tolist() == [True, False] * 4
    prepare.main(["folder", "--source", str(folder), "--output", f"{tmp_path}/set", "--sheet", "0"])
    prepare.main(["pairs", "--data", f"{tmp_path}/set", "--output", f"{tmp_path}/two.bin", "--count", "8"])
    two = load_set(f"{tmp_path}/two.bin")
    assert two.images == own.images  # the same pictures, the same draw
    for wrong in (["--count", "7"], ["--count", "100"], ["--data", "x"]):
        with pytest.raises(PrepareError, match=r"even number|give --source"):
            prepare.main(["pairs", "--source", str(folder), "--output", f"{tmp_path}/no.bin", *wrong])


def test_a_split_can_be_trained_and_verified_at_once(folder: Path, tmp_path: Path) -> None:
    data, out = f"{tmp_path}/set", tmp_path / "out"
    prepare.main(["folder", "--source", str(folder), "--output", data, "--sheet", "0"])
    prepare.main(["shuffle", "--data", data, "--output", f"{tmp_path}/shuffled", "--seed", "3"])
    names = json.loads(Path(data, "people.json").read_text())
    assert json.loads((tmp_path / "shuffled" / "people.json").read_text()) == names
    assert prepare.main(["split", "--data", f"{tmp_path}/shuffled", "--output", str(out), "--people", "2"]) == 0
    pictures = {image: names[int(h.labels[0])] for _, h, image, _ in read_all(open_dataset(data)) if h}
    for part in ("train", "held-out"):
        own = json.loads((out / part / "people.json").read_text())
        assert len(own) == 2
        for _, header, image, _ in read_all(open_dataset(str(out / part))):
            assert header is not None
            assert own[int(header.labels[0])] == pictures[image]
    pairs = load_set(str(out / "train" / "held-out.bin"))
    assert len(pairs.issame) == 4  # two genuine ones, one a person, and as many impostors
    held_out = {image for _, _, image, _ in read_all(open_dataset(str(out / "held-out")))}
    assert set(pairs.images) <= held_out


def test_images_that_nobody_can_decode_are_named_before_pairs_or_parts_are_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "set"
    prepare.main(["folder", "--source", str(folder), "--output", str(data), "--sheet", "0"])
    dataset = open_dataset(str(data))
    with (data / "train.rec").open("r+b") as file:
        file.seek(int(dataset.starts[0]) + 40)
        file.write(bytes(int(dataset.stops[0] - dataset.starts[0]) - 60))
    for arguments in (["pairs", "--count", "8"], ["split", "--people", "3", "--pairs", "6", "--seed", "1"]):
        with pytest.raises(PrepareError, match=r"record key 1 \(bytes .*unreadable JPEG.*app\.prepare mend"):
            prepare.main([*arguments, "--data", str(data), "--output", f"{tmp_path}/no"])
        assert not (tmp_path / "no").exists()
    assert prepare.main(["sheet", "--data", str(data), "--output", f"{tmp_path}/sheet.png"]) == 0
    assert "8 images, 1 rows; 1 of them unreadable, such as " in capsys.readouterr().out
    prepare.main(["shuffle", "--data", str(data), "--output", f"{tmp_path}/shuffled"])
    assert (tmp_path / "shuffled" / "property").read_bytes() == b"4,112,112"


def test_a_split_of_single_pictures_says_why_there_are_no_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        put(tmp_path / "p" / str(i) / "1.jpg", encode(scene(i), "JPEG"))
    prepare.main(["folder", "--source", f"{tmp_path}/p", "--output", f"{tmp_path}/set"])
    prepare.main(["split", "--data", f"{tmp_path}/set", "--output", f"{tmp_path}/out", "--people", "2"])
    assert "no held-out.bin: the 2 held-out people" in capsys.readouterr().out
    assert not (tmp_path / "out" / "train" / "held-out.bin").exists()
    with pytest.raises(PrepareError, match="no balanced pairs"):
        prepare.main(
            ["split", "--data", f"{tmp_path}/set", "--output", f"{tmp_path}/no", "--people", "2", "--pairs", "2"]
        )
    assert not (tmp_path / "no").exists()
