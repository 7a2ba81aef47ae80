"""What centres and momentum in bfloat16 cost in accuracy, on a task that takes seconds, and save in memory.

A linear backbone and the head learn 2,000 classes of noisy vectors; the accuracy is that of the nearest centre on fresh
samples. Every seed trains all forms of storage on the same samples. Bytes a class are what the peak of a process that
trains grows by from one number of classes to a larger one.
"""

from __future__ import annotations

import argparse
import statistics

import torch
import torch.nn.functional as F

from app.command_line import CommandLine
from app.device import dtype_of
from app.head.config import HeadConfig
from app.head.optimizer import CentreOptimizer
from app.head.partial_fc import HeadShape, PartialFC
from benchmarks.machine import describe
from benchmarks.partial_fc import Case, run_process

CLASSES, SIZE, BATCH, NOISE = 2000, 64, 128, 1.0
FORMS = {
    "all float32": ("float32", "float32"),
    "momentum bfloat16": ("float32", "bfloat16"),
    "centres bfloat16": ("bfloat16", "float32"),
    "both bfloat16": ("bfloat16", "bfloat16"),
}


def accuracy(seed: int, steps: int, centre_dtype: str, momentum_dtype: str) -> float:
    """Share of 10,000 fresh samples whose nearest centre is their class's."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, SIZE, generator=generator)
    backbone = torch.nn.Linear(SIZE, SIZE)
    with torch.no_grad():
        backbone.weight.normal_(0, SIZE**-0.5, generator=generator)
    config = HeadConfig(m2=0.3, scale=32.0, centre_dtype=centre_dtype)
    head = PartialFC(config, HeadShape(SIZE, CLASSES, seed=seed))
    centres = CentreOptimizer(head, "sgd", momentum_dtype=dtype_of(momentum_dtype))
    optimizer = torch.optim.SGD(backbone.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        return means[labels] + NOISE * torch.randn(count, SIZE, generator=generator), labels

    for step in range(steps):
        lr = 0.1 * (1 - step / steps)
        samples, labels = draw(BATCH)
        head.begin_step(step)
        optimizer.zero_grad()
        head(backbone(samples), labels, BATCH).backward()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        centres.step(lr)
    samples, labels = draw(10_000)
    with torch.no_grad():
        nearest = (backbone(samples) @ F.normalize(head.centres.float()).T).argmax(1)
    return float((nearest == labels).float().mean())


def bytes_a_class(centre_dtype: str, momentum_dtype: str) -> float:
    """Of an embedding of 512 under SGD, from the peaks of two processes that train."""
    fewer, more = 200_000, 800_000
    peaks = [
        run_process("ours", Case(classes, 0.1, 128, "fp32", centre_dtype, momentum=momentum_dtype), 1, 2)["gigabytes"]
        for classes in (fewer, more)
    ]
    return float((peaks[1] - peaks[0]) * 1e9 / (more - fewer))


def main() -> None:
    """Measure and print a Markdown table."""
    parser = CommandLine(
        "python -m benchmarks.partial_fc_storage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(f"Machine: {describe()}. {CLASSES} classes, {options.steps} steps of {BATCH}, {options.seeds} seeds.\n")
    print("| stored | bytes a class | classes a GB | accuracy, mean | of each seed |\n|" + " --- |" * 5)
    for name, dtypes in FORMS.items():
        found = [accuracy(seed, options.steps, *dtypes) for seed in range(options.seeds)]
        each = bytes_a_class(*dtypes)
        seeds = ", ".join(f"{value:.4f}" for value in found)
        mean = statistics.mean(found)
        print(f"| {name} | {each:,.0f} | {1e9 / each:,.0f} | {mean:.4f} | {seeds} |", flush=True)


if __name__ == "__main__":
    main()
