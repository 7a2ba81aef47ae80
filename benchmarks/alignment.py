"""What does it cost to compare faces that are not aligned? Real faces (AT&T/ORL), the same pairs throughout.

Two models are trained with the recipe ``orl``, on 30 people each: one on aligned faces, one on whole pictures. Both
are verified on the ten others: aligned, whole, and aligned but then moved, turned or scaled by so much, each
picture to a side of its own. Other people are held out in each round; mean and range over the rounds are printed.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from app import storage
from app.command_line import CommandLine
from app.data.decode import decode_image
from app.data.prepare.alignment import TEMPLATE, Points, bring_to
from app.data.prepare.detection import shared_detector
from app.data.prepare.folder import list_jobs
from app.data.prepare.orl import find_photographs
from app.data.prepare.pairs import draw_pairs
from app.data.prepare.photograph import fit_square, open_photograph, to_jpeg
from app.data.prepare.source import Source
from app.data.record_writer import RecordWriter, write_identity_layout
from app.device import detect_device
from app.evaluate.metrics import verification_metrics
from app.evaluate.model_source import open_model
from app.seeds import numpy_stream
from benchmarks.machine import describe

HELD_OUT, SIZE = 10, 112

Picture = tuple[Image.Image, Points]  # and where its face is
Make = Callable[[Picture, np.random.Generator], Image.Image]


def moved(*, pixels: float = 0, degrees: float = 0, factor: float = 1) -> Make:
    """Aligns a face, and then moves, turns and scales it by so much, to a side that is drawn."""

    def make(picture: Picture, generator: np.random.Generator) -> Image.Image:
        image, points = picture
        way, side = generator.uniform(0, 2 * math.pi), float(generator.choice([-1.0, 1.0]))
        turn, scale = math.radians(degrees) * side, factor**side
        matrix = scale * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        shift = pixels * np.array([math.cos(way), math.sin(way)])
        target = (TEMPLATE + 0.5 - SIZE / 2) @ matrix.T + SIZE / 2 + shift
        return bring_to(image, points + 0.5, target, SIZE)[0]

    return make


def whole(picture: Picture, _: np.random.Generator) -> Image.Image:
    """What ``app.prepare folder`` makes of a photograph without alignment."""
    return fit_square(picture[0], SIZE)


WAYS: dict[str, Make] = {
    "aligned": moved(),
    "whole picture": whole,
    **{f"moved by {pixels} pixels": moved(pixels=pixels) for pixels in (3, 6, 12)},
    **{f"turned by {degrees} degrees": moved(degrees=degrees) for degrees in (5, 10, 20)},
    **{f"scaled by {factor}": moved(factor=factor) for factor in (1.1, 1.25)},
}


def load_pictures() -> list[list[Picture]]:
    """The photographs of each person, with the points of the face in it."""
    source, detector = Source(find_photographs()), shared_detector()
    people: dict[str, list[Picture]] = {}
    for job in list_jobs(source, "first", [])[0]:
        if not job.file.name.endswith(".pgm"):  # the package keeps a picture of its own among them
            continue
        picture = open_photograph(source.read(job.file.name))
        people.setdefault(job.person, []).append((picture, detector.choose(job.file.name, picture, "largest")))
    return list(people.values())


def train(folder: str, people: list[list[Picture]], make: Make, epochs: int, seed: int) -> str:
    """Train on these people; returns the run's folder."""
    generator = np.random.default_rng(seed)
    images = [(label, to_jpeg(make(picture, generator))) for label, own in enumerate(people) for picture in own]
    with RecordWriter(storage.join(folder, "data", "train.rec")) as writer:
        write_identity_layout(writer, [label for label, _ in images], [image for _, image in images])
    storage.write_bytes(storage.join(folder, "data", "property"), f"{len(people)},{SIZE},{SIZE}".encode())
    options = ["--data.url", f"{folder}/data", "--output.url", f"{folder}/runs", "--verify.sets", ","]
    options += ["--train.epochs", str(epochs), "--train.seed", str(seed), "--output.onnx", "false"]
    command = [sys.executable, "-m", "app.train", "--recipe", "orl", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return f"{folder}/runs/orl"


def accuracies(model: str, people: list[list[Picture]], seed: int) -> dict[str, float]:
    """Ten-fold accuracy of a model on all genuine pairs of these people and as many others, made in each way."""
    embed = open_model(model, detect_device()).embed
    pairs = draw_pairs([label for label, own in enumerate(people) for _ in own], 0, seed)
    found = {}
    for name, make in WAYS.items():
        generator = np.random.default_rng(seed)
        images = [decode_image(to_jpeg(make(picture, generator))) for own in people for picture in own]
        batch = np.stack(images).transpose(0, 3, 1, 2)
        embeddings = embed(batch) + embed(np.ascontiguousarray(batch[..., ::-1]))
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        first, second = (embeddings[[pair[i] for pair in pairs]] for i in (0, 1))
        distances = np.square(first - second).sum(axis=1, dtype=np.float64)
        found[name] = verification_metrics(distances, np.array([same for *_, same in pairs])).accuracy
    return found


def main() -> None:
    """Train, verify, print the table."""
    parser = CommandLine("python -m benchmarks.alignment", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="other people are held out in each")
    parser.add_argument("--epochs", type=int, default=50)
    options = parser.parse_args()
    people = load_pictures()
    arms = {"aligned faces": moved(), "whole pictures": whole}
    measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for number in range(options.rounds):
        order = numpy_stream(number, "benchmark.alignment").permutation(len(people))
        apart, known = [people[i] for i in order[:HELD_OUT]], [people[i] for i in order[HELD_OUT:]]
        for arm, make in arms.items():
            with tempfile.TemporaryDirectory() as folder:
                model = train(folder, known, make, options.epochs, number)
                measured[arm].append(accuracies(model, apart, number))
            print(f"round {number}, trained on {arm}: {measured[arm][-1]}", file=sys.stderr, flush=True)
    print(f"Machine: {describe()}. {options.rounds} rounds of {options.epochs} epochs.\n")
    print("| verified on | " + " | ".join(f"trained on {arm}" for arm in arms) + " |\n" + "| --- " * 3 + "|")
    for way in WAYS:
        columns = [[found[way] for found in measured[arm]] for arm in arms]
        cells = [f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in columns]
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
