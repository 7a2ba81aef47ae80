"""Trains a few steps inside the image, from an object store outside it: the smallest real run of a built image."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import storage
from app.data.prepare.orl import prepare_orl
from demo.object_store import ObjectStore


def main(arguments: list[str]) -> int:
    """``IMAGE -- RUN COMMAND``: train, then look whether weights and a checkpoint are in the bucket."""
    image, run = arguments[0], arguments[2:]
    with tempfile.TemporaryDirectory() as folder, ObjectStore(Path(folder) / "store", "faces") as store:
        os.environ.update(store.environment)
        print(prepare_orl("s3://faces/orl"))
        # Names only: podman takes the values from this environment, so no key stands in an argument.
        names = [word for name in store.environment for word in ("--env", name)]
        train = ["--recipe", "orl", "--data.url", "s3://faces/orl", "--output.url", "s3://faces/runs"]
        command = [*run, *names, "--env", "ARCFACE_DEVICE=cpu", image, "python", "-m", "app.train", *train]
        done = subprocess.run([*command, "--train.epochs", "1", "--train.log-every", "1"], check=False)
        if done.returncode == 0:
            size = storage.info("s3://faces/runs/orl/model.pt").size
            checkpoints = storage.list_names("s3://faces/runs/orl/checkpoints")
            print(f"model.pt: {size} bytes, checkpoints: {len(checkpoints)}")
        return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
