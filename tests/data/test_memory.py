"""17 million records: what a process holds to open them, whatever the order of the index's lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.first_batch import served, start
from tests.jobs import ROOT, environment

RECORDS, RECORD = 17_000_000, 7600

OPEN = """
import sys
from pathlib import Path
from app import storage
from app.data.index import open_index
record = storage.ObjectInfo(sys.argv[1], int(sys.argv[3]), "of one upload")
index = open_index(record, sys.argv[2], folder=Path(sys.argv[2]).parent)
assert index.ascending and len(index.keys) == index.keys[-1] + 1 == 17_000_000
assert (index.bounds[:-1:1000] == 7600 * index.keys[::1000]).all()
status = Path("/proc/self/status").read_text()  # what getrusage tells begins with the parent's peak
print(status.split("VmHWM:")[1].split()[0])
"""


def write_index(path: Path, numbers: np.ndarray, width: int = 12) -> None:
    """Lines ``00000007<TAB>000000053200``, many at a time; ``width``: digits that the second column keeps."""
    with path.open("wb") as file:
        for base in range(0, len(numbers), 1 << 20):
            keys = numbers[base : base + (1 << 20)]
            lines = np.full((len(keys), 10 + width), ord("\t"), dtype=np.uint8)
            for column in range(8):
                lines[:, 7 - column] = keys // 10**column % 10 + ord("0")
            for column in range(width):
                lines[:, 8 + width - column] = keys * RECORD // 10**column % 10 + ord("0")
            lines[:, 9 + width] = ord("\n")
            file.write(lines.tobytes())


@pytest.mark.slow
def test_an_index_of_17_million_lines_in_any_order_is_parsed_in_little_memory(tmp_path: Path) -> None:
    write_index(tmp_path / "train.idx", np.random.default_rng(0).permutation(RECORDS))
    with (tmp_path / "train.rec").open("wb") as file:
        file.truncate(RECORDS * RECORD)  # takes no room on the disk
    command = [
        sys.executable,
        "-c",
        OPEN,
        *map(str, (tmp_path / "train.rec", tmp_path / "train.idx", RECORDS * RECORD)),
    ]
    done = subprocess.run(
        command, env=environment(keep_freed=False), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 / 1e9 < 0.75


LABELS = """
import sys
from pathlib import Path
import numpy as np
from app.data.label_list import open_labels
keys = np.arange(17_000_000)
found = open_labels(sys.argv[1], keys, "", folder=Path(sys.argv[1]).parent)
for start in range(0, len(keys), 1 << 20):
    assert (found.labels[start : start + (1 << 20)] == keys[start : start + (1 << 20)] * 7600 % 10**7).all()
status = Path("/proc/self/status").read_text()
print(status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
def test_a_list_of_17_million_labels_in_any_order_is_read_in_little_memory(tmp_path: Path) -> None:
    write_index(tmp_path / "train.lst", np.random.default_rng(0).permutation(RECORDS), width=7)
    command = [sys.executable, "-c", LABELS, str(tmp_path / "train.lst")]
    done = subprocess.run(
        command, env=environment(keep_freed=False), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 / 1e9 < 1


@pytest.mark.slow
def test_the_first_batch_of_17_million_records_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    kept = tmp_path / "node"
    kept.mkdir()
    with served(tmp_path, RECORDS) as url:
        (held,) = start(url, 1, 0, kept)
    assert held["peak"] < 1
