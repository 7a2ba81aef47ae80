"""Prometheus metrics of a run, served by rank 0 when ``output.prometheus_port`` is set."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Mapping
from threading import Thread
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer


class Metrics:
    """The gauges; without a port they are set and never served.

    Args:
        port: TCP port of ``/metrics``, on all interfaces; 0 serves nothing.
    """

    def __init__(self, port: int) -> None:
        self.registry = CollectorRegistry()
        self.gauges: dict[str, Gauge] = {}
        self.add("step", "arcface_step", "Steps done.")
        self.last_checkpoint = self._gauge("arcface_last_checkpoint_time_seconds", "Unix time of the last commit.")
        self.accuracy = Gauge("arcface_accuracy", "Ten-fold accuracy.", ["set"], registry=self.registry)
        if port:
            try:
                serve(port, self.registry)
            except OSError as error:
                # Two runs on one machine: the second trains all the same.
                warnings.warn(f"metrics are not served: port {port}: {error}", stacklevel=2)

    def add(self, key: str, name: str, meaning: str) -> None:
        """A gauge that ``set`` knows as ``key`` and Prometheus as ``name``."""
        self.gauges[key] = self._gauge(name, meaning)

    def set(self, values: Mapping[str, float]) -> None:
        """Set gauges by their keys."""
        for key, value in values.items():
            self.gauges[key].set(value)

    def _gauge(self, name: str, text: str) -> Gauge:
        return _LateGauge(name, text, self.registry)


class _LateGauge(Gauge):
    """A gauge that is not there until it is first set: a 0 that nobody measured would be taken for one."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        super().__init__(name, text, registry=None)
        self._late: CollectorRegistry | None = registry

    def set(self, value: float) -> None:
        super().set(value)
        if self._late is not None:
            self._late.register(self)
            self._late = None


class _Server(ThreadingWSGIServer):
    """Over IPv6 and IPv4 alike, where the system has both."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""


def serve(port: int, registry: CollectorRegistry) -> None:
    """Answer on ``port`` of all interfaces, in a thread that ends with the process.

    Raises:
        OSError: the port is taken.
    """
    everywhere = "::" if _Server.address_family == socket.AF_INET6 else "0.0.0.0"
    server = make_server(everywhere, port, make_wsgi_app(registry), _Server, _Silent)
    Thread(target=server.serve_forever, daemon=True).start()
