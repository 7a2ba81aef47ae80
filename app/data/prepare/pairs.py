"""Verification sets: from images and a list of pairs, or drawn from people who were held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from app import storage
from app.data.bin_sets import dump_set
from app.data.dataset import Dataset, open_dataset
from app.data.decode import decode_image
from app.data.prepare.alignment import FaceFinder
from app.data.prepare.errors import PrepareError
from app.data.prepare.findings import Skipped, first_of
from app.data.prepare.folder import FaceOptions, list_jobs, make_face
from app.data.prepare.pair_list import read_pairs
from app.data.prepare.photograph import PhotographError
from app.data.prepare.source import Source
from app.data.prepare.tools import read_all
from app.data.reader import RecordReader
from app.data.recordio import RecordError
from app.seeds import numpy_stream

DEFAULT_PAIRS = 6000  # as many as LFW has


def prepare_pairs(source: str, pairs: str, output: str, face: FaceOptions | None = None) -> str:
    """Write a ``.bin`` file of the pairs of a list; returns a line about it.

    Args:
        source: folder URL of the images.
        pairs: URL of the list; see ``pair_list.read_pairs``.
        output: URL of the ``.bin`` file.
        face: how a photograph becomes an image; must be as it is in training.

    Raises:
        PrepareError: a line is not such a pair, or an image is missing or unreadable; names the line.
    """
    face = face or FaceOptions()
    finder, folder = face.find_faces(), Source(source)
    images: dict[str, bytes] = {}
    bad: dict[str, Skipped] = {}
    listed = read_pairs(pairs, folder)
    for pair in listed:
        for name in (pair.first, pair.second):
            if name not in images and name not in bad:
                try:
                    images[name] = _load(folder, name, face, finder)
                except PhotographError as error:
                    bad[name] = Skipped(f"line {pair.line}: {name}", error.reason, error.detail)
    if bad:
        many = f"{len(bad)} pictures cannot be taken" if len(bad) > 1 else "a picture cannot be taken"
        raise PrepareError(f"{storage.redact(pairs)}: {many}{first_of(list(bad.values()))}")
    issame = [pair.same for pair in listed]
    encoded = [images[name] for pair in listed for name in (pair.first, pair.second)]
    storage.write_bytes(output, dump_set(encoded, issame))
    return f"{len(issame)} pairs, {sum(issame)} of them genuine, of {len(images)} images"


def draw_folder_pairs(
    source: str, output: str, *, count: int = 0, seed: int = 0, face: FaceOptions | None = None
) -> str:
    """Write a ``.bin`` file of pairs drawn from a folder of photographs, one subfolder a person; see ``draw_pairs``.

    Pairs with a picture that cannot be taken are drawn anew without it; the lines that are returned name it.
    """
    face = face or FaceOptions()
    finder, folder = face.find_faces(), Source(source)
    jobs, _ = list_jobs(folder, "first", [])
    labels = _numbered([job.person for job in jobs])
    images: dict[int, bytes] = {}
    bad: dict[int, Skipped] = {}
    while True:
        left = [number for number in range(len(jobs)) if number not in bad]
        drawn = draw_pairs([labels[number] for number in left], count, seed, _without(source, bad))
        pairs = [(left[a], left[b], same) for a, b, same in drawn]
        wanted = {number for a, b, _ in pairs for number in (a, b)}
        for number in sorted(wanted - images.keys()):
            name = jobs[number].file.name
            try:
                images[number] = _load(folder, name, face, finder)
            except PhotographError as error:
                bad[number] = Skipped(name, error.reason, error.detail)
        if not wanted & bad.keys():
            break
    text = write_pairs(images, pairs, output)
    return f"{text}\nleft out: {len(bad)} that cannot be taken{first_of(list(bad.values()))}" if bad else text


def _without(source: str, bad: dict[int, Skipped]) -> str:
    """The folder, for messages, and what of it cannot be taken."""
    left_out = f" without {len(bad)} pictures that cannot be taken{first_of(list(bad.values()))}" if bad else ""
    return f"{storage.redact(source)}{left_out}"


def draw_dataset_pairs(data: str, output: str, *, count: int = 0, seed: int = 0) -> str:
    """Write a ``.bin`` file of pairs drawn from a dataset (``train.rec``) of people who are not trained on."""
    dataset = open_dataset(data)
    labels = np.empty(len(dataset), dtype=np.int64)
    for position, header, _, problem in read_all(dataset):
        if header is None:
            raise PrepareError(f"{problem}: mend the dataset first (app.prepare check)")
        labels[position] = int(header.labels[0])
    pairs = draw_pairs(labels.tolist(), count, seed, dataset.url)
    return write_pairs(load_pairs(dataset, pairs), pairs, output)


def load_pairs(dataset: Dataset, pairs: Sequence[tuple[int, int, bool]]) -> dict[int, bytes]:
    """The images of pairs of a dataset's positions, by their positions.

    Raises:
        PrepareError: one cannot be decoded, on which each verification would end; names its record.
    """
    wanted = sorted({number for a, b, _ in pairs for number in (a, b)})
    reader, images = RecordReader(dataset), {}
    for position, record in reader.stream(np.array(wanted, dtype=np.int64)):
        images[position] = reader.parse(position, record)[1]
        try:
            decode_image(images[position])
        except RecordError as error:
            raise PrepareError(f"{reader.describe(position)}: {error}: app.prepare mend leaves it out") from error
    return images


def draw_pairs(
    labels: Sequence[int], count: int, seed: int, where: str = "the dataset", *, option: str = "--count"
) -> list[tuple[int, int, bool]]:
    """Draw ``count`` different pairs, half of them genuine, in turns, so that every fold of ten holds both kinds alike.

    Every genuine pair is as likely as any other, and every impostor pair. The draw depends on labels, count and seed.

    Args:
        labels: person of each image.
        count: how many pairs; 0: 6000, or as many as there are.
        seed: of the draw.
        where, option: for messages.

    Returns:
        Numbers of two images, and whether they show the same person.

    Raises:
        PrepareError: there are not as many pairs.
    """
    of_person: dict[int, list[int]] = {}
    for number, label in enumerate(labels):
        of_person.setdefault(int(label), []).append(number)
    members = list(of_person.values())
    genuine = [math.comb(len(images), 2) for images in members]
    most = min(sum(genuine), math.comb(len(labels), 2) - sum(genuine))
    if most == 0:
        raise PrepareError(
            f"{where}: no balanced pairs: {len(labels)} images of {len(members)} people; at least two people and two "
            "images of one of them are needed"
        )
    half = min(DEFAULT_PAIRS // 2, most) if count == 0 else count // 2
    if count < 0 or count % 2 or half > most:
        raise PrepareError(f"{where}: {option} must be an even number up to {2 * most}, got {count}")
    same = _draw_genuine(members, genuine, half, seed)
    different = _draw_impostors(members, half, seed)
    return [pair for both in zip(same, different, strict=True) for pair in both]


def _draw_genuine(
    members: Sequence[Sequence[int]], genuine: Sequence[int], half: int, seed: int
) -> list[tuple[int, int, bool]]:
    ends = np.cumsum(genuine)
    drawn = []
    for chosen in _distinct(int(ends[-1]), half, numpy_stream(seed, "pairs.genuine")):
        person = int(np.searchsorted(ends, chosen, side="right"))
        a, b = _unrank(chosen - (int(ends[person]) - genuine[person]))
        drawn.append((members[person][a], members[person][b], True))
    return drawn


def _draw_impostors(members: Sequence[Sequence[int]], half: int, seed: int) -> list[tuple[int, int, bool]]:
    """Pairs of two people's images. An ordered pair is drawn: an image, then one of all that are not of its person."""
    images = np.array([image for own in members for image in own])  # grouped by person
    sizes = np.array([len(own) for own in members])
    person = np.repeat(np.arange(len(members)), sizes)
    starts = np.cumsum(sizes) - sizes
    ends = np.cumsum(len(images) - sizes[person])  # each image has as many partners as there are others' images
    total, generator = int(ends[-1]), numpy_stream(seed, "pairs.impostors")
    in_turn = iter(generator.permutation(total)) if total <= max(1 << 20, 8 * half) else None
    drawn: dict[tuple[int, int], None] = {}
    while len(drawn) < half:
        chosen = int(next(in_turn) if in_turn is not None else generator.integers(total))
        first = int(np.searchsorted(ends, chosen, side="right"))
        own = person[first]
        second = chosen - int(ends[first] - (len(images) - sizes[own]))
        second += int(sizes[own]) if second >= starts[own] else 0
        a, b = sorted((int(images[first]), int(images[second])))
        drawn[a, b] = None
    return [(a, b, False) for a, b in drawn]


