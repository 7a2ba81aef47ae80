"""A whole step of the head on the CPU (forward, backward, update): this project's against the reference's formula.

The reference's formula is written here from the papers: sample classes, normalise, linear, margin, softmax with an
in-place exponential, a dense gradient of the centres, ``torch.optim.SGD``. Every side runs in a process of its own; the
sides alternate; figures are medians over all steps but each process's first. Beside the time on the clock stands the
processor time of all threads, which other programs on the machine disturb less. Memory is the process's peak resident
set.
Ours reads the centres twice and multiplies four times, the reference three times. Beside a step of ours stands what
those four products take alone, as torch computes them here in blocks: nothing in that form can be faster.

A bar that was missed is printed as missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.command_line import CommandLine
from app.device import dtype_of
from app.head.class_shards import sample_classes
from app.head.config import HeadConfig
from app.head.optimizer import CentreOptimizer
from app.head.partial_fc import HeadShape, PartialFC
from benchmarks.machine import describe

SIZE, SCALE, MARGIN, LR = 512, 64.0, 0.5, 0.1


@dataclass(frozen=True)
class Case:
    """``stored``: type of centres, and of momentum unless ``momentum`` says another.

    ``faster``, ``gigabytes``: the bars, 0 where there is none.
    """

    classes: int
    rate: float
    batch: int
    precision: str
    stored: str = "float32"
    faster: float = 0.0
    gigabytes: float = 0.0
    alone: bool = False
    momentum: str = ""

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.classes:,} classes, rate {self.rate:g}, batch {self.batch}, {self.precision} products"


def state_gigabytes(classes: int) -> float:
    """Centres and momentum in float32."""
    return classes * SIZE * 8 / 1e9


CASES = {
    "100k": Case(100_000, 1.0, 128, "fp32"),
    "100k-512": Case(100_000, 1.0, 512, "fp32"),
    "360k": Case(360_232, 1.0, 128, "fp32", faster=4, gigabytes=state_gigabytes(360_232) + 0.3),
    "360k-bf16": Case(360_232, 1.0, 128, "bf16", faster=5, gigabytes=state_gigabytes(360_232) + 0.3),
    "360k-512": Case(360_232, 1.0, 512, "fp32"),
    "360k-512-bf16": Case(360_232, 1.0, 512, "bf16"),
    "2m": Case(2_000_000, 0.1, 128, "fp32", faster=8, gigabytes=8.6),
    "10m": Case(10_000_000, 0.05, 128, "bf16", "bfloat16", gigabytes=22, alone=True),
}
COLUMNS = [
    "case",
    "reference, s",
    "ours, s",
    "faster",
    "products alone, s",
    "processor, s",
    "faster",
    "reference, GB",
    "ours, GB",
    "bars",
]
MEDIANS = ("seconds", "processor", "products")
Step = Callable[[int, Tensor, Tensor], float]


def make_ours(case: Case) -> Step:
    """This project's head."""
    config = HeadConfig(m2=MARGIN, scale=SCALE, sample_rate=case.rate, centre_dtype=case.stored)
    head = PartialFC(config, HeadShape(SIZE, case.classes, matmul_dtype=dtype_of(case.precision)))
    optimizer = CentreOptimizer(head, "sgd", momentum_dtype=dtype_of(case.momentum or case.stored))

    def step(number: int, embeddings: Tensor, labels: Tensor) -> float:
        head.begin_step(number, labels)
        loss = head(embeddings.requires_grad_(), labels, len(labels))
        loss.backward()
        assert head.finite()
        optimizer.step(LR)
        return float(loss.detach())

    return step


def make_reference(case: Case) -> Step:
    """The formula as the papers and insightface's PartialFC_V2 have it."""
    centres = torch.empty(case.classes, SIZE).normal_(0, 0.01).requires_grad_()
    optimizer = torch.optim.SGD([centres], LR, momentum=0.9, weight_decay=5e-4)
    dtype = dtype_of(case.precision)

    def step(number: int, embeddings: Tensor, labels: Tensor) -> float:
        weight, own = centres, labels
        if case.rate < 1:
            classes = sample_classes(labels, case.classes, case.rate, 1, 0, number, 0, case.classes)
            weight, own = centres[classes], torch.searchsorted(classes, labels)
        embeddings.requires_grad_()
        unit, directions = F.normalize(embeddings), F.normalize(weight)
        cosine = F.linear(unit.to(dtype), directions.to(dtype)).float().clamp(-1, 1)
        rows = torch.arange(len(own))
        target = torch.cos(torch.acos(cosine[rows, own]) + MARGIN)
        logits = cosine.index_put((rows, own), target) * SCALE
        loss: Tensor = CrossEntropy.apply(logits, own)  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


class CrossEntropy(torch.autograd.Function):
    """Mean cross entropy whose probabilities overwrite the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, own: Tensor) -> Tensor:
        """[N, C], [N] -> []."""
        logits.sub_(logits.amax(1, keepdim=True)).exp_()
        logits.div_(logits.sum(1, keepdim=True))
        ctx.save_for_backward(logits, own)
        return -logits.gather(1, own[:, None]).clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Probabilities minus one-hot."""
        logits, own = ctx.saved_tensors
        logits[torch.arange(len(own)), own] -= 1
        return logits.div_(len(own)).mul_(gradients[0]), None


