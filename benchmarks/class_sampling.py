"""Drawing a step's classes: this project's marks at random against the usual random keys and top-k.

The usual way gives every class a random number, the batch's own classes a higher one, takes the largest and sorts their
places. Both sides alternate on the same labels; medians; one thread does the drawing in both.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from app.command_line import CommandLine
from app.head.class_shards import sample_classes
from benchmarks.machine import describe

CASES = ((360_232, 0.1), (2_000_000, 0.1), (10_000_000, 0.05), (10_000_000, 0.1))


def by_sorting(labels: Tensor, classes: int, rate: float) -> Tensor:
    """Ascending int64 [k], from random keys."""
    keys = torch.rand(classes)
    keys[labels] = 2.0
    return torch.topk(keys, int(rate * classes)).indices.sort().values


def seconds(draw: Callable[..., Tensor], *arguments: Any) -> float:
    """Of one drawing."""
    started = time.perf_counter()
    draw(*arguments)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print a Markdown table."""
    parser = CommandLine("python -m benchmarks.class_sampling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    print(f"Machine: {describe()}. Batch {options.batch}; medians of {options.rounds} alternating rounds after one.")
    print(f"Load of the machine when it began: {os.getloadavg()[0]:.1f}.\n")
    print("| classes, rate | random keys, top-k, sort, s | marks at random, s | faster |\n| --- | --- | --- | --- |")
    for classes, rate in CASES:
        usual, ours = [], []
        for step in range(options.rounds + 1):
            labels = torch.randint(0, classes, (options.batch,))
            usual.append(seconds(by_sorting, labels, classes, rate))
            ours.append(seconds(sample_classes, labels, classes, rate, 1, 0, step, 0, classes))
        there, here = statistics.median(usual[1:]), statistics.median(ours[1:])
        print(f"| {classes:,}, {rate} | {there:.4f} | {here:.4f} | {there / here:.1f}x |", flush=True)


if __name__ == "__main__":
    main()