def _distinct(total: int, count: int, generator: np.random.Generator) -> list[int]:
    """``count`` different numbers below ``total``, in random order."""
    if total <= max(1 << 20, 4 * count):
        return [int(number) for number in generator.permutation(total)[:count]]
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen[int(generator.integers(total))] = None
    return list(chosen)


def _unrank(number: int) -> tuple[int, int]:
    """The pair ``(a, b)``, a < b, that stands at ``number`` when pairs are listed by b, then a: C(b, 2) + a."""
    b = (1 + math.isqrt(1 + 8 * number)) // 2
    return number - math.comb(b, 2), b


def _numbered(names: Sequence[str]) -> list[int]:
    number_of: dict[str, int] = {}
    return [number_of.setdefault(name, len(number_of)) for name in names]


def write_pairs(images: Mapping[int, bytes], pairs: Sequence[tuple[int, int, bool]], output: str) -> str:
    """Write pairs of numbered images as a ``.bin`` file; returns a line about it."""
    count = len({number for a, b, _ in pairs for number in (a, b)})
    storage.write_bytes(
        output, dump_set([images[i] for a, b, _ in pairs for i in (a, b)], [same for *_, same in pairs])
    )
    return f"{len(pairs)} pairs, {len(pairs) // 2} of them genuine, of {count} images"


def _load(source: Source, name: str, face: FaceOptions, finder: FaceFinder | None) -> bytes:
    """The training image of a photograph.

    Raises:
        PhotographError: it cannot be taken.
        StorageError: the store does not answer.
    """
    try:
        return make_face(source.read(name), face, finder, name)[0]
    except storage.StorageError as error:
        if error.transient:
            raise
        raise PhotographError("unreadable", str(error)) from error
