"""What a run came from: the code, the versions and the machine, so that its figures can be read years later."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from app import __version__
from app.world import World


def describe_origin(world: World) -> dict[str, Any]:
    """Version and commit of this project, versions of what it runs on, and the hardware, as plain JSON."""
    return {
        "app_version": __version__,
        "commit": running_commit(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "device": world.device.kind,
        "processes": world.size,
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count() or 0,
        "system": platform.platform(),
    }


@functools.cache
def running_commit() -> str:
    """Commit of the checkout that runs, with ``+`` where it was changed, or of the image; empty where nobody knows.

    It is what it was when first asked for, at the start of a run: a checkout may move on while it trains.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        built_from = os.environ.get("ARCFACE_COMMIT", "")
        return "" if built_from == "unknown" else built_from
    try:
        # Another git folder in the environment would answer for itself.
        variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
