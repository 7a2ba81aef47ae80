"""Dataset tools, over S3: what they write is what the trainer reads; what is wrong is named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import storage
from app.data.bin_sets import load_set
from app.data.dataset import open_dataset
from app.data.decode import decode_image, encode_jpeg
from app.data.prepare import folder as folder_module
from app.data.prepare import reorder
from app.data.prepare.errors import PrepareError
from app.data.prepare.folder import FaceOptions, FolderOptions
from app.data.prepare.orl import prepare_orl
from app.data.prepare.reorder import shuffle_dataset
from app.data.prepare.source import Source
from app.data.prepare.tools import read_all
from app.data.record_writer import RecordWriter, write_identity_layout
from app.prepare import main
from app.seeds import numpy_stream
from tests.jobs import write_faces


def photographs(url: str, people: int = 3, each: int = 4) -> None:
    generator = np.random.default_rng(0)
    for person in range(people):
        for number in range(each):
            image = generator.integers(0, 255, (112, 112, 3), dtype=np.uint8)
            if number == 0:  # another format and size
                buffer = io.BytesIO()
                Image.fromarray(image).resize((60, 80)).save(buffer, "PNG")
                storage.write_bytes(storage.join(url, f"p{person}", "0.png"), buffer.getvalue())
            else:
                storage.write_bytes(storage.join(url, f"p{person}", f"{number}.jpg"), encode_jpeg(image))


def contents(url: str) -> list[tuple[int, bytes]]:
    return [(int(header.labels[0]), image) for _, header, image, _ in read_all(open_dataset(url)) if header]


def test_a_folder_becomes_a_dataset(bucket_url: str) -> None:
    source, output = f"{bucket_url}/photos", f"{bucket_url}/set"
    photographs(source)
    assert main(["folder", "--source", source, "--output", output]) == 0
    records = contents(output)
    assert [label for label, _ in records] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(decode_image(image).shape == (112, 112, 3) for _, image in records)
    # A JPEG of the right size is not encoded a second time.
    assert records[1][1] == storage.read_bytes(f"{source}/p0/1.jpg")
    assert open_dataset(output).num_classes == 3
    assert main(["check", "--data", output]) == 0


def test_a_stopped_preparation_goes_on_where_it_was(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = f"{bucket_url}/photos", f"{bucket_url}/set"
    photographs(source)
    monkeypatch.setattr(folder_module, "_PART_IMAGES", 5)
    loaded: list[str] = []
    read = Source.read

    def counting(self: Source, name: str) -> bytes:
        loaded.append(name)
        if len(loaded) == 8:
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(Source, "read", counting)
    options = FolderOptions(workers=1, sheet=0)
    with pytest.raises(KeyboardInterrupt):
        folder_module.prepare_folder(source, output, options)
    first = len(loaded)
    folder_module.prepare_folder(source, output, options)
    assert len(loaded) - first == 12 - 5  # the five of the first part are not read again
    assert len(contents(output)) == 12


def test_a_stopped_preparation_with_other_options_or_files_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = str(tmp_path / "photos"), str(tmp_path / "set")
    photographs(source)
    monkeypatch.setattr(folder_module, "RecordWriter", None)  # stops when all parts are written
    with pytest.raises(TypeError):
        folder_module.prepare_folder(source, output, FolderOptions(FaceOptions(size=64)))
    monkeypatch.undo()
    replaced = encode_jpeg(np.zeros((112, 112, 3), dtype=np.uint8))
    storage.write_bytes(f"{source}/p2/3.jpg", replaced)
    folder_module.prepare_folder(source, output)
    assert decode_image(contents(output)[0][1]).shape == (112, 112, 3)
    assert contents(output)[-1][1] == replaced


def test_check_finds_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    good = [encode_jpeg(generator.integers(0, 255, (side, side, 3), dtype=np.uint8)) for side in (16, 16, 20)]
    with RecordWriter(str(tmp_path / "train.rec")) as writer:
        write_identity_layout(writer, [0, 0, 1], [good[0], good[1][:50], good[2]])
    (tmp_path / "property").write_text("4,112,112")
    assert main(["check", "--data", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "images       3" in captured.out
    assert "record key 2" in captured.err
    assert "images of 2 sizes: 16x16: 1, 20x20: 1" in captured.err


def test_check_finds_people_without_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_faces(str(tmp_path), classes=2, per_class=2)
    data = (tmp_path / "train.rec").read_bytes()
    # The last image's label 1 (float32 at byte 4 of its header) becomes 0: with both, class 1 is empty.
    dataset = open_dataset(str(tmp_path))
    for start in dataset.starts[2:]:
        at = int(start) + 12
        data = data[:at] + np.float32(0).tobytes() + data[at + 4 :]
    (tmp_path / "train.rec").write_bytes(data)
    assert main(["check", "--data", str(tmp_path)]) == 1
    assert "1 classes have no image, the first: [1]" in capsys.readouterr().err


def test_shuffle_keeps_every_record_and_split_holds_people_out(bucket_url: str) -> None:
    write_faces(f"{bucket_url}/set", classes=6, per_class=3)
    before = contents(f"{bucket_url}/set")
    assert main(["shuffle", "--data", f"{bucket_url}/set", "--output", f"{bucket_url}/shuffled"]) == 0
    shuffled = contents(f"{bucket_url}/shuffled")
    assert sorted(shuffled) == sorted(before)
    assert shuffled != before
    assert open_dataset(f"{bucket_url}/shuffled").num_classes == 6
    assert main(["split", "--data", f"{bucket_url}/set", "--output", f"{bucket_url}/split", "--people", "2"]) == 0
    held, rest = contents(f"{bucket_url}/split/held-out"), contents(f"{bucket_url}/split/train")
    assert sorted({label for label, _ in held}) == [0, 1]
    assert sorted({label for label, _ in rest}) == [0, 1, 2, 3]
    assert sorted(image for _, image in held + rest) == sorted(image for _, image in before)
    for part in (held, rest):  # people stay together: a label is the same person before and after
        people = {label: {image for new, image in part if new == label} for label, _ in part}
        assert all(any(faces == {i for old, i in before if old == p} for p in range(6)) for faces in people.values())


def test_shuffle_through_many_buckets_is_the_same_order(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_faces(f"{bucket_url}/set", classes=6, per_class=5)
    one = shuffle_dataset(f"{bucket_url}/set", f"{bucket_url}/one", seed=4)
    monkeypatch.setattr(reorder, "BUCKET_BYTES", 7 * open_dataset(f"{bucket_url}/set").record_bytes)
    assert shuffle_dataset(f"{bucket_url}/set", f"{bucket_url}/many", seed=4) == one
    assert contents(f"{bucket_url}/many") == contents(f"{bucket_url}/one")
    expected = numpy_stream(4, "prepare.shuffle").permutation(30)
    before = contents(f"{bucket_url}/set")
    assert contents(f"{bucket_url}/many") == [before[position] for position in expected]


def test_a_damaged_record_is_not_carried_over(tmp_path: Path) -> None:
    write_faces(str(tmp_path / "set"), classes=3, per_class=3)
    path, dataset = tmp_path / "set" / "train.rec", open_dataset(str(tmp_path / "set"))
    data = bytearray(path.read_bytes())
    data[int(dataset.starts[4])] ^= 0xFF
    path.write_bytes(data)
    for kind, options in (("shuffle", []), ("split", ["--people", "1"])):
        with pytest.raises(PrepareError, match=r"record key 5 .*mend the dataset first"):
            main([kind, "--data", str(tmp_path / "set"), "--output", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_pairs_become_a_set(bucket_url: str) -> None:
    photographs(f"{bucket_url}/photos")
    storage.write_bytes(f"{bucket_url}/pairs.txt", b"p0/0.png p0/1.jpg 1\np0/2.jpg p1/1.jpg 0\n")
    arguments = ["--source", f"{bucket_url}/photos", "--output", f"{bucket_url}/ours.bin"]
    assert main(["pairs", "--pairs", f"{bucket_url}/pairs.txt", *arguments]) == 0
    loaded = load_set(f"{bucket_url}/ours.bin")
    assert loaded.issame.tolist() == [True, False]
    assert loaded.decode(0, 4, 112).shape == (4, 3, 112, 112)
    for line, message in [(b"p0/0.png p0/1.jpg", "line 1: expected"), (b"p9/x.jpg p0/1.jpg 1", "line 1: .*p9/x")]:
        storage.write_bytes(f"{bucket_url}/bad.txt", line)
        with pytest.raises(PrepareError, match=message):
            main(["pairs", "--pairs", f"{bucket_url}/bad.txt", *arguments])


def test_a_contact_sheet_is_a_picture_of_the_samples(tmp_path: Path) -> None:
    write_faces(str(tmp_path / "set"), classes=4, per_class=5)
    output = tmp_path / "sheet.png"
    assert main(["sheet", "--data", str(tmp_path / "set"), "--output", str(output), "--count", "13"]) == 0
    with Image.open(output) as image:
        assert image.size == (10 * 112, 2 * (112 + 14))


def test_the_orl_set_is_people_never_mixed(tmp_path: Path) -> None:
    prepare_orl(str(tmp_path), train_people=30, seed=3, shuffle_people=True)
    dataset = open_dataset(str(tmp_path))
    assert (len(dataset), dataset.num_classes) == (300, 30)
    trained = {image for _, image in contents(str(tmp_path))}
    held_out = load_set(str(tmp_path / "orl.bin"))
    assert not trained & set(held_out.images)
    assert held_out.issame.sum() * 2 == len(held_out.issame) == 900


def test_a_shuffled_dataset_tells_the_size_of_its_own_images(tmp_path: Path) -> None:
    write_faces(str(tmp_path / "small"), classes=3, per_class=4, size=48)
    shuffle_dataset(str(tmp_path / "small"), str(tmp_path / "shuffled"), seed=0)
    assert (tmp_path / "shuffled" / "property").read_text() == "3,48,48"
