"""Runs whose ``.rec`` is replaced by one of the same size, or cut, while they read it: the run ends and names it."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import storage
from tests.jobs import ROOT, SMALL, environment, write_faces


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Python's own server, with ranges; the date of a file is the only version that it tells."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not (asked := self.headers.get("Range")) or not path.is_file():
            super().do_GET()
            return
        first, last = asked.removeprefix("bytes=").split("-")
        with path.open("rb") as file:
            file.seek(int(first))
            data = file.read(int(last) + 1 - int(first))
            changed = os.fstat(file.fileno()).st_mtime
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", self.date_time_string(int(changed)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """URL to read, and folder to write, of a plain web server."""
    folder = tmp_path / "web"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Ranges, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", str(folder)
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "what"), [("file", "replaced"), ("s3", "replaced"), ("http", "replaced"), ("s3", "truncated")]
)
def test_a_run_ends_and_names_the_file(where: str, what: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = folder = str(tmp_path / "set")
    if where != "file":
        found = request.getfixturevalue("bucket_url" if where == "s3" else "web")
        url, folder = (found, found) if where == "s3" else found
    write_faces(folder)
    options = ["--train.epochs", "100000", "--data.window-mb", "0.1", "--data.prefetch", "1", "--data.url", url]
    child = subprocess.Popen(
        [sys.executable, "-u", "-m", "app.train", *SMALL, *options, "--output.url", str(tmp_path / "runs")],
        env=environment(),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    ends = threading.Timer(100, child.kill)
    ends.start()
    assert child.stdout is not None
    lines = []
    for line in child.stdout:
        lines.append(line)
        if "img/s" in line:
            break
    place = storage.join(folder, "train.rec")
    data = storage.read_bytes(place)
    storage.write_bytes(place, data[:-200] if what == "truncated" else data[:300] + bytes(len(data) - 300))
    said = "".join([*lines, child.communicate()[0]])
    ends.cancel()
    assert child.returncode == 65, said
    assert f"{url}/train.rec" in said
    assert "replaced" in said
    assert "Traceback" not in said
