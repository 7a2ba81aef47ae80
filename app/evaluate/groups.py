"""Who pays for a model's errors: accuracy, false positives and false negatives by group, at one threshold for all.

RFW (Wang et al. 2019) has a set of pairs for each of four groups. A group is a ``.bin`` file here, by whatever trait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import AppError
from app.evaluate.verification import SetResult


class GroupsError(AppError):
    """Groups that cannot be compared."""


@dataclass(frozen=True)
class Group:
    """One group: ten-fold accuracy at its own thresholds, and what the common threshold does to it."""

    name: str
    accuracy: float
    accuracy_at_threshold: float
    fpr: float
    fnr: float
    pairs: int


@dataclass(frozen=True)
class GroupReport:
    """``threshold``: of squared distances, accepted below it; the same for all groups."""

    threshold: float
    groups: list[Group]

    def summary(self) -> dict[str, Any]:
        """The numbers as plain JSON, with the spread of each over the groups.

        ``mean``, ``std`` (of the population), ``spread`` (highest less lowest); ``skewed_error_ratio`` is the highest
        error over the lowest, of ten-fold accuracy; None where a group has no error.
        """
        table = {
            name: np.array([getattr(group, name) for group in self.groups])
            for name in ("accuracy", "accuracy_at_threshold", "fpr", "fnr")
        }
        errors = 1 - table["accuracy"]
        return {
            "threshold": self.threshold,
            "groups": {group.name: {name: getattr(group, name) for name in (*table, "pairs")} for group in self.groups},
            "over_groups": {
                name: {"mean": float(v.mean()), "std": float(v.std()), "spread": float(v.max() - v.min())}
                for name, v in table.items()
            },
            "skewed_error_ratio": float(errors.max() / errors.min()) if errors.min() > 0 else None,
        }


def compare_groups(results: Sequence[SetResult], fpr: float) -> GroupReport:
    """Judge all groups by the threshold at which, over all their impostor pairs together, a share ``fpr`` is accepted.

    Raises:
        GroupsError: there is one group only, or the share is finer than the impostor pairs.
    """
    if len(results) < 2:
        raise GroupsError(f"groups: {len(results)} set found: two or more are needed, one .bin file a group")
    impostors = np.concatenate([result.distances[~result.issame] for result in results])
    threshold = threshold_at(impostors, fpr)
    groups = []
    for result in results:
        accepted, same = result.distances < threshold, result.issame
        groups.append(
            Group(
                result.name,
                result.metrics.accuracy,
                float((accepted == same).mean()),
                float(accepted[~same].mean()),
                float((~accepted[same]).mean()),
                len(same),
            )
        )
    return GroupReport(threshold, groups)


def threshold_at(impostors: NDArray[np.float64], fpr: float) -> float:
    """The largest distance below which at most a share ``fpr`` of the impostor pairs lies.

    Raises:
        GroupsError: the share is not between 0 and 1, or so small that not one pair may be accepted.
    """
    allowed = int(fpr * len(impostors) + 1e-9)
    if not 0 < fpr < 1 or allowed == 0:
        raise GroupsError(
            f"--fpr {fpr}: {len(impostors)} impostor pairs resolve shares from {1 / max(1, len(impostors)):.2g} to 1"
        )
    return float(np.sort(impostors)[allowed])


def format_groups(report: GroupReport) -> str:
    """The report as a table, a line a group."""
    summary = report.summary()
    columns = ("accuracy", "accuracy_at_threshold", "fpr", "fnr")
    width = max(len(name) for name in [group.name for group in report.groups] + ["spread"])
    lines = [f"{'group':<{width}}  accuracy  at threshold     FPR     FNR   pairs"]
    for group in report.groups:
        lines.append(
            f"{group.name:<{width}}  {group.accuracy:8.4f}  {group.accuracy_at_threshold:12.4f}"
            f"  {group.fpr:6.4f}  {group.fnr:6.4f}  {group.pairs:6d}"
        )
    for name in ("mean", "std", "spread"):
        values = [summary["over_groups"][column][name] for column in columns]
        lines.append(f"{name:<{width}}  {values[0]:8.4f}  {values[1]:12.4f}  {values[2]:6.4f}  {values[3]:6.4f}")
    ratio = summary["skewed_error_ratio"]
    lines.append(f"threshold {report.threshold:.4f}, skewed error ratio {'-' if ratio is None else f'{ratio:.2f}'}")
    return "\n".join(lines)
