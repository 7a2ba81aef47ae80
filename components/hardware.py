"""Hardware profiles: what a node offers and what its pods need, as data in ``hardware_profiles/*.toml``.

``<profile>-host`` is an Ascend profile for nodes without Ascend Docker Runtime: it mounts the driver from the host,
which the Pod Security level "restricted" forbids; choose it knowingly.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "hardware_profiles"
_HOST = "-host"
# What the driver's installer puts on a node, and the vendor's containers mount where no runtime does it for them.
_ASCEND_HOST_PATHS = (
    "/usr/local/Ascend/driver/lib64",
    "/usr/local/Ascend/driver/version.info",
    "/usr/local/dcmi",
    "/usr/local/bin/npu-smi",
    "/etc/ascend_install.info",
)


class HardwareError(ValueError):
    """No profile of that name."""


@dataclass(frozen=True)
class HardwareProfile:
    """One kind of node.

    ``resource``: name of the device plugin's extended resource, empty for none. ``devices``: of it, a node, and so the
    processes a node. ``cpu`` in cores, ``memory_mb``, ``device_memory_mb`` (0: the host's)
    and ``shm_mb`` in MiB, ``grace_seconds`` from SIGTERM to SIGKILL.
    """

    name: str
    resource: str
    devices: int
    cpu: int
    memory_mb: int
    shm_mb: int
    grace_seconds: int
    labels: dict[str, str]
    annotations: dict[str, str]
    node_selector: dict[str, str]
    tolerations: tuple[dict[str, str], ...]
    env: dict[str, str]
    host_paths: tuple[str, ...] = ()
    device_memory_mb: int = 0

    def with_devices(self, devices: int) -> HardwareProfile:
        """The share of a node that goes with fewer devices: cores and memory in proportion."""
        if not self.resource or devices >= self.devices:
            return replace(self, devices=devices)
        share = devices / self.devices
        # Whole-node scheduling policies do not fit a part of a node.
        annotations = {key: value for key, value in self.annotations.items() if "schedule_policy" not in key}
        return replace(
            self,
            devices=devices,
            cpu=max(1, int(self.cpu * share)),
            memory_mb=int(self.memory_mb * share),
            annotations=annotations,
        )


def profile_names() -> list[str]:
    """All profiles, sorted."""
    names = [path.stem for path in _FOLDER.glob("*.toml")]
    return sorted(names + [name + _HOST for name in names if name.startswith("ascend")])


def load_profile(name: str) -> HardwareProfile:
    """A profile by name.

    Raises:
        HardwareError: there is none; suggests the nearest.
    """
    if name not in profile_names():
        near = difflib.get_close_matches(name, profile_names(), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise HardwareError(f"unknown hardware {name!r}: {hint}one of {', '.join(profile_names())}")
    fields: dict[str, Any] = tomllib.loads((_FOLDER / f"{name.removesuffix(_HOST)}.toml").read_text())
    fields["tolerations"] = tuple(fields.pop("tolerations", ()))
    profile = HardwareProfile(name=name, **fields)
    return replace(profile, host_paths=_ASCEND_HOST_PATHS) if name.endswith(_HOST) else profile
