"""Loading: the bare decoder, other libraries and ours on the same faces; from S3 and a cache; the first batch of 17 M.

    python -m benchmarks.data [--images N] [--index-lines N] [--mxnet-python P] [--torch-python P] [--chart FILE]

All sides decode the same JPEG files on one thread of one core, in alternating rounds; the object store has another core
where there is one. The reference runs a second time where it may use all cores, as users start it. Medians of images a
second of processor time are printed. ``data_peers.py`` has the other libraries; their environments are the interpreters
that are named: mxnet 1.9.1 with Pillow, and torch with torchvision, webdataset, mosaicml-streaming and litdata.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from app import storage
from app.command_line import CommandLine
from app.data.augment import AUGMENTATIONS
from app.data.build import make_loader, open_source
from app.data.config import DataConfig
from app.data.decode import encode_jpeg
from app.data.pixels import normalise_
from app.data.prepare.orl import load_faces
from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.recordio import ImageHeader, pack_image, pack_record
from benchmarks.machine import describe
from demo.object_store import ObjectStore

ROUNDS, BATCH = 3, 128
PEERS = Path(__file__).with_name("data_peers.py").resolve()
_FIRST_BATCH = """
import sys, time
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
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
print(f"{done - started:.2f} s from import to the first batch's records, {opened - started:.2f} s of it to open; "
      f"{time.process_time():.2f} s of processor time; peak memory {peak:.0f} MiB")
loader.close()
"""


def faces() -> list[bytes]:
    """The ORL photographs with colours of smooth noise, as OpenCV would encode them: quality 95, halved chroma."""
    generator = np.random.default_rng(0)
    encoded = []
    for photograph in (photograph for person in load_faces() for photograph in person):
        pixels = np.asarray(Image.open(io.BytesIO(photograph)).convert("YCbCr")).copy()
        for channel, mean in ((1, 110), (2, 150)):
            coarse = Image.fromarray(generator.normal(0, 10, (14, 14)).astype(np.float32))
            smooth = np.asarray(coarse.resize((112, 112), Image.Resampling.BICUBIC))
            noise = generator.normal(0, 1.5, (112, 112))
            pixels[..., channel] = np.clip(mean + smooth + noise, 0, 255)
        buffer = io.BytesIO()
        Image.fromarray(pixels, "YCbCr").convert("RGB").save(buffer, "JPEG", quality=95, subsampling=2)
        encoded.append(buffer.getvalue())
    return encoded


def write_images(folder: str, count: int) -> None:
    """The same images as records and as files, 50 a person."""
    jpegs = faces()
    print(f"{count} images of {statistics.mean(map(len, jpegs)):.0f} bytes")
    with RecordWriter(f"{folder}/train.rec") as writer:
        write_identity_layout(writer, [i // 50 for i in range(count)], (jpegs[i % len(jpegs)] for i in range(count)))
    for i in range(count):
        path = Path(folder, "people", f"{i // 50:05d}", f"{i:06d}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpegs[i % len(jpegs)])


def peer(python: str, side: str, folder: str, cores: Sequence[int] = ()) -> Callable[[], tuple[int, float]]:
    """An epoch of another library, after one to warm up: images and processor seconds; on our core, or on ``cores``."""
    hidden = ("PYTHON", "OPENBLAS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environment["OMP_NUM_THREADS"] = "1"

    def run() -> tuple[int, float]:
        command = [python, str(PEERS), "read", side, folder, "2"]
        if cores:
            command = ["taskset", "-c", ",".join(map(str, cores)), *command]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder)
        lines = [line[7:] for line in answer.stdout.splitlines() if line.startswith("RESULT ")]
        result = json.loads(lines[-1])
        return int(result["images"]), float(result["processor"])

    return run


def write_peers(python: str, formats: Sequence[str], folder: str) -> None:
    """The images in other libraries' formats."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENBLAS"))}
    for name in formats:
        command = [python, str(PEERS), "write", name, folder]
        subprocess.run(command, capture_output=True, check=True, env=environment, cwd=folder)


def bare_decoder(folder: str) -> Callable[[], int]:
    """Decode the images and nothing else."""
    source = open_source(DataConfig(url=folder), 0)
    encoded = [source.parse(p, r).image for p, r in enumerate(source.read(np.arange(len(source))))]

    def run() -> int:
        for data in encoded:
            simplejpeg.decode_jpeg(data, colorspace="RGB")
        return len(encoded)

    return run


def our_loader(
    folder: str, augment: str, *, floats: bool = False, window: int = 0, cache: str = ""
) -> Callable[[], int]:
    """An epoch of ours, to augmented uint8 batches, which is what a device is sent, or to normalised floats."""
    config = DataConfig(url=folder, augment=augment, workers=1, prefetch=1, window=window, cache=cache)
    source = open_source(config, 0)
    loader = make_loader(source, config, num_classes=source.num_classes, batch_size=BATCH, logical_workers=1, seed=0)
    epoch = 0

    def run() -> int:
        nonlocal epoch
        count = 0
        for (batch,) in loader.steps(epoch, 0, [0]):
            images = batch.augmented(batch.images)
            if floats:
                normalise_(images.float())
            count += len(batch.labels)
        epoch += 1
        return count

    return run


