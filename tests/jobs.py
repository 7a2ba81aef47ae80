"""Helpers for tests that run whole training jobs as real processes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from app import storage
from app.data.decode import encode_jpeg
from app.data.record_writer import RecordWriter, write_identity_layout
from app.observe.events import read_events
from tests.forked import run_forked

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    *("--recipe", "orl", "--data.image-size", "32", "--model.embedding-size", "32", "--train.batch-size", "6"),
    *("--train.log-every", "1", "--checkpoint.every-steps", "3", "--verify.sets", ","),
    *("--output.tensorboard", "false"),
]


def write_faces(folder: str, *, classes: int = 10, per_class: int = 12, size: int = 32) -> None:
    """A learnable dataset of coloured noise patterns, one a class."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 200, (classes, 8, 8, 3))
    images = []
    for label in range(classes):
        for _ in range(per_class):
            image = patterns[label].repeat(size // 8, 0).repeat(size // 8, 1) + generator.integers(
                0, 55, (size, size, 3)
            )
            images.append((label, encode_jpeg(image.astype(np.uint8))))
    with RecordWriter(storage.join(folder, "train.rec")) as writer:
        write_identity_layout(writer, [label for label, _ in images], [image for _, image in images])


def environment(*, keep_freed: bool = True) -> dict[str, str]:
    """For a child: this project importable, one thread, loopback only.

    Args:
        keep_freed: the child does not give freed memory back to the system, which takes a quarter of a training's time.
    """
    allocator = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)} if keep_freed else {}
    return {**os.environ, **allocator, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def with_scripts(variables: dict[str, str]) -> dict[str, str]:
    """The variables, with this Python's programs first in the PATH: TorchX starts ``python`` from there."""
    return {**variables, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def torchx(
    *arguments: str, variables: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """The TorchX command line in the repository's root, with these variables added to the environment."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("torchx")), *arguments],
        env=with_scripts({**environment(), **(variables or {})}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def train(
    processes: int, data: str, output: str, *options: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run training to its end on one node; several processes find in the environment what torchrun would tell them."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    group = {
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"},
        **{"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_RESTART_COUNT": "0"},
    }
    ranks = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    environments = [{**environment(), **(rank if processes > 1 else {})} for rank in ranks]
    arguments = [*SMALL, "--data.url", data, "--output.url", output, *options]
    done = run_forked("app.train", arguments, environments, ROOT, 500)
    if check and done.returncode:
        raise AssertionError(f"training ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done


def losses(output: str, name: str = "orl") -> dict[int, float]:
    """The loss of every step, the last time it was trained."""
    return {e["step"]: e["loss"] for e in read_events(storage.join(output, name)) if e["kind"] == "train"}


def weights(output: str, name: str = "orl") -> dict[str, Tensor]:
    """The final backbone."""
    data = storage.read_bytes(storage.join(output, name, "model.pt"))
    loaded: dict[str, Tensor] = torch.load(io.BytesIO(data), weights_only=True)
    return loaded
