"""SeaweedFS as an embedded object store: one process on loopback with an S3 gateway and access keys."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

_PORTS = ("s3", "master", "volume", "filer", "admin")
_GRPC_OFFSET = 10_000  # each server also listens on its port + 10000


class ObjectStore:
    """A running store; a context manager that stops it whatever happens.

    Args:
        folder: its data; the log goes beside it.
        bucket: created at the start.
        certificate, private_key: PEM files; with them the store speaks TLS.
    """

    def __init__(
        self,
        folder: Path,
        bucket: str,
        *,
        access_key: str = "",
        secret_key: str = "",
        certificate: Path | None = None,
        private_key: Path | None = None,
    ) -> None:
        self.folder, self.bucket = folder, bucket
        self.tls = [f"-s3.cert.file={certificate}", f"-s3.key.file={private_key}"] if certificate else []
        self.access_key = access_key or secrets.token_hex(8)
        self.secret_key = secret_key or secrets.token_urlsafe(24)
        self.ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        self.endpoint = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.ports['s3']}"
        self.log = folder.parent / "weed.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs: the standard AWS variables."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self, timeout: float = 60.0) -> None:
        """Start the server and wait until it answers.

        Raises:
            RuntimeError: it does not within ``timeout`` seconds; names its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = [f"-{name}.port={port}" if name != "s3" else f"-s3.port={port}" for name, port in self.ports.items()]
        command = [
            str(Path(sys.executable).with_name("weed")),
            *("mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={self.bucket}"),
            *("-webdav=false", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *ports,
            *self.tls,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder.parent,
                start_new_session=True,  # Ctrl-C goes to the program that owns it, which stops it in good order
            )
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the object store did not start: see {self.log}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        import s3fs

        try:
            client = s3fs.S3FileSystem(
                key=self.access_key, secret=self.secret_key, endpoint_url=self.endpoint, skip_instance_cache=True
            )
            client.pipe_file(f"{self.bucket}/.ready", b"1")
            return bool(client.cat_file(f"{self.bucket}/.ready") == b"1")
        except Exception:
            return False

    def stop(self) -> None:
        """Stop the server; twice is no error."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> ObjectStore:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()


def _free_ports(count: int) -> list[int]:
    """Ports that are free, as their gRPC twins are."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe, socket.socket() as twin:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            # Twins must be valid ports, and not one of the chosen.
            if port + _GRPC_OFFSET > 65535 or any(abs(port - other) in (0, _GRPC_OFFSET) for other in found):
                continue
            try:
                twin.bind(("127.0.0.1", port + _GRPC_OFFSET))
            except OSError:
                continue
            found.append(port)
    return found


def free_port() -> int:
    """One free port on loopback, below those that the system gives to connections: none of them takes it meanwhile."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
