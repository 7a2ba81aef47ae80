"""Runs a backbone on verification sets: embed both images of each pair and their flips, then the metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.data.bin_sets import VerificationSet
from app.data.pixels import normalise_
from app.device import Device
from app.errors import AppError
from app.evaluate.metrics import VerificationMetrics, check_pairs, verification_metrics
from app.world import World

# Images uint8 [B, 3, S, S] -> embeddings float32 [B, D], not normalised.
Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class EmbeddingError(AppError):
    """Embeddings that no distance can be made of."""


@dataclass(frozen=True)
class SetResult:
    """Metrics of one set, and the distances they came from: float64 [P] with bool [P]."""

    name: str
    metrics: VerificationMetrics
    xnorm: float  # mean norm of the raw embeddings
    distances: NDArray[np.float64]
    issame: NDArray[np.bool_]

    def summary(self) -> dict[str, Any]:
        """The numbers as plain JSON."""
        metrics = self.metrics
        return {
            "accuracy": metrics.accuracy,
            "accuracy_std": metrics.accuracy_std,
            "threshold": metrics.threshold,
            "threshold_cosine": 1 - metrics.threshold / 2,
            "auc": metrics.auc,
            "eer": metrics.eer,
            "tar_at_far": metrics.tar,
            "tar_at_far_1e-3_ten_fold": metrics.tar_at_far_1e3,
            "xnorm": self.xnorm,
            "pairs": len(self.issame),
        }


def embed_with(model: nn.Module, device: Device, precision: str = "fp32") -> Embed:
    """An ``Embed`` that runs a backbone in eval mode."""

    def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = torch.from_numpy(images).to(device.torch_device).float()
        with torch.inference_mode(), device.autocast(precision):
            embeddings: Tensor = model(normalise_(batch))
        return embeddings.float().cpu().numpy()

    return embed


def embed_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The baseline that knows nothing of faces: the pixels themselves, in [-1, 1]."""
    return normalise_(images.reshape(len(images), -1).astype(np.float32))


def embed_set(
    pairs: VerificationSet, embed: Embed, *, image_size: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> tuple[NDArray[np.float64], float]:
    """Distances of the pairs of one rank's share, float64 [P_local], and the sum of their raw norms.

    A rank takes the contiguous pairs ``[P * rank // W, P * (rank + 1) // W)``.
    """
    distances, norms = embed_pairs(
        pairs, embed, image_size=image_size, batch_size=batch_size, rank=rank, world_size=world_size
    )
    return distances, float(norms.sum(dtype=np.float64))


def embed_pairs(
    pairs: VerificationSet, embed: Embed, *, image_size: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """See ``embed_set``; of each picture the norm of its embedding and of its flip's together, float32 [P_local, 2]."""
    count = len(pairs.issame)
    first, last = 2 * (count * rank // world_size), 2 * (count * (rank + 1) // world_size)
    plain, summed = [], []
    for start in range(first, last, batch_size):
        images = pairs.decode(start, min(start + batch_size, last), image_size)
        raw = embed(images)
        flipped = embed(np.ascontiguousarray(images[..., ::-1]))
        plain.append(np.linalg.norm(raw, axis=1) + np.linalg.norm(flipped, axis=1))
        summed.append(raw.astype(np.float64) + flipped)
    if not summed:
        return np.empty(0), np.empty((0, 2), dtype=np.float32)
    embeddings = np.concatenate(summed)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    distances = np.square(embeddings[0::2] - embeddings[1::2]).sum(axis=1)
    return distances, np.concatenate(plain).reshape(-1, 2)


def verify_set(
    pairs: VerificationSet, embed: Embed, *, image_size: int, batch_size: int, world: World | None = None
) -> SetResult:
    """Metrics of one set; with ``world`` its pairs are shared out over the ranks and all ranks get the result."""
    check_pairs(pairs.issame, f"{pairs.name}.bin")
    if world is None or world.size == 1:
        distances, norms = embed_set(pairs, embed, image_size=image_size, batch_size=batch_size)
    else:
        own, norms = embed_set(
            pairs, embed, image_size=image_size, batch_size=batch_size, rank=world.rank, world_size=world.size
        )
        distances = _gather_shares(own, len(pairs.issame), world)
        norms = world.all_reduce([norms], "sum")[0]
    # Here all ranks know all distances, so all stop; a NaN anywhere in an embedding reaches its pair's distance.
    if bad := int((~np.isfinite(distances)).sum()):
        first = int(np.argmax(~np.isfinite(distances)))
        raise EmbeddingError(
            f"{pairs.name}: embeddings of {bad} of {len(distances)} pairs are not finite (the first: pair {first}): "
            "the weights hold NaN or infinity, or overflow in this precision; take an earlier checkpoint or fp32"
        )
    metrics = verification_metrics(distances, pairs.issame)
    return SetResult(pairs.name, metrics, norms / (4 * len(pairs.issame)), distances, pairs.issame)


def _gather_shares(own: NDArray[np.float64], count: int, world: World) -> NDArray[np.float64]:
    largest = -(-count // world.size)
    padded = torch.zeros(largest, dtype=torch.float64)
    padded[: len(own)] = torch.from_numpy(own)
    gathered = world.all_gather(padded).numpy()
    sizes = [count * (rank + 1) // world.size - count * rank // world.size for rank in range(world.size)]
    return np.concatenate([gathered[rank, :size] for rank, size in enumerate(sizes)])


def format_table(results: Sequence[SetResult], baseline: Sequence[SetResult] = ()) -> str:
    """The accuracy table, a line a set; ``baseline`` (raw pixels) stands beside it."""
    pixels = {result.name: result.metrics for result in baseline}
    levels = sorted({level for result in results for level in result.metrics.tar}, key=float)[:2]
    header = ["set", "Accuracy-Flip", *(f"TAR@FAR={level}" for level in levels), "EER", "AUC", "pairs", "raw pixels"]
    rows = [header]
    for result in results:
        metrics = result.metrics
        base = pixels.get(result.name)
        rows.append(
            [
                result.name,
                f"{metrics.accuracy:.5f}+-{metrics.accuracy_std:.5f}",
                *(f"{metrics.tar[level]:.4f}" if level in metrics.tar else "-" for level in levels),
                f"{metrics.eer:.4f}",
                f"{metrics.auc:.4f}",
                str(len(result.issame)),
                f"{base.accuracy:.5f}+-{base.accuracy_std:.5f}" if base else "-",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
