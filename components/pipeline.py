"""Trains, waits, verifies: ``python -m components.pipeline --nnodes 4 --floor 0.98``.

Runs ``arcface_dist``, and when that has succeeded ``arcface_verify`` on its run folder; prints the accuracy table. Ends
with 0 when every accuracy reached the floor, with 1 when a job failed, with 3 when the verification job did. Ctrl-C or
SIGTERM, as a cancelled CI run sends it, cancels the job that runs and ends with 130.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchx.runner import Runner, config, get_runner
from torchx.runner.config import load_sections
from torchx.specs import AppState, AppStatus, CfgVal

from app.command_line import CommandLine
from components.arguments import ComponentError, parse_nodes
from components.preflight import FILE, build, resolve
from components.recipes import default_run_name
from components.store import Skipped
from torchx_plugins.schedulers._command_line import REFUSALS, leave_usage_out

PASSED_ON = ("nnodes", "nproc_per_node", "recipe", "data", "output", "name", "hardware", "image", "rdzv_port")
Cfg = dict[str, CfgVal]
EXIT_TRAINING_FAILED, EXIT_VERIFICATION_FAILED, EXIT_STOPPED = 1, 3, 130


def main(arguments: list[str]) -> int:
    """Run both jobs; returns the exit code."""
    options = parse(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(options)
    except KeyboardInterrupt:
        return EXIT_STOPPED
    except REFUSALS as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_TRAINING_FAILED


def run(options: argparse.Namespace) -> int:
    """Submit, wait, verify."""
    defaults = load_sections(prefix="component")
    with get_runner(component_defaults=defaults) as runner:
        cfg = scheduler_options(runner, options)
        _, trainers = parse_nodes(options.nnodes or defaults.get(f"{FILE}:arcface_dist", {}).get("nnodes", "1"))
        arguments = train_arguments(options)
        verify = verify_arguments(options, defaults)
        look_at_verification(runner, verify, options, cfg)
        trained = run_job(runner, "arcface_dist", arguments, options, cfg, role="trainer", replicas=trainers)
        if trained.state != AppState.SUCCEEDED:
            print(f"error: training ended {trained.state.name}: {trained.msg or 'see its log'}", file=sys.stderr)
            return EXIT_TRAINING_FAILED
        verified = run_job(runner, "arcface_verify", verify, options, cfg, role="verify")
    if verified.state != AppState.SUCCEEDED:
        print(f"error: verification ended {verified.state.name}: below the floor, or see its log", file=sys.stderr)
        return EXIT_VERIFICATION_FAILED
    return 0


def look_at_verification(runner: Runner, arguments: list[str], options: argparse.Namespace, cfg: Cfg) -> None:
    """Refuse before days of training what the second job would be refused for."""
    app = build(arguments, "arcface_verify")
    if hasattr(runner._scheduler(options.scheduler), "validate"):  # others would make folders in a dry run
        runner.dryrun(app, options.scheduler, cfg=cfg)


def run_job(
    runner: Runner,
    component: str,
    arguments: list[str],
    options: argparse.Namespace,
    cfg: Cfg,
    *,
    role: str,
    replicas: int = 1,
) -> AppStatus:
    """Submit a component, show its replicas' logs, wait for its end; who is interrupted cancels it."""
    handle = runner.run_component(f"{FILE}:{component}", arguments, options.scheduler, cfg=cfg)
    try:
        print(f"{component}: {handle}", flush=True)
        with _showing_logs(runner, handle, role, replicas):
            status = runner.wait(handle, wait_interval=options.poll_seconds)
    except KeyboardInterrupt:
        cancel(runner, handle)
        raise
    if status is None:
        raise ValueError(f"{handle} is gone: somebody deleted it")
    return status


def cancel(runner: Runner, handle: str) -> None:
    """Cancel a job, and say whether that has worked."""
    try:
        runner.cancel(handle)
        print(f"stopped: {handle} is cancelled", file=sys.stderr)
    except REFUSALS as error:
        print(f"error: {handle} still runs: {' '.join(str(error).split())}: torchx cancel {handle}", file=sys.stderr)


