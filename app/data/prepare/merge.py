"""One dataset of several, and a sound dataset of one that is not: records are copied, classes numbered anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.dataset import Dataset, open_dataset
from app.data.decode import decode_image
from app.data.prepare.errors import PrepareError
from app.data.prepare.findings import Findings, Skipped
from app.data.prepare.folder import dump_people
from app.data.prepare.reorder import class_at, property_of, read_people, sound_records
from app.data.prepare.source import same_place
from app.data.prepare.tools import read_all
from app.data.reader import RecordReader
from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.recordio import RecordError, class_of

People = Literal["separate", "shared"]


def merge_datasets(urls: Sequence[str], output: str, people: People = "separate") -> str:
    """Write the images of several datasets as one; returns a line about it.

    Args:
        urls: folders of the datasets; the classes of the first come first.
        output: folder to write to.
        people: ``separate``: every class stays one of its own. ``shared``: people of one name, which ``people.json``
            tells, become one class.

    Raises:
        PrepareError: there is one dataset only, a record is damaged, or names are needed and missing; nothing is
            written.
    """
    if len(urls) < 2:
        raise PrepareError("merge: give --data twice or more, one dataset each")
    if any(same_place(url, output) for url in urls):
        raise PrepareError(f"{storage.redact(output)}: the output is one of the datasets: name another folder")
    datasets = [open_dataset(url) for url in urls]
    labels = [_labels(dataset) for dataset in datasets]
    names = [_names(url, own, dataset) for url, own, dataset in zip(urls, labels, datasets, strict=True)]
    if people == "shared" and (nameless := [url for url, own in zip(urls, names, strict=True) if not own]):
        raise PrepareError(f"{storage.redact(nameless[0])}: no people.json there: --people shared needs names")
    merged, merged_names = _number_classes(labels, names, shared=people == "shared")
    with RecordWriter(storage.join(output, "train.rec")) as writer:
        order = np.argsort(np.concatenate(merged), kind="stable")  # by class, then by dataset, then as they were
        write_identity_layout(writer, np.concatenate(merged)[order].tolist(), _images(datasets, order))
    classes = int(max(own.max() for own in merged)) + 1
    storage.write_bytes(storage.join(output, "property"), property_of(datasets[0], classes))
    if merged_names:
        storage.write_bytes(storage.join(output, "people.json"), dump_people(merged_names))
    sizes = {property_of(dataset, 0) for dataset in datasets}
    more = "; images differ in size: export them and prepare them anew in one" if len(sizes) > 1 else ""
    return f"{len(order)} images of {classes} people from {len(urls)} datasets{more}"


def mend_dataset(url: str, output: str) -> str:
    """Write what is sound of a dataset, with a header and identity records that are true; returns lines about it.

    Damaged records, images that cannot be decoded and labels that are no class are left out and listed in
    ``skipped.csv``; classes without an image go away, and the others are numbered anew in their order.

    Raises:
        PrepareError: nothing is sound, or the output is the dataset itself; nothing is written.
    """
    if same_place(url, output):
        raise PrepareError(f"{storage.redact(output)}: the output is the dataset itself: name another folder")
    dataset = open_dataset(url)
    labels, size, skipped = _look_through(dataset)
    sound = np.flatnonzero(labels >= 0)
    if not len(sound):
        raise PrepareError(f"{dataset.url}: no image in it is sound: {skipped[0].detail}")
    known = np.unique(labels[sound])
    grouped = sound[np.argsort(labels[sound], kind="stable")]
    with RecordWriter(storage.join(output, "train.rec")) as writer:
        write_identity_layout(writer, np.searchsorted(known, labels[grouped]).tolist(), _images([dataset], grouped))
    storage.write_bytes(storage.join(output, "property"), f"{len(known)},{size[0]},{size[1]}".encode())
    if len(names := read_people(url)) > int(known[-1]):
        storage.write_bytes(storage.join(output, "people.json"), dump_people([names[int(label)] for label in known]))
    findings = Findings(skipped, [], 0)
    findings.write(output)
    text = f"{len(sound)} images of {len(known)} people{findings.summary()}"
    gone = max(dataset.num_classes, int(known[-1]) + 1) - len(known)
    return f"{text}\n{gone} classes without an image went away; the others are numbered anew" if gone else text


def _look_through(dataset: Dataset) -> tuple[NDArray[np.int64], tuple[int, int], list[Skipped]]:
    """The class of each record, -1 where it is not sound; height and width of the first sound image; what is not."""
    reader, skipped, size = RecordReader(dataset), [], (0, 0)
    labels = np.full(len(dataset), -1, dtype=np.int64)
    for position, header, image, problem in read_all(dataset):
        try:
            if header is None:
                raise RecordError(problem)
            label, shape = class_of(header), decode_image(image).shape
        except RecordError as error:
            reason = "damaged record" if header is None else "unreadable"
            detail = problem or f"{reader.describe(position)}: {error}"
            skipped.append(Skipped(f"key {int(dataset.keys[position])}", reason, detail))
            continue
        if label < 0:
            where = f"{reader.describe(position)}: label {label}"
            skipped.append(Skipped(f"key {int(dataset.keys[position])}", "no class", where))
            continue
        labels[position], size = label, size if size[0] else (shape[0], shape[1])
    return labels, size, skipped


def _labels(dataset: Dataset) -> NDArray[np.int64]:
    labels = np.empty(len(dataset), dtype=np.int64)
    for position, header, _ in sound_records(dataset):
        labels[position] = class_at(dataset, position, header)
    return labels


def _names(url: str, labels: NDArray[np.int64], dataset: Dataset) -> list[str]:
    names, classes = read_people(url), max(dataset.num_classes, int(labels.max()) + 1)
    if names and len(names) != classes:
        raise PrepareError(f"{dataset.url}: {classes} classes, but people.json has {len(names)} names")
    return names


def _number_classes(
    labels: Sequence[NDArray[np.int64]], names: Sequence[Sequence[str]], *, shared: bool
) -> tuple[list[NDArray[np.int64]], list[str]]:
    """The new class of each image, by dataset, and names in class order where all datasets have them.

    Classes without an image go away.
    """
    number_of: dict[tuple[int, str], int] = {}
    merged, all_named = [], all(names)
    for place, (own, known) in enumerate(zip(labels, names, strict=True)):
        present = np.unique(own)
        keys = [(0 if shared else place, known[label] if all_named else str(label)) for label in present.tolist()]
        numbers = np.array([number_of.setdefault(key, len(number_of)) for key in keys], dtype=np.int64)
        merged.append(numbers[np.searchsorted(present, own)])
    if not all_named:
        return merged, []
    taken: set[str] = set()
    result = []
    for place, name in number_of:
        unique, more = name, place
        while unique in taken:  # two people of one name stay two
            more += 1
            unique = f"{name} ({more})"
        taken.add(unique)
        result.append(unique)
    return merged, result


def _images(datasets: Sequence[Dataset], order: NDArray[np.int64]) -> Iterator[bytes]:
    """The images at these positions, counted through all datasets; each dataset is read as one stream."""
    starts = np.cumsum([0, *(len(dataset) for dataset in datasets)])
    place = np.searchsorted(starts, order, side="right") - 1
    readers = [RecordReader(dataset) for dataset in datasets]
    streams = [reader.stream(order[place == i] - starts[i]) for i, reader in enumerate(readers)]
    for i in place.tolist():
        position, record = next(streams[i])
        yield readers[i].parse(position, record)[1]
