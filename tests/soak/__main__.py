"""``make soak MINUTES=10 SEED=1``: real processes, a real store, random faults; and the undisturbed run to compare.

An elastic job of four nodes trains against SeaweedFS behind a proxy that misbehaves. Workers are killed, stopped and
paused, nodes are lost, leave and join, the rendezvous process dies, the store is away, slow or flaky. Then the job is
stopped, finished without disturbances, and compared with a run that had none. Ends with 1 where a start lost a commit,
or where weights differ that must not: with ``train.reproducible``, as here, not a bit may, whatever worlds there were.
Other options are the job's: ``--train.reproducible false`` shows what rounding does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from app import storage
from app.command_line import CommandLine
from app.config.options import parse_arguments as parse_options
from app.errors import run_main
from benchmarks import machine
from demo.object_store import ObjectStore
from tests.faults.proxy import Proxy
from tests.jobs import ROOT, SMALL, environment, losses, weights, write_faces
from tests.soak.disturbances import draw
from tests.soak.job import Job, SoakError, run_disturbed
from tests.soak.report import compare_losses, compare_weights, make_table, summarize
from tests.soak.report import draw as draw_picture

JOB = (
    *("--train.logical-workers", "4", "--train.epochs", "100000", "--checkpoint.every-steps", "20"),
    *(
        "--train.reproducible",
        "true",
        "--train.step-timeout",
        "45",
        "--optim.lr",
        "0.02",
        "--checkpoint.keep-last",
        "3",
    ),
)
TAIL = 10  # steps that the job is finished by, undisturbed


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    parser = CommandLine("python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the job is disturbed")
    parser.add_argument("--seed", type=int, default=1, help="of the disturbances")
    parser.add_argument("--output", default=".run/soak", help="folder of the report; it is emptied")
    parser.add_argument("--reference-processes", type=int, default=2, help="of the undisturbed run")
    options, extra = parser.parse_known_args(arguments)
    parse_options([*JOB, *extra])  # before anything is emptied
    folder = Path(options.output)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "logs").mkdir(parents=True)
    with ObjectStore(folder / "store" / "data", "soak") as store, Proxy(store.endpoint) as proxy:
        os.environ.update(store.environment)
        data, disturbed, calm = (f"s3://soak/{name}" for name in ("data", "disturbed", "calm"))
        write_faces(data)
        job_options = (*JOB, *extra)
        variables = {"AWS_ENDPOINT_URL": proxy.endpoint}
        try:
            job, step = run_disturbed(
                draw(options.seed),
                60 * options.minutes,
                folder / "logs",
                proxy,
                (data, disturbed),
                job_options,
                options.seed,
                variables,
            )
        except SoakError as error:
            print(f"error: soak: {error}", file=sys.stderr)
            return 1
        last = step + TAIL
        print(f"stopped at step {step}; now the last {TAIL} steps, then {last} undisturbed ones", flush=True)
        finish(4, data, disturbed, *job_options, "--train.last-step", str(last))
        finish(options.reference_processes, data, calm, *job_options, "--train.last-step", str(last))
        figures = measure(job, last, disturbed, calm) | {
            "minutes": options.minutes,
            "seed": options.seed,
            "options": " ".join(job_options),
            "reproducible": "--train.reproducible false" not in " ".join(job_options),
            "reference_processes": options.reference_processes,
        }
    return write_report(folder, job, figures)


def finish(processes: int, data: str, output: str, *options: str) -> None:
    """Train to the end on one node, without a proxy."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "app.train", *SMALL]
    with open(os.devnull, "wb") as nowhere:
        subprocess.run(
            [*command, "--data.url", data, "--output.url", output, *options],
            env=environment(),
            cwd=ROOT,
            check=True,
            stdout=nowhere,
        )


def measure(job: Job, last: int, disturbed: str, calm: str) -> dict[str, Any]:
    """The figures of a soak that was survived."""
    steps = job.watch.steps_since(0)
    starts = [seen.step for seen in job.watch.starts]
    folder = storage.join(disturbed, "orl", "events")
    commits = sum(
        storage.read_bytes(storage.join(folder, name)).count(b'"checkpoint"') for name in storage.list_names(folder)
    )
    return {
        "machine": machine.describe(),
        "last_step": last,
        "incidents": len(job.incidents),
        "starts": len(job.watch.starts),
        "commits": commits,
        "steps": len(steps),
        "replayed": len(steps) - len({seen.step for seen in steps}),
        "agents_restarted": job.agents_restarted,
        "table": make_table(job.incidents),
        "weights": compare_weights(weights(disturbed), weights(calm)),
        "losses": compare_losses(losses(disturbed), losses(calm)),
        # A start from a step proves a commit of it: a later one from an earlier step lost that.
        "lost_commits": sum(step < max(starts[:number], default=0) for number, step in enumerate(starts)),
    }


def write_report(folder: Path, job: Job, figures: dict[str, Any]) -> int:
    """Figures, table and picture; returns the exit code."""
    (folder / "soak.json").write_text(json.dumps(figures, indent=1))
    (folder / "soak.md").write_text(summarize(figures))
    draw_picture(job.watch.seen, job.incidents, folder / "soak.png")
    print(summarize(figures))
    if figures["lost_commits"]:
        print(f"error: soak: {figures['lost_commits']} starts went back behind a commit", file=sys.stderr)
        return 1
    if figures["reproducible"] and figures["weights"]["entries_that_differ"]:
        print("error: soak: the weights are not those of the undisturbed run", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
