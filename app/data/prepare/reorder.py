"""The same records in another order, or in two files: shuffle a dataset, split people off. Memory stays bounded."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.dataset import Dataset, open_dataset
from app.data.decode import decode_image
from app.data.prepare.errors import PrepareError
from app.data.prepare.folder import dump_people
from app.data.prepare.pairs import draw_pairs, load_pairs, write_pairs
from app.data.prepare.source import same_place
from app.data.prepare.tools import read_all
from app.data.reader import RecordReader
from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.recordio import ImageHeader, RecordError, class_of, pack_image
from app.parsing import ParseError, parse_people
from app.seeds import numpy_stream

BUCKET_BYTES = 256 << 20


def shuffle_dataset(url: str, output: str, seed: int) -> str:
    """Write the same records in a random order, for readers that shuffle in small windows only.

    The source is read once, from front to back: records are dealt out to buckets of about 256 MiB in the temporary
    folder (``TMPDIR``; it needs room for the dataset), then each bucket is put in order and written. Identity records
    go away with the order that they describe; the ``property`` file keeps the class count.

    Raises:
        PrepareError: a record is damaged; nothing is written.
    """
    if same_place(url, output):
        raise PrepareError(f"{storage.redact(output)}: the output is the dataset itself: name another folder")
    dataset = open_dataset(url)
    order = numpy_stream(seed, "prepare.shuffle").permutation(len(dataset))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    rows = max(1, int(BUCKET_BYTES / dataset.record_bytes))
    with tempfile.TemporaryDirectory(prefix="shuffle-") as folder:
        buckets = [Path(folder, str(number)) for number in range(-(-len(order) // rows))]
        _deal_out(dataset, place, rows, buckets)
        with RecordWriter(storage.join(output, "train.rec")) as writer:
            for number, bucket in enumerate(buckets):
                for key, data in enumerate(_in_order(bucket), start=number * rows):
                    writer.write(key, data)
                bucket.unlink()
    if dataset.num_classes:
        storage.write_bytes(storage.join(output, "property"), property_of(dataset, dataset.num_classes))
    if names := read_people(url):
        storage.write_bytes(storage.join(output, "people.json"), dump_people(names))
    return f"{len(order)} records in the order of seed {seed}"


def _deal_out(dataset: Dataset, place: NDArray[np.int64], rows: int, buckets: Sequence[Path]) -> None:
    """Append each record, with its place and size as two int64, to the bucket of its place."""
    with ExitStack() as stack:
        files = [stack.enter_context(bucket.open("wb")) for bucket in buckets]
        for position, header, image in sound_records(dataset):
            data, target = pack_image(header, image), int(place[position])
            files[target // rows].write(np.array([target, len(data)], dtype="<i8").tobytes() + data)


def _in_order(bucket: Path) -> list[bytes]:
    content, found, start = bucket.read_bytes(), {}, 0
    while start < len(content):
        target, size = np.frombuffer(content, dtype="<i8", count=2, offset=start).tolist()
        found[target] = content[start + 16 : start + 16 + size]
        start += 16 + size
    return [found[target] for target in sorted(found)]


def split_dataset(url: str, output: str, *, people: int, seed: int, pairs: int = 0) -> str:
    """Split off some people: they go to ``output/held-out``, the others, renumbered, to ``output/train``.

    Pairs of the held-out people go to ``output/train/held-out.bin``, where training and verification find them. Labels
    are read in a first pass, images in a second.

    Args:
        url: folder of the dataset.
        output: folder to write to.
        people: how many are held out.
        seed: of their choice and of the pairs.
        pairs: how many; 0: 6000, or as many as there are.

    Raises:
        PrepareError: a record, or an image of a pair, is damaged, or there are not more people than are to be held
            out, or not as many pairs; nothing is written.
    """
    dataset = open_dataset(url)
    labels = np.empty(len(dataset), dtype=np.int64)
    for position, header, _ in sound_records(dataset):
        labels[position] = class_at(dataset, position, header)
    known, names = np.unique(labels), read_people(url)
    if not 0 < people < len(known):
        raise PrepareError(f"--people must be 1..{len(known) - 1}, got {people}")
    held_out = numpy_stream(seed, "prepare.split").permutation(known)[:people]
    apart = np.flatnonzero(np.isin(labels, held_out))
    drawn, why = [], ""
    try:
        where = f"the {people} held-out people of {dataset.url}"
        drawn = draw_pairs(labels[apart].tolist(), pairs, seed, where, option="--pairs")
    except PrepareError as error:
        if pairs:
            raise
        why = str(error)
    in_dataset = [(int(apart[a]), int(apart[b]), same) for a, b, same in drawn]
    images = load_pairs(dataset, in_dataset)
    for name, members in (("held-out", np.sort(held_out)), ("train", np.setdiff1d(known, held_out))):
        positions = np.flatnonzero(np.isin(labels, members))
        grouped = positions[np.argsort(labels[positions], kind="stable")]
        with RecordWriter(storage.join(output, name, "train.rec")) as writer:
            write_identity_layout(writer, np.searchsorted(members, labels[grouped]).tolist(), _images(dataset, grouped))
        storage.write_bytes(storage.join(output, name, "property"), property_of(dataset, len(members)))
        if len(names) > int(known[-1]):
            chosen = [names[int(member)] for member in members]
            storage.write_bytes(storage.join(output, name, "people.json"), dump_people(chosen))
    text = f"{people} people held out, {len(known) - people} to train on"
    bin_url = storage.join(output, "train", "held-out.bin")
    if not drawn:
        if storage.exists(bin_url):  # of an earlier split, whose people may be trained on now
            storage.delete_tree(bin_url)
        return f"{text}; no held-out.bin: {why}"
    return f"{text}; train/held-out.bin: " + write_pairs(images, in_dataset, bin_url)


def property_of(dataset: Dataset, num_classes: int) -> bytes:
    """The file ``property``, ``classes,height,width``, with the size of the dataset's first image that is one."""
    for _, _, data in sound_records(dataset):
        with contextlib.suppress(RecordError):
            height, width, _ = decode_image(data).shape
            return f"{num_classes},{height},{width}".encode()
    raise PrepareError(f"{dataset.url}: no image in it can be decoded")


def read_people(url: str) -> list[str]:
    """Names in class order, where the dataset has them."""
    place = storage.join(url, "people.json")
    if not storage.exists(place):
        return []
    try:
        names = parse_people(storage.read_bytes(place), place)
    except ParseError as error:
        raise PrepareError(f"{error}: correct or delete it") from None
    if not isinstance(names, list):
        raise PrepareError(f"{storage.redact(place)}: expected a list of names: correct or delete it")
    return [str(name) for name in names]


def class_at(dataset: Dataset, position: int, header: ImageHeader) -> int:
    """The class of an image; an error names the record."""
    try:
        return class_of(header)
    except RecordError as error:
        raise PrepareError(f"{RecordReader(dataset).describe(position)}: {error}") from error


def _images(dataset: Dataset, positions: NDArray[np.int64]) -> Iterator[bytes]:
    reader = RecordReader(dataset)
    for position, record in reader.stream(positions):
        yield reader.parse(position, record)[1]


def sound_records(dataset: Dataset) -> Iterator[tuple[int, ImageHeader, bytes]]:
    """Position, header and image bytes of every record; the first damaged one is an error."""
    for position, header, image, problem in read_all(dataset):
        if header is None:
            raise PrepareError(f"{problem}: mend the dataset first (app.prepare check)")
        yield position, header, image
