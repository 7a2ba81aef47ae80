"""A proxy between the app and a real S3 store that misbehaves as told: any store's bad day."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

# What may happen to a request: an HTTP status as text, with the code of an error behind a colon or without; a status of
# 200 is an error too then, as S3 ends what takes long; reset: the connection breaks; stall: no answer for a while, then
# the same; late: the store does what it was asked, and the answer comes after as long; lost: it does, the answer never
# comes; truncate: half of the answer's body, cleanly; cut: half of it, then the connection breaks; slow: 1 kB/s.
Decision = Callable[[str, str], str]
_CODES = {"403": "AccessDenied", "429": "SlowDown", "501": "NotImplemented", "503": "SlowDown"}


def well(method: str, path: str) -> str:  # noqa: ARG001
    """Nothing happens to the request."""
    return ""


class Proxy:
    """Passes requests on to ``endpoint``; ``decide(method, path)`` says what goes wrong. A context manager."""

    def __init__(self, endpoint: str, decide: Decision = well, *, stall: float = 5.0) -> None:
        self.decide, self.stall = decide, stall
        self.upstream = urlsplit(endpoint)
        self.requests: list[tuple[str, str, str]] = []  # method, path, what was done to it
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # broken connections are what it is for

        self.server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        body = _read_body(request)
        fault = self.decide(request.command, request.path)
        self.requests.append((request.command, request.path, fault))
        if fault[:3].isdigit():
            number, _, code = fault.partition(":")
            _answer(request, int(number), _error_body(code or _CODES.get(number, "InternalError")))
            return
        if fault == "stall":
            time.sleep(self.stall)
        if fault in ("reset", "stall"):
            _break(request)
            return
        status, headers, data = self._pass_on(request, body)
        if fault == "late":
            time.sleep(self.stall)
        if fault == "lost":
            _break(request)
            return
        if fault == "truncate":
            data = data[: len(data) // 2]
        request.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                request.send_header(name, value)
        length = dict(headers).get("Content-Length", "0") if request.command == "HEAD" else str(len(data))
        request.send_header("Content-Length", length)
        request.end_headers()
        if request.command == "HEAD":
            return
        if fault == "cut":
            request.wfile.write(data[: len(data) // 2])
            _break(request)
        elif fault == "slow":
            for at in range(0, len(data), 100):
                request.wfile.write(data[at : at + 100])
                time.sleep(0.1)
        else:
            request.wfile.write(data)

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.upstream.hostname or "", self.upstream.port, timeout=60)
        connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        names = set()
        for name, value in request.headers.items():
            if name.lower() not in ("expect", "transfer-encoding", "connection"):
                names.add(name.lower())
                connection.putheader(name, value)
        if body and "content-length" not in names:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, response.getheaders(), data

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()


def _read_body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    body = b""
    while size := int(request.rfile.readline().split(b";")[0], 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body


def _error_body(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>".encode()


def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    request.send_response(status)
    request.send_header("Content-Type", "application/xml")  # as S3 says with every error, to a HEAD too
    request.send_header("Content-Length", "0" if request.command == "HEAD" else str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _break(request: BaseHTTPRequestHandler) -> None:
    """Reset the connection, as a crash or a middlebox does."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.close_connection = True
    request.connection.close()
