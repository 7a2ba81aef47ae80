"""Prometheus metrics of a run, served by rank 0 when ``output.prometheus_port`` is set."""

from __future__ import annotations

import warnings

from prometheus_client import CollectorRegistry, Gauge, start_http_server


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
        self.bad_records = self._gauge("arcface_bad_records", "Records of rank 0 that could not be read.")
        self.last_checkpoint = self._gauge("arcface_last_checkpoint_time_seconds", "Unix time of the last commit.")
        self.accuracy = Gauge("arcface_accuracy", "Ten-fold accuracy.", ["set"], registry=self.registry)
        if port:
            try:
                start_http_server(port, registry=self.registry)
            except OSError as error:
                # Two runs on one machine: the second trains all the same.
                warnings.warn(f"metrics are not served: port {port}: {error}", stacklevel=2)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)
