"""Looks whether this machine or pod can do the work: ``python -m app.selfcheck [--output URL] [--processes N]``.

The launcher asks the quick questions before every start; the image's health check asks all of them.
"""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Callable

from app import storage
from app.checkpoint.conditional import require_conditional_writes
from app.command_line import CommandLine
from app.device import DEVICE_FILES, detect_device
from app.errors import AppError, run_main

_LEAST_SHM_MB = 64


class SelfCheckError(AppError):
    """Something is missing here; says what to do."""


def check_devices(processes: int) -> str:
    """Enough device nodes for the processes, unless ``ARCFACE_DEVICE`` is cpu.

    Raises:
        SelfCheckError: there are some, but fewer than processes.
    """
    if os.environ.get("ARCFACE_DEVICE") == "cpu":
        return "cpu, as asked"
    for kind, pattern in DEVICE_FILES.items():
        if found := glob.glob(pattern):
            if len(found) < processes:
                raise SelfCheckError(
                    f"{processes} processes, but only {len(found)} {kind} devices are visible here ({pattern}): ask "
                    "for more in the pod's resource limits, or lower --nproc_per_node"
                )
            return f"{len(found)} x {kind}"
    return "no accelerator: the CPU"


def check_shared_memory() -> str:
    """Room in /dev/shm, which collectives between processes of one node use.

    Raises:
        SelfCheckError: it is smaller than they need.
    """
    if not os.path.isdir("/dev/shm"):
        return "no /dev/shm on this system"
    size = shutil.disk_usage("/dev/shm").total >> 20
    if size < _LEAST_SHM_MB:
        raise SelfCheckError(f"/dev/shm has {size} MiB, at least {_LEAST_SHM_MB} are needed: mount a larger one")
    return f"{size} MiB"


def check_temporary() -> str:
    """A writable temporary folder, also under a read-only root.

    Raises:
        SelfCheckError: there is none.
    """
    try:
        with tempfile.NamedTemporaryFile() as file:
            return os.path.dirname(file.name)
    except OSError as error:
        raise SelfCheckError(f"no writable temporary folder ({error}): mount an emptyDir at /tmp") from error


def check_output(url: str, commit: str = "conditional") -> str:
    """The output can be written and deleted, and checkpoints can be committed; leaves nothing behind.

    Args:
        url: folder of the runs.
        commit: how checkpoints are committed, see ``checkpoint.commit``.

    Raises:
        StorageError: it cannot be written; says why.
        CheckpointError: the store has no conditional writes.
    """
    if commit == "conditional":
        require_conditional_writes(url)
        return f"{storage.redact(url)} is writable, and only once"
    probe = storage.join(url, f".write-check-{os.urandom(6).hex()}")
    storage.write_bytes(probe, b"1")
    storage.delete_tree(probe)
    return f"{storage.redact(url)} is writable"


def check_torch() -> str:
    """torch loads and its device can be used.

    Raises:
        DeviceError: a device that was asked for is not usable.
        SelfCheckError: it computes something wrong.
    """
    import torch

    device = detect_device(local_rank=0)
    product = torch.ones(8, 8, device=device.torch_device) @ torch.ones(8, 8, device=device.torch_device)
    if (total := float(product.sum())) != 512:
        raise SelfCheckError(f"{device.kind} computes wrong: ones times ones sum to {total}, not 512: replace it")
    return f"torch {torch.__version__} on {device.kind}"


def check_decoder() -> str:
    """A JPEG survives encoding and decoding.

    Raises:
        SelfCheckError: it does not.
    """
    import numpy as np

    from app.data.decode import decode_image, encode_jpeg

    grey = np.full((16, 16, 3), 128, dtype=np.uint8)
    if abs((mean := float(decode_image(encode_jpeg(grey)).mean())) - 128) > 1:
        raise SelfCheckError(f"a grey of 128 came back from JPEG as {mean:.1f}: simplejpeg or its libjpeg is broken")
    return "JPEG"


def quick_checks(processes: int, output: str, commit: str = "conditional") -> dict[str, Callable[[], str]]:
    """What the launcher asks before a start: nothing that loads torch."""
    checks: dict[str, Callable[[], str]] = {
        "devices": lambda: check_devices(processes),
        "shared memory": check_shared_memory,
        "temporary folder": check_temporary,
    }
    if output:
        checks["output"] = lambda: check_output(output, commit)
    return checks


def main(arguments: list[str]) -> int:
    """Run all checks, print a line each; 1 when one failed."""
    parser = CommandLine("python -m app.selfcheck", description=__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", default="", help="folder URL that must be writable")
    parser.add_argument("--commit", choices=("conditional", "single-writer"), default="conditional")
    options = parser.parse_args(arguments)
    checks = quick_checks(options.processes, options.output, options.commit) | {
        "torch": check_torch,
        "decoder": check_decoder,
    }
    failed = 0
    print(f"python {sys.version.split()[0]}, uid {os.getuid()}")
    for name, check in checks.items():
        try:
            print(f"ok      {name}: {check()}")
        except AppError as error:
            failed += 1
            print(f"failed  {name}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)
