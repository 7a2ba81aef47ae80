#!/usr/bin/env bash
# Runs a command inside an unpacked image as a pod of the level "restricted" would: uid 1000, no capabilities, no new
# privileges, a read-only root with /tmp and /dev/shm as tmpfs. Plain namespaces, for machines where no container
# runtime may set its limits. Needs root.
#
#   docker/locked_down.sh ROOTFS COMMAND...       AWS_* and ARCFACE_* of this environment are handed on
set -euo pipefail
rootfs=$1
shift
exec unshare --mount --pid --ipc --uts --fork bash -euo pipefail -c '
  rootfs=$1; shift
  mount --make-rprivate /
  mount --bind "$rootfs" "$rootfs"
  mount --rbind /dev "$rootfs/dev"
  mount -t proc proc "$rootfs/proc"
  mount -o remount,bind,ro "$rootfs"
  mount -t tmpfs -o nosuid,nodev,mode=1777,size=2g tmpfs "$rootfs/tmp"
  mount -t tmpfs -o nosuid,nodev,mode=1777,size=128m tmpfs "$rootfs/dev/shm"
  environment=(PATH=/opt/arcface/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1)
  while IFS= read -r name; do environment+=("$name=${!name}"); done < <(compgen -e | grep -E "^(AWS|ARCFACE)_" || true)
  exec env -i "${environment[@]}" setpriv --no-new-privs \
    /usr/sbin/chroot --userspec=1000:1000 "$rootfs" /bin/sh -c "cd /tmp && exec \"\$@\"" sh "$@"
' bash "$rootfs" "$@"
