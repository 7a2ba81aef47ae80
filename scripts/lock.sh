#!/usr/bin/env bash
# Resolves all dependencies for Python 3.11 to 3.13 into requirements.lock, with hashes.
# torch and what it brings for accelerators stay out: which build of torch it is depends on the device (see docker/).
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  uv pip compile pyproject.toml "$@" --universal --python-version 3.11 --generate-hashes --no-header --quiet \
    --no-emit-package torch --no-emit-package setuptools --constraint scripts/constraints.txt |
    python3 scripts/drop_accelerator_packages.py
}
compile --extra launch --extra demo --extra export --extra heif --extra detect --extra dev >requirements.lock
# The image: only what the app needs, at the versions of the first.
compile --extra export --constraint requirements.lock >docker/requirements.lock
grep -c '==' requirements.lock docker/requirements.lock
