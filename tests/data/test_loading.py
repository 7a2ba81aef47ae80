"""From a dataset folder to micro-batches: local files and S3, restarts, and everything that can be wrong."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app import storage
from app.data import loader as loader_module
from app.data.config import DataConfig
from app.data.dataset import open_dataset
from app.data.decode import encode_jpeg
from app.data.loader import Batch, Loader
from app.data.order import SampleOrder, make_order
from app.data.reader import RecordReader
from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.recordio import ImageHeader, RecordError, pack_image
from app.data.records import RecordSource
from app.data.source import Source
from app.data.window import WindowStream
from app.storage import StorageError

CLASSES, PER_CLASS, SIZE = 6, 8, 16


def write_dataset(folder: str, *, bad: set[int] = frozenset(), side: int = SIZE) -> None:  # type: ignore[assignment]
    generator = np.random.default_rng(0)
    images: list[tuple[int, bytes]] = []
    for label in range(CLASSES):
        for _ in range(PER_CLASS):
            image = encode_jpeg(generator.integers(0, 255, (side, side, 3), dtype=np.uint8))
            images.append((label, image[:40] if len(images) in bad else image))
    with RecordWriter(storage.join(folder, "train.rec")) as writer:
        write_identity_layout(writer, [label for label, _ in images], [image for _, image in images])


def make_loader(folder: str, *, streams: int = 2, batch: int = 4, **config: object) -> Loader:
    dataset = open_dataset(folder)
    order = make_order(len(dataset), dataset.record_bytes, streams, seed=1)
    data = DataConfig(image_size=SIZE, **config)  # type: ignore[arg-type]
    num_classes = data.num_classes or dataset.num_classes
    return Loader(RecordSource(dataset), order, data, batch_size=batch, num_classes=num_classes)


def flat(steps: Iterator[list[Batch]]) -> list[tuple[list[int], int]]:
    return [(b.positions.tolist(), int(b.augmented(b.images).long().sum())) for step in steps for b in step]


@pytest.fixture(params=["file", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = str(tmp_path / "set") if request.param == "file" else request.getfixturevalue("bucket_url")
    write_dataset(url)
    return str(url)


def test_an_epoch_delivers_every_sample_once_with_its_label(folder: str) -> None:
    loader = make_loader(folder)
    batches = [batch for step in loader.steps(0, 0, [0, 1]) for batch in step]
    positions = np.concatenate([batch.positions for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    assert sorted(positions) == list(range(CLASSES * PER_CLASS))
    assert (labels == positions // PER_CLASS).all()
    assert batches[0].images.shape == (4, 3, SIZE, SIZE)


def test_batches_do_not_depend_on_the_start_or_on_which_process_runs_a_worker(folder: str) -> None:
    whole = flat(make_loader(folder, augment="small").steps(2, 0, [0, 1]))
    assert flat(make_loader(folder, augment="small", workers=1).steps(2, 3, [0, 1])) == whole[6:]
    assert flat(make_loader(folder, augment="small", prefetch=1).steps(2, 0, [1])) == whole[1::2]


def test_steps_go_on_over_the_ends_of_epochs_and_are_read_ahead_there(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(folder, augment="small")
    each = loader.steps_per_epoch
    apart = [batch for epoch in range(3) for batch in flat(loader.steps(epoch, 0, [0, 1]))]
    opened: list[int] = []
    closed: list[int] = []
    make, close = loader_module.WindowStream, WindowStream.close

    def opening(source: Source, order: SampleOrder, epoch: int, *arguments: Any) -> WindowStream:
        opened.append(epoch)
        return make(source, order, epoch, *arguments)

    def closing(stream: WindowStream) -> None:
        closed.append(stream._epoch)
        close(stream)

    monkeypatch.setattr(loader_module, "WindowStream", opening)
    monkeypatch.setattr(WindowStream, "close", closing)
    seen: list[list[Batch]] = []
    for batches in make_loader(folder, augment="small").steps(0, 2, [0, 1], 2 * each + 3):
        seen.append(batches)
        if len(seen) + 2 == each:  # the last step of the first epoch
            assert opened == [0, 0, 1, 1]
            assert not closed
        if len(seen) + 2 == each + 1:
            assert closed == [0, 0]
    assert flat(iter(seen)) == apart[4 : 4 + 2 * (2 * each + 3)]
    assert opened == closed == [0, 0, 1, 1, 2, 2]


def test_neighbouring_records_come_with_one_request(folder: str) -> None:
    reader = RecordReader(open_dataset(folder))
    records = reader.read([3, 1, 2])
    assert reader.requests == 1
    assert [reader.parse(p, r)[0].id for p, r in zip((3, 1, 2), records, strict=True)] == [4, 2, 3]


def test_a_damaged_image_is_skipped_and_counted_and_too_many_stop_the_run(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), bad={5})
    loader = make_loader(str(tmp_path), max_bad_share=0.01)
    with pytest.warns(UserWarning, match=r"skipped: .*train\.rec: record key 6 \(bytes \d+-\d+\): unreadable JPEG"):
        batches = flat(loader.steps(0, 0, [0, 1]))
    assert loader.bad_records == 1
    assert all(5 not in positions for positions, _ in batches)
    strict = make_loader(str(tmp_path), max_bad_share=0.0)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(RecordError, match=r"data\.max_bad_share"):
        flat(strict.steps(0, 0, [0, 1]))


def test_bad_records_count_over_the_whole_run(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), bad={5})
    loader = make_loader(str(tmp_path), max_bad_share=0.01)
    loader.bad_before = 9
    with pytest.warns(UserWarning, match="skipped"):
        batches = [batch for step in loader.steps(0, 0, [0, 1]) for batch in step]
    assert sum(batch.bad for batch in batches) == 1
    # It comes again in the next epoch: the eleventh of a thousand.
    with pytest.raises(RecordError, match="11 unreadable records among 1000"):
        flat(loader.steps(1, 0, [0, 1]))
    epoch = 1000 // (CLASSES * PER_CLASS) + 2  # late in a run ten are few
    loader.bad_before = 7
    flat(loader.steps(epoch, 0, [0, 1]))
    assert loader.figures()["decoded_per_thread_second"] > 0


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("step", range(6))
def test_batches_with_bad_records_are_the_same_after_a_resume_at_any_step(tmp_path: Path, step: int) -> None:
    write_dataset(str(tmp_path), bad={3, 5, 21, 40})

    def told(steps: Iterator[list[Batch]]) -> list[tuple[list[int], list[int], int, int]]:
        return [(b.positions.tolist(), b.labels.tolist(), int(b.images.long().sum()), b.bad) for s in steps for b in s]

    whole = told(make_loader(str(tmp_path), max_bad_share=1).steps(0, 0, [0, 1]))
    assert sum(bad for *_, bad in whole) == 4
    assert told(make_loader(str(tmp_path), max_bad_share=1).steps(0, step, [0, 1])) == whole[2 * step :]
    assert told(make_loader(str(tmp_path), max_bad_share=1).steps(0, step, [1])) == whole[2 * step + 1 :: 2]


def test_a_bad_record_is_named_once_whatever_comes_again(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), bad={5, 30})
    loader = make_loader(str(tmp_path), max_bad_share=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for epoch in range(3):
            flat(loader.steps(epoch, 0, [0, 1]))
    names = [str(warning.message) for warning in said if "skipped" in str(warning.message)]
    assert len(names) == 2
    assert {"key 6 " in name for name in names} == {True, False}
    assert loader.bad_records == 6


class CopiesStub:
    """Buffers full of noise, and copies that are there at once."""

    def buffer(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8)

    def send(self, buffer: Tensor) -> tuple[Tensor, str]:
        copied = buffer.clone()
        buffer.fill_(0)  # used again at once
        return copied, "there"


@pytest.mark.filterwarnings("ignore:skipped")
def test_batches_that_were_copied_ahead_are_the_same(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), bad={5})
    plain, copied = make_loader(str(tmp_path)), make_loader(str(tmp_path))
    copied._copies = CopiesStub()  # type: ignore[assignment]
    for ours, theirs in zip(plain.steps(0, 0, [0, 1]), copied.steps(0, 0, [0, 1]), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.images, other.images)
            assert (one.there, other.there) == (None, "there")
            assert other.images.is_contiguous(memory_format=torch.channels_last)


def test_a_label_out_of_range_is_never_skipped(tmp_path: Path) -> None:
    write_dataset(str(tmp_path))
    with pytest.raises(RecordError, match=r"label 5 is outside 0\.\.4"):
        flat(make_loader(str(tmp_path), num_classes=5).steps(0, 0, [0, 1]))


def test_images_of_another_size_are_resized_with_a_warning_or_refused(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), side=20)
    with pytest.warns(UserWarning, match="20x20, not 16 square"):
        batches = list(make_loader(str(tmp_path)).steps(0, 0, [0, 1]))
    assert batches[0][0].images.shape[-1] == SIZE
    with pytest.raises(RecordError, match=r"data\.resize"):
        flat(make_loader(str(tmp_path), resize="refuse").steps(0, 0, [0, 1]))


def test_a_truncated_rec_is_refused_when_opened(folder: str) -> None:
    url = storage.join(folder, "train.rec")
    storage.write_bytes(url, storage.read_bytes(url)[:5000])
    with pytest.raises(RecordError, match="truncated"):
        open_dataset(folder)


def test_a_rec_truncated_after_opening_is_told(folder: str) -> None:
    dataset = open_dataset(folder)
    storage.write_bytes(dataset.url, storage.read_bytes(dataset.url)[:5000])
    with pytest.raises(StorageError, match=r"train\.rec"):
        RecordReader(dataset).read(range(len(dataset)))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "is empty"),
        (b"0\t0\n1", "inside a line"),
        (b"0\tx\n", "not an index"),
        (b"0\t0\n1\t4\n", "no room"),
        (b"0 0 extra words\n", "not an index"),
    ],
)
def test_a_damaged_index_is_told(tmp_path: Path, index: bytes, message: str) -> None:
    write_dataset(str(tmp_path))
    (tmp_path / "train.idx").write_bytes(index)
    with pytest.raises(RecordError, match=message):
        open_dataset(str(tmp_path))


def test_a_dataset_without_images_is_told(tmp_path: Path) -> None:
    with RecordWriter(str(tmp_path / "train.rec")) as writer:
        writer.write(0, pack_image(ImageHeader((1.0, 1.0), is_array=True), b""))
    with pytest.raises(RecordError, match="holds no image"):
        open_dataset(str(tmp_path))


def test_a_plain_dataset_without_identity_records_takes_its_classes_from_the_property_file(tmp_path: Path) -> None:
    with RecordWriter(str(tmp_path / "train.rec")) as writer:
        for key in range(3):
            writer.write(key, pack_image(ImageHeader((float(key),), key), b"jpeg"))
    assert (len(open_dataset(str(tmp_path))), open_dataset(str(tmp_path)).num_classes) == (3, 0)
    (tmp_path / "property").write_text("3,112,112")
    assert open_dataset(str(tmp_path)).num_classes == 3
