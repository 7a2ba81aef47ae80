"""RecordIO against the real mxnet 1.9.1, both ways, record for record. It lives in a virtual environment of its own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.data.dataset import open_dataset
from app.data.reader import RecordReader
from app.data.record_writer import RecordWriter
from app.data.recordio import MAGIC, ImageHeader, pack_image, unpack_image

pytestmark = pytest.mark.interop
ROOT = Path(__file__).resolve().parents[2]
MAGIC_BYTES = MAGIC.to_bytes(4, "little")

# Image records as (labels, id, image): scalars and arrays, with the magic aligned, unaligned, doubled and at the end.
IMAGES: list[tuple[list[float], int, bytes]] = [
    ([3.0], 1, b"\xff\xd8plain"),
    ([7.0], 2, MAGIC_BYTES + b"starts with it"),
    ([1.5, 2.5], 3, b"labels in an array"),
    ([4.0], 4, b"1234" * 5 + MAGIC_BYTES * 2 + b"x" + MAGIC_BYTES),
    ([5.0], 5, b"abcd" + MAGIC_BYTES),
    ([6.0], 6, b""),
    ([9.0, 8.0, 7.0], 2**40, bytes(range(256)) * 40),
]

WRITE = """
import sys, json, base64, mxnet as mx
folder, records = sys.argv[1], json.loads(sys.stdin.read())
writer = mx.recordio.MXIndexedRecordIO(folder + "/train.idx", folder + "/train.rec", "w")
for key, (labels, identifier, image) in enumerate(records):
    label = labels[0] if len(labels) == 1 else labels
    header = mx.recordio.IRHeader(0, label, identifier, 0)
    writer.write_idx(key, mx.recordio.pack(header, base64.b64decode(image)))
writer.close()
"""
READ = """
import sys, json, base64, mxnet as mx
folder = sys.argv[1]
reader = mx.recordio.MXIndexedRecordIO(folder + "/train.idx", folder + "/train.rec", "r")
out = []
for key in reader.keys:
    header, image = mx.recordio.unpack(reader.read_idx(key))
    labels = header.label.tolist() if hasattr(header.label, "tolist") else [header.label]
    out.append([key, labels, header.id, base64.b64encode(image).decode()])
print(json.dumps(out))
"""


@pytest.fixture(scope="session")
def mxnet_python() -> str:
    """The interpreter of an environment with mxnet 1.9.1, which needs numpy before 1.24; made at first use."""
    folder = ROOT / ".venv-mxnet"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "mxnet==1.9.1", "numpy<1.24"], check=True, timeout=280
        )
        (folder / "ready").touch()
    return str(python)


def run_mxnet(python: str, program: str, folder: Path, given: str = "") -> str:
    # The machine may tune OpenBLAS for a processor that mxnet's old build does not know.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", program, str(folder)], input=given, capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def dumps(records: list[tuple[list[float], int, bytes]]) -> str:
    return json.dumps([(labels, identifier, encode(image)) for labels, identifier, image in records])


def test_we_read_what_mxnet_writes(mxnet_python: str, tmp_path: Path) -> None:
    run_mxnet(mxnet_python, WRITE, tmp_path, dumps(IMAGES))
    dataset = open_dataset(str(tmp_path))
    reader = RecordReader(dataset)
    records = reader.read(range(len(dataset)))
    read = [reader.parse(position, record) for position, record in enumerate(records)]
    assert [(list(header.labels), header.id, image) for header, image in read] == IMAGES


def test_mxnet_reads_what_we_write_and_the_bytes_are_the_same(mxnet_python: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    with RecordWriter(str(ours / "train.rec")) as writer:
        for key, (labels, identifier, image) in enumerate(IMAGES):
            writer.write(key, pack_image(ImageHeader(tuple(labels), identifier), image))
    read = json.loads(run_mxnet(mxnet_python, READ, ours))
    assert [(labels, identifier, image) for _, labels, identifier, image in read] == [
        (labels, identifier, encode(image)) for labels, identifier, image in IMAGES
    ]
    run_mxnet(mxnet_python, WRITE, theirs, dumps(IMAGES))
    assert (ours / "train.rec").read_bytes() == (theirs / "train.rec").read_bytes()
    assert (ours / "train.idx").read_bytes() == (theirs / "train.idx").read_bytes()


def test_a_header_record_of_mxnet_is_understood(mxnet_python: str, tmp_path: Path) -> None:
    # insightface's layout: (N+1, N+1+ids), images, then a range an identity.
    records = [([4.0, 6.0], 0, b""), ([0.0], 1, b"a"), ([0.0], 2, b"b"), ([1.0], 3, b"c"), ([1.0, 3.0], 4, b"")]
    records.append(([3.0, 4.0], 5, b""))
    run_mxnet(mxnet_python, WRITE, tmp_path, dumps(records))
    dataset = open_dataset(str(tmp_path))
    assert dataset.keys.tolist() == [1, 2, 3]
    assert dataset.num_classes == 2
    reader = RecordReader(dataset)
    assert [unpack_image(pack_image(*reader.parse(p, r)))[1] for p, r in enumerate(reader.read([0, 1, 2]))] == [
        b"a",
        b"b",
        b"c",
    ]