def measure(sides: dict[str, Callable[[], int | tuple[int, float]]]) -> dict[str, float]:
    """Images a second of processor time (all threads) of each side, medians of alternating rounds."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, run in sides.items():
            started = time.process_time()
            answer = run()
            count, seconds = answer if isinstance(answer, tuple) else (answer, time.process_time() - started)
            rates[name].append(count / seconds)
    return {name: statistics.median(values) for name, values in rates.items()}


def pin(process: int, core: int) -> None:
    """Keep a process, with the threads that it has, and those that they will start, on one core."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


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


def chart(path: str, rates: dict[str, float]) -> None:
    """Bars of all sides."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.35 * len(rates) + 1), layout="constrained")
    axes = figure.subplots()
    names = list(rates)[::-1]
    axes.barh(names, [rates[name] for name in names], color=["C0" if "ours" in name else "0.6" for name in names])
    axes.set_xlabel("images a second of processor time")
    figure.savefig(path, dpi=110)


def report(rates: dict[str, float]) -> None:
    """The table, and each bar."""
    bare, local = rates["bare decoder"], rates["ours, flip"]
    reference = rates.get("reference", float("nan"))
    print("| side | img/s per core-second | of the bare decoder | times the reference's |\n| --- | --- | --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / bare:.0%} | {rate / reference:.2f} |")
    bars = [("ours, flip", 0.85 * bare, "85 % of the bare decoder")]
    for name, what in (("reference", "on one core"), ("reference, all cores", "as users start it")):
        if name in rates:
            bars.append(("ours, flip", 5 * rates[name], f"5x the reference's {what}"))
    bars += [("ours, reference", 5000.0, ""), ("ours, adaface", 5000.0, "")]
    bars += [("ours, flip, S3", 0.9 * local, "90 % of local"), ("ours, flip, cached", 0.95 * local, "95 % of local")]
    others = [rate for name, rate in rates.items() if not name.startswith(("ours", "bare"))]
    if others:
        bars.append(("ours, flip, to floats", max(others), "the fastest other library"))
    print()
    for name, bar, what in bars:
        verdict = "reached" if rates[name] >= bar else "MISSED"
        print(f"- {name}: {rates[name]:,.0f} img/s, bar {bar:,.0f} {what}: {verdict}")


def main() -> None:
    """Print the tables."""
    parser = CommandLine("python -m benchmarks.data", description=__doc__)
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--index-lines", type=int, default=17_000_000)
    parser.add_argument("--mxnet-python", default="", help="interpreter with mxnet 1.9.1")
    parser.add_argument("--torch-python", default="", help="interpreter with the other libraries")
    parser.add_argument("--chart", default="", help="picture to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    print(describe())
    print(f"load of the machine at the start: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    with tempfile.TemporaryDirectory() as folder, ObjectStore(Path(folder, "weed", "data"), "faces") as store:
        os.environ.update(store.environment)
        if len(cores) > 1 and store.process is not None:
            pin(store.process.pid, cores[0])
            pin(os.getpid(), cores[1])
        write_images(folder, options.images)
        for name in ("train.rec", "train.idx"):
            storage.write_bytes(f"s3://faces/set/{name}", Path(folder, name).read_bytes())
        window = options.images // 10
        sides: dict[str, Callable[[], int | tuple[int, float]]] = {"bare decoder": bare_decoder(folder)}
        sides |= {f"ours, {name}": our_loader(folder, name) for name in AUGMENTATIONS}
        sides |= {f"ours, {name}, to floats": our_loader(folder, name, floats=True) for name in ("flip", "reference")}
        sides["ours, flip, S3"] = our_loader("s3://faces/set", "flip", window=window)
        sides["ours, flip, cached"] = our_loader("s3://faces/set", "flip", window=window, cache=f"{folder}/cache")
        sides["ours, flip, cached"]()
        if options.mxnet_python:
            write_peers(options.mxnet_python, ["mxnet"], folder)
            sides |= {name: peer(options.mxnet_python, name, folder) for name in ("reference", "ImageRecordIter")}
            sides["reference, all cores"] = peer(options.mxnet_python, "reference", folder, cores)
        if options.torch_python:
            write_peers(options.torch_python, ["webdataset", "mosaic", "litdata"], folder)
            others = ("ImageFolder", "webdataset", "mosaicml-streaming", "litdata")
            sides |= {name: peer(options.torch_python, name, folder) for name in others}
        rates = measure(sides)
        report(rates)
        if options.chart:
            chart(options.chart, rates)
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory() as folder:
        first_batch(folder, options.index_lines)


if __name__ == "__main__":
    main()
