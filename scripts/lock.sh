#!/usr/bin/env bash
# Resolves all dependencies for Python 3.11 to 3.13 into requirements.lock, with hashes.
# torch and what it brings for accelerators stay out: which build of torch it is depends on the device (see docker/).
set -euo pipefail
cd "$(dirname "$0")/.."
uv pip compile pyproject.toml --extra launch --extra demo --extra export --extra dev \
  --universal --python-version 3.11 --generate-hashes --no-header --quiet --no-emit-package torch \
  --no-emit-package setuptools --constraint scripts/constraints.txt |
  python3 scripts/drop_accelerator_packages.py >requirements.lock
grep -c '==' requirements.lock
