"""Does ``app.plan`` tell the truth? Recipes of different kinds, scaled to this machine, trained on the CPU on noise.

Each runs in a process of its own: some steps, a checkpoint in the midst of them, an orderly end. The peak resident set
is read section by section (Linux: ``VmHWM``, reset through ``/proc/self/clear_refs``). The plan is made in another
process, which trains nothing. A prediction that is further off than the bar is printed as missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.command_line import CommandLine
from app.config.options import parse_arguments
from app.plan import predict
from benchmarks.machine import describe

BAR = 0.15
_MIB = 1 << 20
_SMALL_RUN = (
    *("--data.url", "synthetic", "--data.num-images", "100000", "--verify.sets", ",", "--train.last-step", "6"),
    *("--checkpoint.every-steps", "3", "--train.log-every", "1", "--output.tensorboard", "false"),
)


@dataclass(frozen=True)
class Case:
    """A recipe and how it is made small enough for a machine with a few cores."""

    recipe: str
    options: tuple[str, ...]

    def arguments(self, output: str) -> list[str]:
        """Options of ``app.train``."""
        return ["--recipe", self.recipe, *_SMALL_RUN, *self.options, "--output.url", output]


CASES = {
    "r50, 93,431 classes, batch 32": Case("ms1mv3_r50", ("--train.batch-size", "32", "--train.precision", "fp32")),
    "mbf, 300,000 classes, a tenth sampled, batch 64": Case(
        "3millions", ("--train.batch-size", "64", "--train.precision", "fp32")
    ),
    "r100, 500,000 classes, a fifth sampled, batch 8": Case(
        "wf42m_pfc02_r100",
        ("--data.num-classes", "500000", "--train.batch-size", "8", "--train.precision", "fp32"),
    ),
    "ViT-T, 100,000 classes, adamw, batch 16": Case(
        "wf42m_pfc03_40epoch_8gpu_vit_t",
        ("--data.num-classes", "100000", "--train.batch-size", "16", "--train.precision", "fp32"),
    ),
    "mbf, 360,232 classes, bf16, batch 64": Case(
        "glint360k_mbf", ("--train.batch-size", "64", "--train.precision", "bf16")
    ),
    # The plan's constant for the allocator was read off the runs above; these were not looked at for it.
    "r18, 205,990 classes, three tenths sampled, batch 48": Case(
        "wf42m_pfc03_32gpu_r18",
        ("--data.num-classes", "205990", "--train.batch-size", "48", "--train.precision", "fp32"),
    ),
    "r50, 85,742 classes, 2 x batch 16": Case(
        "ms1mv2_r50",
        ("--train.batch-size", "16", "--train.gradient-accumulation", "2", "--train.precision", "fp32"),
    ),
}


def read_peak() -> int:
    """Highest resident set since ``forget_peak``, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) << 10


def forget_peak() -> None:
    """Begin anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def run(arguments: list[str]) -> dict[str, int]:
    """Train; the peak of each section, bytes, and of the whole."""
    import app.train
    from app.elastic import watchdog

    peaks: dict[str, int] = {}
    current = "start"

    def enter(section: str, step: int | None = None) -> None:  # noqa: ARG001
        nonlocal current
        peaks[current] = max(peaks.get(current, 0), read_peak())
        forget_peak()
        current = section

    forget_peak()
    enter("before training")
    watchdog.enter = enter
    app.train.run(arguments)
    enter("end")
    return {**peaks, "whole": max(peaks.values())}


def measure(case: Case) -> dict[str, int]:
    """Peaks of a run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.plan", "--task", json.dumps(case.arguments(folder))]
        environment = {**os.environ, "ARCFACE_DEVICE": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{case.recipe}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Predict, measure, print a Markdown table and the parts behind it."""
    parser = CommandLine("python -m benchmarks.plan", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--task", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(run(json.loads(options.task))))
        return
    print(f"Machine: {describe()}. One process on the CPU, MiB; the bar is {BAR:.0%}.\n")
    print("| run | predicted | measured | error | bar |")
    print("|" + " --- |" * 5, flush=True)
    parts = []
    for name, case in CASES.items():
        if options.only not in name:
            continue
        needs = predict(parse_arguments(case.arguments("unused")), 1)
        predicted = needs.peak + sum(needs.host.values())
        measured = measure(case)
        error = predicted / measured["whole"] - 1
        verdict = "reached" if abs(error) <= BAR else "MISSED"
        sizes = f"{predicted / _MIB:.0f} | {measured['whole'] / _MIB:.0f}"
        print(f"| {name} | {sizes} | {error:+.1%} | {verdict} |", flush=True)
        for title, found in (
            ("kept", needs.kept),
            ("backward", needs.backward),
            ("update", needs.update),
            ("host", needs.host),
            ("measured", measured),
        ):
            listed = ", ".join(f"{key} {value / _MIB:.0f}" for key, value in found.items() if value)
            parts.append(f"- {name}: {title}: {listed}")
    print("\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
