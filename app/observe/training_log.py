"""``training.log`` in the run's folder: what rank 0 said, of all starts, stamped as insightface's file of that name."""

from __future__ import annotations

import time
import warnings

from app import storage
from app.storage import StorageError

_KEPT_BYTES = 32 << 20  # of earlier starts


def stamp(line: str) -> str:
    """``Training: 2026-01-31 12:00:00,123-line``, as insightface's logging formats it; local time."""
    now = time.time()
    return f"Training: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))},{int(now * 1000) % 1000:03d}-{line}"


def reference_line(
    *, speed: float, loss: float, lr: float, epoch: int, step: int, seconds_left: float, scale: float | None
) -> str:
    """A report of progress as insightface writes it, which its users' and the Ascend port's scripts take apart.

    Args:
        speed: images a second of all processes.
        loss: mean since the last line.
        scale: loss scale; None without fp16.
    """
    fp16 = "" if scale is None else f"Fp16 Grad Scale: {scale:2.0f}   "
    return (
        f"Speed {speed:.2f} samples/sec   Loss {loss:.4f}   LearningRate {lr:.6f}   Epoch: {epoch}   "
        f"Global Step: {step}   {fp16}Required: {seconds_left / 3600:1.0f} hours"
    )


class TrainingLog:
    """Collects lines and uploads all of them on ``flush``, since an object store cannot append.

    Args:
        run_url: the run folder.
        enabled: False on all ranks but 0.
    """

    def __init__(self, run_url: str, *, enabled: bool) -> None:
        self.url, self.enabled = storage.join(run_url, "training.log"), enabled
        self._earlier: bytes | None = None  # of the starts before; read when first needed
        self._lines: list[str] = []

    def add(self, text: str) -> None:
        """Keep a text, a stamp before each of its lines."""
        if not self.enabled:
            return
        self._lines += [stamp(line) for line in text.splitlines() if line]

    def flush(self) -> None:
        """Upload what there is; a store that fails is warned about, training goes on."""
        if not self._lines:
            return
        try:
            if self._earlier is None:
                there = storage.exists(self.url, optional=True)
                self._earlier = storage.read_bytes(self.url)[-_KEPT_BYTES:] if there else b""
            text = "".join(f"{line}\n" for line in self._lines)
            storage.write_bytes(self.url, self._earlier + text.encode(errors="replace"))
        except StorageError as error:
            warnings.warn(f"training.log could not be written: {error}", stacklevel=2)
