#!/usr/bin/env bash
# Builds the cpu image where no registry can be reached: the base comes from debootstrap, the tools are Debian's
# podman and buildah. Then runs it as uid 1000 with a read-only root. Needs root.
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

locked_down=(--cgroups=disabled --network host --read-only --tmpfs /tmp:rw,size=2g,mode=1777 --shm-size 128m
  --cap-drop ALL --security-opt no-new-privileges --user 1000:1000
  --ulimit "nofile=$(ulimit -n):$(ulimit -Hn)" --ulimit "nproc=$(ulimit -u):$(ulimit -Hu)")
run() { podman "${store[@]}" run --rm "${locked_down[@]}" "$@"; }

echo "self-check in the container:"
run --env ARCFACE_DEVICE=cpu "$image"
if run "$image" python -c 'open("/opt/venv/x", "w")' 2>/dev/null; then
  echo "error: the root file system is writable" >&2
  exit 1
fi
if [ "${1:-}" = train ]; then
  make --silent install
  .venv/bin/python docker/train_in_container.py "$image" -- podman "${store[@]}" run --rm "${locked_down[@]}"
fi
podman "${store[@]}" image list --format '{{.Repository}}:{{.Tag}} {{.Size}}' | grep arcface