@contextmanager
def _showing_logs(runner: Runner, handle: str, role: str, replicas: int) -> Iterator[None]:
    """Print the logs of a role's replicas as they come: any may be the node of rank 0, which tells of progress."""

    def show(replica: int) -> None:
        while not done.is_set():
            try:
                for line in runner.log_lines(handle, role, replica, should_tail=True):
                    print(line.rstrip("\n"), flush=True)
                return
            except Exception:
                # The pod is not there yet; the job's state tells when it never will be.
                done.wait(2)

    done = threading.Event()
    threads = [threading.Thread(target=show, args=(replica,), daemon=True) for replica in range(replicas)]
    for thread in threads:
        thread.start()
    try:
        yield
    except BaseException:  # who is interrupted has no time for the rest
        done.set()
        raise
    done.set()
    deadline = time.monotonic() + 10
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))


def train_arguments(options: argparse.Namespace) -> list[str]:
    """Command line of ``arcface_dist``; what is not given is left to its defaults and ``.torchxconfig``."""
    given = [(name, getattr(options, name)) for name in PASSED_ON if getattr(options, name)]
    app = ["--", *options.app_args] if options.app_args else []
    return [word for name, value in given for word in (f"--{name}", str(value))] + app


def verify_arguments(options: argparse.Namespace, defaults: dict[str, dict[str, str]]) -> list[str]:
    """Command line of ``arcface_verify`` on the run that was just trained."""
    dist = defaults.get(f"{FILE}:arcface_dist", {})
    output, sets = options.output or dist.get("output", "runs"), options.data or dist.get("data", "")
    recipe = options.recipe or dist.get("recipe", "glint360k_r100")
    name = options.name or dist.get("name") or default_run_name(recipe)
    app = build(train_arguments(options))
    with contextlib.suppress(Skipped, ComponentError):  # a recipe may lie where only the pods can read it
        resolved = resolve(app)
        output, sets = resolved["output"]["url"], resolved["verify"]["url"] or resolved["data"]["url"]
    given = {
        "model": f"{output.rstrip('/')}/{name}",
        "sets": options.sets or sets.split(",")[0].strip(),
        "floor": str(options.floor),
        "hardware": options.hardware,
        "image": options.verify_image or options.image or image_of_both(),
    }
    return [word for key, value in given.items() if value for word in (f"--{key}", value)]


def image_of_both() -> str:
    """The image that verifies unless ``--verify_image`` says otherwise: the one that trained.

    It is looked for in the file that sets the trainers'; there alone another one for verification is meant. A file
    further away, such as the repository's own, would verify a team's weights with somebody else's code.
    """
    for path in config.find_configs():
        sections = configparser.RawConfigParser()
        sections.read(path)
        images = [
            sections.get(f"component:{FILE}:{name}", "image", fallback="")
            for name in ("arcface_verify", "arcface_dist")
        ]
        if images[1]:
            return images[0] or images[1]
    return ""


def scheduler_options(runner: Runner, options: argparse.Namespace) -> Cfg:
    """``-cfg`` over what ``.torchxconfig`` says, as ``torchx run`` does it."""
    cfg: Cfg = dict(runner.scheduler_run_opts(options.scheduler).cfg_from_str(options.cfg))
    config.apply(options.scheduler, cfg)
    return cfg


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = CommandLine("python -m components.pipeline", description=__doc__)
    parser.add_argument("-s", "--scheduler", default="kubernetes")
    parser.add_argument("-cfg", "--cfg", default="", help="scheduler options, KEY=VALUE,...")
    parser.add_argument("--floor", type=float, default=0.0, help="lowest accuracy that is a success")
    parser.add_argument(
        "--sets",
        default="",
        help="URL of the verification sets; default: the recipe's verify.url, or the dataset's folder",
    )
    for name in PASSED_ON:
        parser.add_argument(f"--{name}", default="", help="as of arcface_dist")
    parser.add_argument("--verify_image", default="", help="of the verification; default: the image that trained")
    parser.add_argument("--poll-seconds", type=float, default=5.0, help="between looks at the jobs' state")
    own, app_args = arguments, []
    if "--" in arguments:
        cut = arguments.index("--")
        own, app_args = arguments[:cut], arguments[cut + 1 :]
    options = parser.parse_args(own)
    options.app_args = app_args
    return options


if __name__ == "__main__":
    leave_usage_out()
    # TorchX finds components.py and .torchxconfig in the working directory.
    asked = {"-h", "--help", "--version"} & set(sys.argv[1:])
    if not asked and not Path(FILE).exists():
        sys.exit(f"error: {FILE} is not in {Path.cwd()}: run this from the repository's root")
    sys.exit(main(sys.argv[1:]))