def products_alone(case: Case) -> float:
    """Seconds of the four products of one step of ours, block by block, and of nothing else."""
    dtype, block = dtype_of(case.precision), 2048
    unit, centres = torch.randn(case.batch, SIZE).to(dtype), torch.randn(block, SIZE).to(dtype)
    weights = torch.randn(case.batch, block).to(dtype)
    cosines, towards = torch.empty_like(weights), torch.zeros_like(unit)
    momentum = torch.zeros_like(centres)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(round(case.classes * case.rate / block)):
            torch.mm(unit, centres.T, out=cosines)
            towards.addmm_(weights, centres)
            torch.mm(unit, centres.T, out=cosines)
            momentum.addmm_(weights.T, unit, beta=0.9)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def run_side(side: str, case: Case, steps: int, threads: int) -> dict[str, Any]:
    """Seconds of each step but the first, the losses, and the peak memory in GB; for ours the products' seconds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = make_ours(case) if side == "ours" else make_reference(case)
    seconds, processor, losses = [], [], []
    for number in range(steps + 1):
        embeddings, labels = torch.randn(case.batch, SIZE), torch.randint(0, case.classes, (case.batch,))
        started, used = time.perf_counter(), time.process_time()
        losses.append(step(number, embeddings, labels))
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    products = [products_alone(case)] if side == "ours" else [0.0]
    figures = {"seconds": seconds[1:], "processor": processor[1:], "products": products}
    return {**figures, "losses": losses, "gigabytes": peak}


def run_process(side: str, case: Case, steps: int, threads: int) -> dict[str, Any]:
    """``run_side`` in a process of its own."""
    task = json.dumps({"side": side, "case": asdict(case), "steps": steps, "threads": threads})
    command = [sys.executable, "-m", "benchmarks.partial_fc", "--task", task]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side}, {case.name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(case: Case, rounds: int, steps: int, threads: int) -> dict[str, dict[str, Any]]:
    """Median seconds and highest peak of each side, in alternating processes."""
    sides = ("ours",) if case.alone else ("reference", "ours")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            found[side].append(run_process(side, case, steps, threads))
    return {
        side: {
            **{key: statistics.median(value for run in runs for value in run[key]) for key in MEDIANS},
            "gigabytes": max(run["gigabytes"] for run in runs),
            "loss": runs[0]["losses"][0],
        }
        for side, runs in found.items()
    }


def verdict(case: Case, result: dict[str, dict[str, Any]]) -> str:
    """The bars of a case, reached or missed."""
    words = []
    if case.faster and "reference" in result:
        gain = result["reference"]["seconds"] / result["ours"]["seconds"]
        words.append(f"{case.faster:g}x: {'reached' if gain >= case.faster else 'MISSED'}")
    if case.gigabytes:
        kept = result["ours"]["gigabytes"] <= case.gigabytes
        words.append(f"{case.gigabytes:.2f} GB: {'reached' if kept else 'MISSED'}")
    return ", ".join(words) or "-"


def draw(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Bars of seconds and memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.6))
    for axis, key, label in zip(axes, ("seconds", "gigabytes"), ("seconds a step", "peak memory, GB"), strict=True):
        for offset, side in ((-0.2, "reference"), (0.2, "ours")):
            places = [place + offset for place, result in enumerate(results.values()) if side in result]
            axis.bar(places, [result[side][key] for result in results.values() if side in result], 0.4, label=side)
        axis.set_xticks(range(len(results)), list(results), rotation=20)
        axis.set_ylabel(label)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = CommandLine("python -m benchmarks.partial_fc", description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--chart", default="", help="file for the chart")
    parser.add_argument("--task", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task = json.loads(options.task)
        print(json.dumps(run_side(task["side"], Case(**task["case"]), task["steps"], task["threads"])))
        return
    print(f"Machine: {describe()}. Embedding {SIZE}; median of {options.rounds} alternating processes a side, each")
    print(f"{options.steps} steps after one to warm up, {options.threads} threads.")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"Load of the machine when it began (1, 5, 15 minutes): {load}.\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|" + " --- |" * len(COLUMNS), flush=True)
    results = {}
    for name in options.cases.split(","):
        case = CASES[name]
        results[name] = result = measure(case, options.rounds, options.steps, options.threads)
        ours, other = result["ours"], result.get("reference")
        cells = [f"{other['seconds']:.2f}" if other else "-", f"{ours['seconds']:.2f}"]
        cells += [f"{other['seconds'] / ours['seconds']:.2f}x" if other else "-"]
        cells += [f"{ours['products']:.2f}"]
        cells += [f"{other['processor']:.2f}, {ours['processor']:.2f}" if other else f"{ours['processor']:.2f}"]
        cells += [f"{other['processor'] / ours['processor']:.2f}x" if other else "-"]
        cells += [f"{other['gigabytes']:.2f}" if other else "-", f"{ours['gigabytes']:.2f}"]
        print(f"| {case.name} | {' | '.join(cells)} | {verdict(case, result)} |", flush=True)
    if options.chart:
        draw(results, Path(options.chart))


if __name__ == "__main__":
    main()
