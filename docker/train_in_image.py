"""Trains a few steps inside an image, from an object store outside it: the smallest real run of a built image."""

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


def main(run: list[str]) -> int:
    """``run`` is the command that runs another in the image. Train, then look whether the results are in the bucket."""
    with tempfile.TemporaryDirectory() as folder, ObjectStore(Path(folder) / "store", "faces") as store:
        os.environ.update(store.environment)  # and so to the image: no key stands in an argument
        print(prepare_orl("s3://faces/orl"))
        where = ["--recipe", "orl", "--data.url", "s3://faces/orl", "--output.url", "s3://faces/runs"]
        train = [*run, "python", "-m", "app.train", *where, "--train.epochs", "1", "--train.log-every", "1"]
        code = subprocess.run(train, check=False).returncode
        if code == 0:
            size = storage.info("s3://faces/runs/orl/model.pt").size
            checkpoints = storage.list_names("s3://faces/runs/orl/checkpoints")
            print(f"in the bucket: model.pt of {size} bytes, {len(checkpoints)} checkpoint")
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
