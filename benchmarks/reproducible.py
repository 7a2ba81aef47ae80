"""The price of ``train.reproducible``: whole training processes with and without it, on synthetic faces.

Rounds alternate; each is a job of its own, whose first steps are left out. ``images_per_second`` is that of all
processes together, as the run itself reports it for each step. One process has all cores without the option and one
thread with it, as a run has them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from app import storage
from app.command_line import CommandLine
from app.observe.events import read_events
from benchmarks.machine import describe

_WARM_UP = 3  # steps
_JOB = (
    *("--recipe", "orl", "--data.url", "synthetic", "--data.num-classes", "10000", "--data.num-images", "100000"),
    *("--train.logical-workers", "4", "--train.batch-size", "16", "--train.log-every", "1"),
    *("--verify.sets", ",", "--output.tensorboard", "false"),
)


def train(processes: int, backbone: str, reproducible: bool, steps: int) -> list[float]:
    """Images a second of each step but the first ones."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, *(launcher if processes > 1 else []), "-m", "app.train", *_JOB),
                *("--model.backbone", backbone, "--train.last-step", str(steps + _WARM_UP), "--output.url", folder),
                *("--train.reproducible", str(reproducible).lower()),
            ],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"} | ({"OMP_NUM_THREADS": "1"} if processes > 1 else {}),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        events = read_events(storage.join(folder, "orl"))
        return [event["images_per_second"] for event in events if event["kind"] == "train"][_WARM_UP:]


def main() -> None:
    """Print the table."""
    parser = CommandLine("python -m benchmarks.reproducible", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of a round, after the first three")
    parser.add_argument("--backbones", default="mbf,r18")
    options = parser.parse_args()
    print(f"{describe()}; medians of {options.rounds} alternating rounds of {options.steps} steps\n")
    print("| backbone | processes | images/s | `train.reproducible true` | price |\n| --- | --- | --- | --- | --- |")
    for backbone in options.backbones.split(","):
        for processes in (1, 2):
            speeds: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(options.rounds):
                for reproducible in speeds:
                    speeds[reproducible] += train(processes, backbone, reproducible, options.steps)
            plain, ordered = (statistics.median(speed) for speed in speeds.values())
            print(f"| {backbone} | {processes} | {plain:.1f} | {ordered:.1f} | {plain / ordered:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
