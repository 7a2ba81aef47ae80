"""``make demo``: what production does, smaller. A bucket, real faces, two elastic nodes, a checkpoint, a verification.

An object store starts on loopback; the AT&T/ORL faces go into it; TorchX runs the very component that Kubernetes gets,
on its local scheduler; a second job verifies the weights from the bucket. Everything is under ``.demo/``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from app.command_line import CommandLine
from demo.object_store import ObjectStore, free_port
from demo.stages import StageError, break_lines, run_stage

ROOT = Path(__file__).resolve().parent.parent
# Another folder lets a second demo run beside the first.
FOLDER = Path(os.environ.get("ARCFACE_DEMO", ROOT / ".demo"))
BUCKET, DATA, RUNS = "demo", "s3://demo/orl", "s3://demo/runs"
FLOOR = 0.88  # accuracy on people never trained on, below which the demo has failed

# "[WI]1125 09:" is how torch begins a line of its log: level, month, day, hour.
_NOISE = (
    "torchx 20",
    "INFO",
    r"\b[WI]\d{4} \d\d:",
    "local_cwd://",
    "Ctrl-C",
    "UserWarning",
    r"warnings\.warn",
    "log dir",
)


def main(arguments: Sequence[str] = ()) -> int:
    """Run all stages; 0 when all succeeded. Only ``--help`` is an option; ``ARCFACE_DEMO`` names another folder."""
    parser = CommandLine("python -m demo", description=__doc__)
    parser.parse_args(arguments)
    started = time.monotonic()
    # A parent that started us in the background may have had SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    environment = {
        **os.environ,
        # TorchX starts "python" from the PATH.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "ARCFACE_RDZV_TOKEN": secrets.token_hex(16),
        "ARCFACE_DEMO": str(FOLDER),
    }
    store = ObjectStore(FOLDER / "store", BUCKET)
    try:
        with store:
            environment |= store.environment
            title(1, "object store", f"SeaweedFS with an S3 gateway on {store.endpoint}, bucket {BUCKET}")
            title(2, "dataset", "AT&T/ORL faces: 30 people to train on, 10 others to verify on")
            run_stage([sys.executable, "-m", "app.prepare", "orl", "--output", DATA], environment)
            title(3, "training", "components.py:arcface_dist on 2 nodes, streaming RecordIO from the bucket")
            run_stage(torchx("arcface_dist", *train_options()), environment, hide=_NOISE)
            title(4, "verification", "components.py:arcface_verify on the weights in the bucket")
            run_stage(torchx("arcface_verify", *verify_options()), environment, hide=_NOISE)
            fetch_results(environment)
    except (StageError, RuntimeError) as error:
        print(f"\ndemo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo stopped; the object store is down, nothing is left running", file=sys.stderr)
        return 130
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    print(f"\nDone in {minutes} min {seconds} s. The picture: {os.path.relpath(FOLDER)}/report.png", flush=True)
    return 0


def torchx(component: str, *options: str) -> list[str]:
    """A TorchX command on the local scheduler."""
    program = str(Path(sys.executable).with_name("torchx"))
    log_dir = f"log_dir={FOLDER / 'logs'},prepend_cwd=False"
    return [
        program,
        "run",
        "-s",
        "local_cwd",
        "-cfg",
        log_dir,
        "--wait",
        "--log",
        f"components.py:{component}",
        *options,
    ]


def train_options() -> list[str]:
    """Two nodes of one process each, on the cpu profile."""
    where = ["--data", DATA, "--output", RUNS, "--recipe", "orl"]
    return ["--nnodes", "2", "--hardware", "cpu", *where, "--rdzv_port", str(free_port())]


def verify_options() -> list[str]:
    """The weights of that run, on the people it never saw."""
    return ["--model", f"{RUNS}/orl", "--sets", DATA, "--hardware", "cpu", "--floor", str(FLOOR)]


def fetch_results(environment: dict[str, str]) -> None:
    """Copy the report out of the bucket, which goes down with the demo."""
    os.environ.update({key: value for key, value in environment.items() if key.startswith("AWS_")})
    from app import storage

    for name in ("report.png", "report.json"):
        (FOLDER / name).write_bytes(storage.read_bytes(f"{RUNS}/orl/verification/{name}"))


def title(number: int, name: str, text: str) -> None:
    """Announce a stage."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    print("\n" + break_lines(f"[{number}/4] {name}: {text}", columns), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
