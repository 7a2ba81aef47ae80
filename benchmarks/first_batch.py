"""From the start of a process to its first batch, of a dataset as large as glint360k behind HTTP; memory, and a resume.

A server on loopback serves 17 million records of 7,600 bytes, 129 GB: every one holds the same picture, so the file
need not exist. Its index does, 318 MB. Processes start as a launcher starts them, all at once, with the options'
defaults and a logical worker each; a node's first process parses the index for the others. Then they do so again with
the index parsed, in the middle of the epoch: what a resume costs beside the checkpoint.
Bars: first batch within 5 s and 1 GB a process, on 1 and on 4 processes; resume within 10 s.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from app.command_line import CommandLine
from app.data.recordio import ImageHeader, pack_image, pack_record
from benchmarks.machine import describe

RECORD, BATCH = 7600, 128
_PIECE = 1 << 20


@cache
def record() -> bytes:
    """A packed record of exactly ``RECORD`` bytes; the picture is a JPEG with a comment of zeros."""
    from app.data.decode import encode_jpeg

    image = encode_jpeg(np.full((112, 112, 3), 127, dtype=np.uint8))
    room = RECORD - len(pack_record(pack_image(ImageHeader((0.0,)), image))) - 4
    comment = b"\xff\xfe" + (room + 2).to_bytes(2, "big") + bytes(room)
    packed = pack_record(pack_image(ImageHeader((0.0,)), image[:2] + comment + image[2:]))
    assert len(packed) == RECORD
    return packed


class Handler(BaseHTTPRequestHandler):
    """Ranged reads of the records, which are made up, and of the files beside them."""

    protocol_version = "HTTP/1.1"
    records = 0
    folder = Path()

    def do_HEAD(self) -> None:
        """Size and tag of a file."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """A range of a file, or all of it."""
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        name = self.path.rpartition("/")[2]
        path = self.folder / name
        if name == "train.rec":
            size = self.records * RECORD
        elif path.is_file():
            size = path.stat().st_size
        else:
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2] or size), size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{size}"')
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if body:
            for start in range(first, last + 1, _PIECE):
                self.wfile.write(self._bytes(path, start, min(start + _PIECE, last + 1)))

    def _bytes(self, path: Path, start: int, stop: int) -> bytes:
        if path.name != "train.rec":
            with path.open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        skipped = start % RECORD
        return (record() * ((stop - start + skipped) // RECORD + 1))[skipped : skipped + stop - start]

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path, records: int) -> Iterator[str]:
    """URL of the dataset."""
    (folder / "property").write_text("1,112,112")
    with (folder / "train.idx").open("w") as out:
        for base in range(0, records, 1 << 16):
            lines = range(base, min(base + (1 << 16), records))
            out.write("".join(f"{number}\t{number * RECORD}\n" for number in lines))
    Handler.records, Handler.folder = records, folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/faces"
    finally:
        server.shutdown()


def run_process(url: str, processes: int, step: int, started: float) -> dict[str, float]:
    """In a process of its own: seconds since ``started`` to the first batch, and the peak of memory that is its own."""
    from app.config.recipe import Recipe
    from app.data.build import make_loader, open_source

    config = Recipe().data
    source = open_source(config.__class__(url=url), 0)
    opened = time.time()
    loader = make_loader(source, config, num_classes=1, batch_size=BATCH, logical_workers=processes, seed=0)
    batch = next(iter(loader.steps(0, step, [int(os.environ["RANK"])])))[0]
    done = time.time()
    assert len(batch.images) == BATCH
    status = Path("/proc/self/status").read_text()
    kinds = {kind: int(re.search(rf"{kind}:\s+(\d+)", status)[1]) / 1e6 for kind in ("VmHWM", "RssAnon")}  # type: ignore[index]
    loader.close()
    return {"opened": opened - started, "first": done - started, "peak": kinds["VmHWM"], "own": kinds["RssAnon"]}


def start(url: str, processes: int, step: int, cache_home: Path) -> list[dict[str, float]]:
    """All processes at once, as torchrun starts them: one thread each for torch."""
    running = []
    for rank in range(processes):
        task = json.dumps({"url": url, "processes": processes, "step": step, "started": time.time()})
        local = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "TMPDIR": str(cache_home)}
        command = [sys.executable, "-m", "benchmarks.first_batch", "--task", task]
        running.append(subprocess.Popen(command, env=os.environ | local, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit("a process failed")
    return [json.loads(text.splitlines()[-1]) for text in printed]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = CommandLine("python -m benchmarks.first_batch", description=__doc__)
    parser.add_argument("--records", type=int, default=17_000_000)
    parser.add_argument("--task", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(run_process(**json.loads(options.task))))
        return
    print(
        f"Machine: {describe()}. {options.records:,} records of {RECORD} bytes behind HTTP on loopback; batch {BATCH}."
    )
    print(f"Load of the machine when it began: {os.getloadavg()[0]:.1f}.\n")
    print("| start | processes | index open, s | first batch, s | memory a process, GB | without mapped files | bars |")
    print("|" + " --- |" * 7, flush=True)
    with tempfile.TemporaryDirectory() as name, served(Path(name), options.records) as url:
        for processes in (1, 4):
            kept = Path(name, f"node-{processes}")
            kept.mkdir()
            for what, step, bar in (("first", 0, 5.0), ("resume", options.records // BATCH // processes // 2, 10.0)):
                found = start(url, processes, step, kept)
                worst = {key: max(each[key] for each in found) for key in found[0]}
                held = [worst["first"] <= bar, worst["peak"] <= 1]
                bars = f"{bar:g} s: {'reached' if held[0] else 'MISSED'}, 1 GB: {'reached' if held[1] else 'MISSED'}"
                figures = [f"{worst[key]:.2f}" for key in ("opened", "first", "peak", "own")]
                print(f"| {what} | {processes} | {' | '.join(figures)} | {bars} |", flush=True)
            shutil.rmtree(kept)


if __name__ == "__main__":
    main()
