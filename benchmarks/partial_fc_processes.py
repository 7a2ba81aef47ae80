"""The head on one process with two threads against two processes of one thread each, for the same global batch.

Two processes hold half of the classes each, gather each other's embeddings and exchange the numbers that normalise the
softmax (gloo on loopback). Rounds alternate; figures are medians over all steps but each round's first. The bar: two
processes take at most 1.15 times as long as one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist

from app.command_line import CommandLine
from app.world import leave_group
from benchmarks.machine import describe
from benchmarks.partial_fc import SIZE, Case, make_ours

BAR = 1.15


def run_rank(rank: int, world: int, threads: int, classes: int, batch: int, steps: int, store: str) -> list[float]:
    """Seconds of each step but the first."""
    torch.set_num_threads(threads)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    step = make_ours(Case(classes, 1.0, batch, "fp32"))
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for number in range(steps + 1):
        embeddings = torch.randn(batch, SIZE, generator=generator).chunk(world)[rank].clone()
        labels = torch.randint(0, classes, (batch,), generator=generator).chunk(world)[rank]
        started = time.perf_counter()
        step(number, embeddings, labels)
        seconds.append(time.perf_counter() - started)
    if world > 1:
        leave_group()
    return seconds[1:]


def run_world(world: int, threads: int, classes: int, batch: int, steps: int) -> list[float]:
    """Rank 0's seconds, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        tasks: list[dict[str, Any]] = [
            {"rank": rank, "world": world, "threads": threads, "classes": classes, "batch": batch, "steps": steps}
            for rank in range(world)
        ]
        commands = [
            [
                sys.executable,
                "-m",
                "benchmarks.partial_fc_processes",
                "--task",
                json.dumps(task | {"store": f"{folder}/s"}),
            ]
            for task in tasks
        ]
        ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
        printed = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit(f"a rank ended with {[rank.returncode for rank in ranks]}")
    found: list[float] = json.loads(printed[0])
    return found


def main() -> None:
    """Measure and print a Markdown table."""
    parser = CommandLine(
        "python -m benchmarks.partial_fc_processes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--classes", type=int, default=360_232)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--task", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(run_rank(**json.loads(options.task))))
        return
    print(f"Machine: {describe()}. {options.classes:,} classes, global batch {options.batch}, fp32;")
    print(f"median of {options.rounds} alternating rounds of {options.steps} steps after one to warm up.")
    print(f"Load of the machine when it began: {os.getloadavg()[0]:.1f}.\n")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for world, threads in ((1, 2), (2, 1)):
            seconds[world] += run_world(world, threads, options.classes, options.batch, options.steps)
    one, two = (statistics.median(seconds[world]) for world in (1, 2))
    print("| processes x threads | seconds a step | of one process |\n| --- | --- | --- |")
    print(f"| 1 x 2 | {one:.2f} | 1 |\n| 2 x 1 | {two:.2f} | {two / one:.2f} |\n")
    print(f"Bar of {BAR}: {'reached' if two <= BAR * one else 'MISSED'}.")


if __name__ == "__main__":
    main()
