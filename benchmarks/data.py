"""Loading: the bare decoder, the reference's pipeline and ours on the same images; the first batch of a large dataset.

    python -m benchmarks.data [--images N] [--index-lines N]

All sides decode the same JPEG files on one thread, in alternating rounds; medians are printed. The reference's pipeline
is stood in for by its steps (whole-record read, decode, PIL flip, to float, normalise per image); mxnet itself needs an
environment of its own and is not measured here. Nor are other libraries.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from app.data.augment import AUGMENTATIONS
from app.data.build import make_loader, open_source
from app.data.config import DataConfig
from app.data.decode import encode_jpeg
from app.data.pixels import normalise_
from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.recordio import ImageHeader, pack_image, pack_record, unpack_image, unpack_record
from benchmarks.machine import describe

ROUNDS, BATCH = 5, 128
_FIRST_BATCH = """
import resource, sys, time
started = time.perf_counter()
from concurrent.futures import ThreadPoolExecutor
from app.data.build import make_loader, open_source
from app.data.config import DataConfig
from app.data.window import WindowStream
config = DataConfig(url=sys.argv[1])
source = open_source(config, 0)
opened = time.perf_counter()
loader = make_loader(source, config, num_classes=source.num_classes, batch_size=128, logical_workers=1, seed=0)
with ThreadPoolExecutor(8) as pool:
    WindowStream(source, loader.order, 0, 0, pool).read(0, 128)
    done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{done - started:.2f} s from import to the first batch's records, {opened - started:.2f} s of it to open; "
      f"peak memory {peak:.0f} MiB")
loader.close()
"""


def write_images(folder: str, count: int) -> None:
    """Smooth noise of the size of faces: about 7 kB a JPEG."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (64, 28, 28, 3), dtype=np.uint8)
    jpegs = [encode_jpeg(np.asarray(Image.fromarray(image).resize((112, 112)))) for image in small]
    print(f"{count} images of {statistics.mean(map(len, jpegs)):.0f} bytes")
    with RecordWriter(f"{folder}/train.rec") as writer:
        write_identity_layout(writer, [i // 50 for i in range(count)], (jpegs[i % 64] for i in range(count)))


def bare_decoder(folder: str) -> Callable[[], int]:
    """Decode the images and nothing else."""
    source = open_source(DataConfig(url=folder), 0)
    encoded = [source.parse(p, r).image for p, r in enumerate(source.read(np.arange(len(source))))]

    def run() -> int:
        for data in encoded:
            simplejpeg.decode_jpeg(data, colorspace="RGB")
        return len(encoded)

    return run


def reference_steps(folder: str) -> Callable[[], int]:
    """The steps of arcface_torch's MXFaceDataset and its transforms."""
    source = open_source(DataConfig(url=folder), 0)
    generator = np.random.default_rng(0)

    def run() -> int:
        images = []
        for position in generator.permutation(len(source)):
            _, data = unpack_image(unpack_record(source.read(np.array([position]))[0])[0])
            image = Image.open(io.BytesIO(data)).convert("RGB")
            if generator.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
            images.append(tensor.sub_(0.5).div_(0.5))
            if len(images) == BATCH:
                torch.stack(images)
                images = []
        return len(source)

    return run


def our_loader(folder: str, augment: str) -> Callable[[], int]:
    """An epoch of ours, to normalised float batches."""
    config = DataConfig(url=folder, augment=augment, workers=1, prefetch=1)
    source = open_source(config, 0)
    loader = make_loader(source, config, num_classes=source.num_classes, batch_size=BATCH, logical_workers=1, seed=0)
    epoch = 0

    def run() -> int:
        nonlocal epoch
        count = 0
        for (batch,) in loader.steps(epoch, 0, [0]):
            normalise_(batch.augmented(batch.images).float())
            count += len(batch.labels)
        epoch += 1
        return count

    return run


def measure(sides: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Images a second of processor time (all threads) of each side, medians of alternating rounds."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, run in sides.items():
            started = time.process_time()
            count = run()
            rates[name].append(count / (time.process_time() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def first_batch(folder: str, lines: int) -> None:
    """Time and memory to the first batch of a dataset with ``lines`` records, all but two of them holes in the file."""
    step = 7600
    record = pack_record(pack_image(ImageHeader((0.0,)), encode_jpeg(np.zeros((112, 112, 3), dtype=np.uint8))))
    with Path(folder, "train.rec").open("wb") as file:
        file.write(record)
        file.seek((lines - 1) * step)
        file.write(record)
    Path(folder, "property").write_text("360232,112,112")
    with Path(folder, "train.idx").open("w") as out:
        for base in range(0, lines, 1 << 16):
            out.write("".join(f"{k}\t{k * step}\n" for k in range(base, min(base + (1 << 16), lines))))
    for name in ("first process of the node", "any other"):
        command = [sys.executable, "-c", _FIRST_BATCH, folder]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(f"{lines:,} records on local disk, {name}: {answer}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--index-lines", type=int, default=17_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        write_images(folder, options.images)
        sides = {"bare decoder": bare_decoder(folder), "steps of the reference's pipeline": reference_steps(folder)}
        sides |= {f"ours, {name}": our_loader(folder, name) for name in AUGMENTATIONS}
        rates = measure(sides)
        bare, reference = rates["bare decoder"], rates["steps of the reference's pipeline"]
        print(
            "| side | img/s per core-second | of the bare decoder | times the reference's |\n| --- | --- | --- | --- |"
        )
        for name, rate in rates.items():
            print(f"| {name} | {rate:,.0f} | {rate / bare:.0%} | {rate / reference:.2f} |")
        bars = [("flip", 0.85 * bare), ("flip", 5 * reference), ("reference", 5000.0), ("adaface", 5000.0)]
        for name, bar in bars:
            rate = rates[f"ours, {name}"]
            print(f"{name}: {rate:,.0f} img/s, bar {bar:,.0f}: {'reached' if rate >= bar else 'MISSED'}")
    with tempfile.TemporaryDirectory() as folder:
        first_batch(folder, options.index_lines)


if __name__ == "__main__":
    main()
