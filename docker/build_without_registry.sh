#!/usr/bin/env bash
# Builds the cpu image where no registry can be reached: the base comes from debootstrap, the tools are Debian's
# podman and buildah. Then runs it as uid 1000 with a read-only root (docker/locked_down.sh). Needs root.
#
#   docker/build_without_registry.sh            build and self-check
#   docker/build_without_registry.sh train      and train a few steps from an object store
#
# The machine's pip settings are handed to the build as a secret and as mounts; nothing of them stays in the image.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-/tmp/arcface-image}
image=localhost/arcface:0.1.0-cpu
# vfs copies whole layers, so the build makes as few as it can.
store=(--storage-driver vfs --root "$work/storage" --runroot "$work/run")
mkdir -p "$work"

if [ ! -x "$(command -v buildah)" ] || [ ! -x "$(command -v podman)" ] || [ ! -x "$(command -v debootstrap)" ]; then
  apt-get update -qq && apt-get install -qq -y --no-install-recommends podman buildah debootstrap crun >/dev/null
fi
if ! podman "${store[@]}" image exists localhost/base:bookworm; then
  rm -rf "$work/rootfs"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/rootfs" >"$work/base.log"
  tar -C "$work/rootfs" -c . | podman "${store[@]}" import - localhost/base:bookworm >/dev/null
  rm -rf "$work/rootfs"
fi

# pip's settings as one file, and a read-only mount for every local folder or file that they name.
python3 docker/pip_settings.py "$work/pip.conf" >"$work/mounts"
mapfile -t mounts <"$work/mounts"
buildah "${store[@]}" bud --isolation chroot --network host --layers=false --quiet \
  --secret "id=pip,src=$work/pip.conf" "${mounts[@]}" \
  --build-arg BASE=localhost/base:bookworm --build-arg "REVISION=$(git rev-parse --short HEAD)" \
  --pull=never --tag "$image" --file docker/Dockerfile --ignorefile .dockerignore .

buildah "${store[@]}" rm --all >/dev/null
container=$(buildah "${store[@]}" from --pull=never "$image")
rootfs=$(buildah "${store[@]}" mount "$container")
run() { ARCFACE_DEVICE=cpu docker/locked_down.sh "$rootfs" "$@"; }

echo "self-check in the image, as uid 1000 with a read-only root:"
run python -m app.selfcheck
if run python -c 'open("/opt/venv/x", "w")' 2>/dev/null; then
  echo "error: the root file system is writable" >&2
  exit 1
fi
if [ "${1:-}" = train ]; then
  make --silent install
  ARCFACE_DEVICE=cpu .venv/bin/python docker/train_in_image.py docker/locked_down.sh "$rootfs"
fi
podman "${store[@]}" image list --format '{{.Repository}}:{{.Tag}} {{.Size}}' | grep arcface
