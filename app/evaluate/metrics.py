"""Face verification metrics from distances: the protocol of LFW as insightface computes it, without its loops.

Distances are squared L2 between unit embeddings, in [0, 4]. A pair is called the same person below a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.errors import AppError

FOLDS = 10
ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)
FAR_THRESHOLDS = np.arange(0, 4, 0.001)


class PairsError(AppError):
    """The pairs of a set cannot be judged; says how many there are."""


@dataclass(frozen=True)
class VerificationMetrics:
    """Results on one set of pairs.

    ``accuracy`` and ``accuracy_std``: mean and deviation over ten folds, each at the best threshold of the others.
    ``tar``: share of genuine pairs accepted, by the share of impostors accepted (FAR), over all pairs; a FAR that the
    number of impostor pairs cannot resolve is left out. ``roc``: (FAR, TAR) points.
    """

    accuracy: float
    accuracy_std: float
    threshold: float
    auc: float
    eer: float
    tar: dict[str, float]
    tar_at_far_1e3: float
    roc: tuple[NDArray[np.float64], NDArray[np.float64]]


def fold_of_pairs(count: int, folds: int = FOLDS) -> NDArray[np.int64]:
    """Fold of each pair, int64 [P]: contiguous, as scikit-learn's unshuffled KFold."""
    sizes = np.full(folds, count // folds)
    sizes[: count % folds] += 1
    return np.repeat(np.arange(folds), sizes)


def check_pairs(issame: NDArray[np.bool_], name: str = "the set") -> None:
    """Refuse pairs for which ten folds have no meaning: empty folds count as wrong, and one kind alone is always right.

    Args:
        issame: bool [P].
        name: of the set, for the message.

    Raises:
        PairsError: there are fewer than ten pairs, or no genuine or no impostor ones.
    """
    count, genuine = len(issame), int(issame.sum())
    if count < FOLDS:
        raise PairsError(f"{name}: {count} pairs, but accuracy over {FOLDS} folds needs at least {FOLDS}: add pairs")
    if genuine in (0, count):
        kind, other = ("impostor", "genuine") if genuine == 0 else ("genuine", "impostor")
        raise PairsError(f"{name}: all of its {count} pairs are {kind} pairs: add {other} pairs")


def ten_fold_accuracy(
    distances: NDArray[np.float64], issame: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy and chosen threshold of each fold, float64 [10] each.

    Args:
        distances: [P].
        issame: bool [P].
    """
    accepted_same, accepted_different, same, different = _accepted(distances, issame, ACCURACY_THRESHOLDS)
    correct = accepted_same + (different[:, None] - accepted_different)
    pairs = same + different
    in_training = correct.sum(0) - correct  # [folds, thresholds]: all folds but one
    best = np.argmax(in_training, axis=1)  # the first maximum, as the reference
    return correct[np.arange(FOLDS), best] / np.maximum(pairs, 1), ACCURACY_THRESHOLDS[best]


def tar_at_far(distances: NDArray[np.float64], issame: NDArray[np.bool_], far: float = 1e-3) -> float:
    """Mean over ten folds of the TAR at the threshold where the other folds reach ``far`` (interpolated).

    Where several thresholds have one FAR, the largest counts.
    """
    _, accepted_different, same, different = _accepted(distances, issame, FAR_THRESHOLDS)
    tars = []
    for fold in range(FOLDS):
        others = np.arange(FOLDS) != fold
        rates = accepted_different[others].sum(0) / max(1, int(different[others].sum()))
        if rates.max() < far:
            threshold = 0.0
        else:
            values, reverse_first = np.unique(rates[::-1], return_index=True)
            threshold = float(np.interp(far, values, FAR_THRESHOLDS[len(rates) - 1 - reverse_first]))
        here = fold_of_pairs(len(distances)) == fold
        tars.append(((distances < threshold) & issame & here).sum() / max(1, int(same[fold])))
    return float(np.mean(tars))


def verification_metrics(distances: NDArray[np.float64], issame: NDArray[np.bool_]) -> VerificationMetrics:
    """All metrics of a set; see ``VerificationMetrics``.

    Raises:
        PairsError: see ``check_pairs``.
    """
    check_pairs(issame)
    accuracies, thresholds = ten_fold_accuracy(distances, issame)
    far, tar = roc_curve(distances, issame)
    impostors = int((~issame).sum())
    levels = {f"1e-{n}": 10.0**-n for n in range(6, 0, -1)}
    crossing = int(np.argmin(np.abs(far - (1 - tar))))
    return VerificationMetrics(
        accuracy=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        threshold=float(np.median(thresholds)),
        auc=float(np.trapezoid(tar, far)),
        eer=float((far[crossing] + 1 - tar[crossing]) / 2),
        tar={
            name: float(tar[far <= level].max())
            for name, level in levels.items()
            if impostors and level >= 1 / impostors
        },
        tar_at_far_1e3=tar_at_far(distances, issame),
        roc=(far, tar),
    )


def roc_curve(
    distances: NDArray[np.float64], issame: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(FAR, TAR) at every distinct distance, from (0, 0) to (1, 1)."""
    order = np.argsort(distances, kind="stable")
    ordered, same = distances[order], issame[order]
    last_of_value = np.append(ordered[1:] != ordered[:-1], True)
    tar = np.cumsum(same)[last_of_value] / max(1, int(same.sum()))
    far = np.cumsum(~same)[last_of_value] / max(1, int((~same).sum()))
    return np.append(0.0, far), np.append(0.0, tar)


def _accepted(
    distances: NDArray[np.float64], issame: NDArray[np.bool_], thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Accepted genuine and impostor pairs by fold and threshold, int64 [folds, T], and both counts, int64 [folds]."""
    fold = fold_of_pairs(len(distances))
    # A pair is accepted by every threshold above its distance: count it at the first, then sum up.
    first = np.searchsorted(thresholds, distances, side="right")
    counts = np.zeros((2, FOLDS, len(thresholds) + 1), dtype=np.int64)
    np.add.at(counts, (issame.astype(np.int64), fold, first), 1)
    accepted = counts[:, :, :-1].cumsum(axis=2)
    totals = counts.sum(axis=2)
    return accepted[1], accepted[0], totals[1], totals[0]
