"""What a soak found: figures, a table, and a picture of loss and world size over time."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from tests.soak.job import Incident
from tests.soak.watch import Seen

_LINE, _WORLD, _MARK = "#1b7f79", "#3d5a98", "#d1495b"


def compare_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """How far apart two state dicts are: entries that differ in a bit, and the largest relative difference (norms)."""
    differing, worst = 0, 0.0
    for name, value in expected.items():
        differing += int((found[name] != value).sum())
        norm = float(value.double().norm())
        worst = max(worst, float((found[name].double() - value.double()).norm()) / max(norm, 1e-30))
    return {"entries_that_differ": differing, "largest_relative_difference": worst}


def compare_losses(found: dict[int, float], expected: dict[int, float]) -> dict[str, float]:
    """The same of the losses of all steps that both have."""
    steps = sorted(found.keys() & expected.keys())
    gaps = [abs(found[step] - expected[step]) / max(abs(expected[step]), 1e-30) for step in steps]
    return {"steps": len(steps), "steps_that_differ": sum(gap > 0 for gap in gaps), "largest": max(gaps, default=0.0)}


def make_table(incidents: list[Incident]) -> str:
    """Kinds of disturbances: how many, how long until the first new step (median, largest), steps done again."""
    rows = [
        "| what happened | times | restarts | median, s | longest, s | steps done again, most |",
        "| --- " * 6 + "|",
    ]
    kinds = dict.fromkeys(incident.kind for incident in incidents)
    for kind in (*kinds, "all"):
        these = [incident for incident in incidents if kind in (incident.kind, "all")]
        times = [incident.recovered - incident.began for incident in these]
        if times:
            rows.append(
                f"| {kind} | {len(these)} | {sum(i.restarted for i in these)} | {statistics.median(times):.0f} | "
                f"{max(times):.0f} | {max(i.lost_steps for i in these)} |"
            )
    return "\n".join(rows)


def draw(seen: list[Seen], incidents: list[Incident], path: Path) -> None:
    """Loss and world size over time, with a mark for each disturbance."""
    figure = Figure(figsize=(12, 6), dpi=130, layout="constrained")
    loss, world = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = [item for item in seen if item.loss is not None]
    loss.plot([s.time for s in steps], [s.loss or 0.0 for s in steps], ".", color=_LINE, markersize=2)
    loss.set_ylabel("loss")
    starts = [item for item in seen if item.loss is None]
    end = seen[-1].time if seen else 0.0
    world.step(
        [*(s.time for s in starts), end], [*(s.world for s in starts), starts[-1].world], where="post", color=_WORLD
    )
    world.set_ylabel("processes")
    world.set_xlabel("seconds")
    world.set_ylim(0, 1 + max(s.world for s in starts))
    top = loss.get_ylim()[1]
    for incident in incidents:
        for axes in (loss, world):
            axes.axvline(incident.began, color=_MARK, linewidth=0.7, alpha=0.7)
        loss.annotate(incident.kind, (incident.began, top), rotation=90, fontsize=6, va="top", ha="right")
    figure.savefig(path)


def summarize(figures: dict[str, Any]) -> str:
    """The report as Markdown."""
    weights, losses = figures["weights"], figures["losses"]
    same = "equal bit for bit" if not weights["entries_that_differ"] else "not equal bit for bit"
    return f"""# Soak: {figures["minutes"]:g} minutes, seed {figures["seed"]}

`make soak MINUTES={figures["minutes"]:g} SEED={figures["seed"]}` on {figures["machine"]}.
Options of the job: `{figures["options"]}`.

{figures["incidents"]} disturbances, {figures["starts"]} starts, {figures["commits"]} commits seen,
{figures["steps"]} steps, of which {figures["replayed"]} were done again; {figures["agents_restarted"]} agents were
started again by the scheduler's stand-in.

{figures["table"]}

Against the undisturbed run on {figures["reference_processes"]} processes, at step {figures["last_step"]}: weights
{same} ({weights["entries_that_differ"]} entries differ, largest relative difference of a tensor
{weights["largest_relative_difference"]:.1e}); of {losses["steps"]} losses {losses["steps_that_differ"]} differ, by at
most {losses["largest"]:.1e}.

![loss and processes over time](soak.png)
"""
