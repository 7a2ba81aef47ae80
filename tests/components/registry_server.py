"""A small image registry on loopback: manifests, and tokens for whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

DIGEST = "sha256:" + "a" * 64
HAVE = {"/v2/team/arcface/manifests/0.1.0", f"/v2/team/arcface/manifests/{DIGEST}", "/v2/locked/arcface/manifests/1"}


class Registry(BaseHTTPRequestHandler):
    """Public repositories want an anonymous token; ``locked`` refuses even with one."""

    def do_GET(self) -> None:
        assert self.path.startswith("/token?service=test&scope=repository%3A"), self.path
        self.answer(200, {}, b'{"token": "anonymous"}')

    def do_HEAD(self) -> None:
        host = self.headers["Host"]
        if self.headers.get("Authorization") != "Bearer anonymous" or self.path.startswith("/v2/locked/"):
            scope = f"repository:{self.path.split('/')[2]}:pull"
            challenge = f'Bearer realm="http://{host}/token",service="test",scope="{scope}"'
            self.answer(401, {"WWW-Authenticate": challenge}, b"")
        elif self.path in HAVE and "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]:
            self.answer(200, {"Docker-Content-Digest": DIGEST}, b"")
        else:
            self.answer(404, {}, b"")

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serve_registry() -> Iterator[str]:
    """Host and port of a running registry."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
