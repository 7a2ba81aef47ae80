"""Prometheus metrics of a run, served by rank 0 when ``output.prometheus_port`` is set."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Mapping
from threading import Thread
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

# What a loader's ``figures`` tell, all of rank 0 and since its start.
_DATA = {
    "bytes_read": "Bytes from the store.",
    "requests": "Requests to the store.",
    "retries": "Requests that failed and were sent again.",
    "hedged": "Slow requests that were sent a second time.",
    "latency_p50": "Median of the last thousand requests, seconds.",
    "latency_p99": "99th percentile of them, seconds.",
    "cache_hits": "Chunks that the node's disk had.",
    "cache_misses": "Chunks that came from the store.",
    "decoded_per_thread_second": "Images a decoding thread makes in a second.",
}


class Metrics:
    """The gauges; without a port they are set and never served.

    Args:
        port: TCP port of ``/metrics``, on all interfaces; 0 serves nothing.
    """

    def __init__(self, port: int) -> None:
        self.registry = CollectorRegistry()
        self.step = self._gauge("arcface_step", "Steps done.")
        self.loss = self._gauge("arcface_loss", "Mean loss over the last global batch.")
        self.learning_rate = self._gauge("arcface_learning_rate", "Rate of the last step.")
        self.images_per_second = self._gauge("arcface_images_per_second", "Of all processes together.")
        self.data_wait_share = self._gauge("arcface_data_wait_share", "Share of time that steps waited for data.")
        self.world_size = self._gauge("arcface_world_size", "Processes.")
        self.bad_records = self._gauge("arcface_bad_records", "Unreadable records of all processes and starts.")
        self.data_wait_seconds = self._gauge("arcface_data_wait_seconds", "A step's wait for data, mean.")
        self.data = {key: self._gauge(f"arcface_data_{key}", text) for key, text in _DATA.items()}
        self.last_checkpoint = self._gauge("arcface_last_checkpoint_time_seconds", "Unix time of the last commit.")
        self.accuracy = Gauge("arcface_accuracy", "Ten-fold accuracy.", ["set"], registry=self.registry)
        if port:
            try:
                serve(port, self.registry)
            except OSError as error:
                # Two runs on one machine: the second trains all the same.
                warnings.warn(f"metrics are not served: port {port}: {error}", stacklevel=2)

    def set_data(self, wait: float, figures: Mapping[str, float]) -> None:
        """Seconds that a step waited for data, and what a loader's ``figures`` say."""
        self.data_wait_seconds.set(wait)
        for key, gauge in self.data.items():
            if key in figures:
                gauge.set(figures[key])

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
