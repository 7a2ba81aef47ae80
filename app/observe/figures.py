"""The figures that a run reports every ``train.log_every`` steps: one list for progress, events and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.observe.events import EventLog
from app.observe.metrics import Metrics
from app.observe.progress import Progress, format_duration
from app.observe.training_log import reference_line


@dataclass(frozen=True)
class Figure:
    """One of them: its name in the events, its name in /metrics, and what it is."""

    name: str
    gauge: str
    meaning: str


def _data(name: str, meaning: str) -> Figure:
    return Figure(name, f"arcface_data_{name}", meaning)


_FIGURES = (
    Figure("loss", "arcface_loss", "Mean loss of the steps since the last report."),
    Figure("lr", "arcface_learning_rate", "Rate of the last step."),
    Figure("epoch", "arcface_epoch", "Number of the epoch, from 0."),
    Figure("images_per_second", "arcface_images_per_second", "Of all processes together."),
    Figure("hours_left", "arcface_hours_left", "Until the last step of the run."),
    Figure("gradient_norm", "arcface_gradient_norm", "Of the backbone at the last step, before clipping."),
    Figure("loss_scale", "arcface_loss_scale", "Factor of the loss under fp16, else 1."),
    Figure("skipped_steps", "arcface_skipped_steps", "Steps of this start that overflowed under fp16."),
    Figure("world_size", "arcface_world_size", "Processes."),
    Figure("bad_records", "arcface_bad_records", "Unreadable records of all processes and starts."),
    Figure("data_wait_share", "arcface_data_wait_share", "Share of time that steps waited for data."),
    Figure("data_wait_seconds", "arcface_data_wait_seconds", "A step's wait for data, mean."),
    Figure("store_retries", "arcface_store_retries", "Requests sent again while a store was away."),
    Figure("store_wait_seconds", "arcface_store_wait_seconds", "Seconds waited for a store that was away."),
    # What a source and its loader tell, of rank 0 and since its start.
    _data("bytes_read", "Bytes from the store."),
    _data("requests", "Requests to the store."),
    _data("retries", "Requests that failed, or took too long, and were sent again."),
    _data("hedged", "Slow requests that were sent a second time."),
    _data("latency_p50", "Median of the last thousand requests, seconds."),
    _data("latency_p99", "99th percentile of them, seconds."),
    _data("cache_hits", "Chunks that the node's disk had."),
    _data("cache_misses", "Chunks that came from the store."),
    _data("decoded_per_thread_second", "Images a decoding thread makes in a second."),
)
_CHECKPOINT = (
    Figure("stall_seconds", "arcface_checkpoint_stall_seconds", "Training stood still for the last checkpoint."),
    Figure("stall_share", "arcface_checkpoint_stall_share", "That, of the time since the one before was begun."),
)
FIGURES = {figure.name: figure for figure in _FIGURES}


class Reporter:
    """Tells the figures of a run to whoever looks: a person, the event log with its charts, Prometheus.

    Args:
        insightface: lines of progress in insightface's style.
        fp16: whether a line names the loss scale.
    """

    def __init__(
        self, progress: Progress, events: EventLog, metrics: Metrics, *, insightface: bool = False, fp16: bool = False
    ) -> None:
        self.progress, self.events, self.metrics = progress, events, metrics
        self._line = _reference_line if insightface else _line
        self._fp16 = fp16
        for figure in (*FIGURES.values(), *_CHECKPOINT):
            metrics.add(figure.name, figure.gauge, figure.meaning)

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures after ``step`` steps: those of ``FIGURES``, and what a source tells besides."""
        for name in sorted(set(figures) - set(self.metrics.gauges)):
            self.metrics.add(name, _data(name, "").gauge, "Told by the source of data.")
        self.progress.report(step, self._line(step, figures, fp16=self._fp16))
        self.events.add("train", step, **figures)
        self.metrics.set({"step": step, **figures})

    def verified(self, name: str, step: int, summary: Mapping[str, float], highest: float) -> None:
        """A verification set's ``SetResult.summary``, and its best accuracy so far."""
        head = f"[{name}][{step}]"
        self.progress.say(f"{head}XNorm: {summary['xnorm']:.6f}")
        self.progress.say(f"{head}Accuracy-Flip: {summary['accuracy']:.5f}+-{summary['accuracy_std']:.5f}")
        self.progress.say(f"{head}Accuracy-Highest: {highest:.5f}")
        self.metrics.accuracy.labels(name).set(summary["accuracy"])
        self.events.add(f"verification/{name}", step, **summary)

    def committed(self, step: int, size: int, stall: float, between: float) -> None:
        """A checkpoint of ``size`` bytes is committed.

        Args:
            stall: seconds for which training stood still for it, in all.
            between: seconds from the beginning of the one before it, or of training, to its own.
        """
        figures = {"stall_seconds": round(stall, 4), "stall_share": round(stall / max(between, stall, 1e-9), 6)}
        self.metrics.last_checkpoint.set_to_current_time()
        self.metrics.set(figures)
        self.events.add("checkpoint", step, bytes=size, **figures)
        self.events.flush()


def _line(step: int, figures: Mapping[str, float], *, fp16: bool) -> str:
    scale = f" | scale {figures['loss_scale']:.0f}" if fp16 else ""
    if figures["skipped_steps"]:
        scale += f", {figures['skipped_steps']:.0f} steps skipped"
    # What matters least stands last: a narrow terminal cuts it off.
    return (
        f"{figures['images_per_second']:7.1f} img/s | loss {figures['loss']:8.4f} | "
        f"ETA {format_duration(3600 * figures['hours_left'])} | step {step} | lr {figures['lr']:.5f} | "
        f"epoch {figures['epoch']} | wait {figures['data_wait_share']:4.0%}{scale}"
    )


def _reference_line(step: int, figures: Mapping[str, float], *, fp16: bool) -> str:
    return reference_line(
        speed=figures["images_per_second"],
        loss=figures["loss"],
        lr=figures["lr"],
        epoch=int(figures["epoch"]),
        step=step,
        seconds_left=3600 * figures["hours_left"],
        scale=figures["loss_scale"] if fp16 else None,
    )
