"""Hardware profiles: what a node offers and what its pods need, as data in ``hardware_profiles/*.toml``.

A file of one's own says what differs from a published profile, its ``base``: labels of a node pool, tolerations of its
taints, another resource's name, less memory. Tables are merged, tolerations added, values replaced.

``<profile>-host`` is an Ascend profile for nodes without Ascend Docker Runtime: it mounts the driver from the host,
which the Pod Security level "restricted" forbids; choose it knowingly.
"""

from __future__ import annotations

import dataclasses
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


_LEAST_GRACE = 30  # seconds: what an agent needs to leave, and something for a step
_NUMBERS = ("devices", "cpu", "memory_mb", "shm_mb", "grace_seconds", "device_memory_mb")
_KINDS = {dict: "tables", str: "texts", int: "whole numbers"}
_TABLES = ("labels", "annotations", "node_selector", "env")


class HardwareError(ValueError):
    """No profile of that name, a file that is none, or a number of devices that its nodes do not give."""


@dataclass(frozen=True)
class HardwareProfile:
    """One kind of node.

    ``resource``: name of the device plugin's extended resource, empty for none. ``devices``: of it, a node, and so the
    processes a node; ``device_counts``: how many a pod may ask for, empty for any number. ``cpu`` in cores,
    ``memory_mb`` in units of 10^6 bytes, as TorchX writes it, ``device_memory_mb`` (0: the host's) and ``shm_mb`` in
    MiB, ``grace_seconds`` from SIGTERM to SIGKILL.
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
    tolerations: tuple[dict[str, Any], ...]
    env: dict[str, str]
    host_paths: tuple[str, ...] = ()
    device_memory_mb: int = 0
    device_counts: tuple[int, ...] = ()

    def as_torchx(self) -> tuple[int, dict[str, int]]:
        """``gpu`` and ``devices`` of TorchX's ``Resource``; its Docker scheduler knows the first only."""
        if self.resource == "nvidia.com/gpu":
            return self.devices, {}
        return 0, {self.resource: self.devices} if self.resource else {}

    def check_devices(self, count: int) -> None:
        """Refuse a number of devices that a pod would wait for in vain.

        Raises:
            HardwareError: names the numbers there are.
        """
        if self.device_counts and count not in self.device_counts:
            counts = ", ".join(map(str, self.device_counts))
            raise HardwareError(f"--nproc_per_node {count}: a pod can have {counts} of a node of {self.name}")

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
    """A profile by name, or of a TOML file of one's own.

    Raises:
        HardwareError: there is none, which suggests the nearest; or the file is not a profile.
    """
    if name.endswith(".toml"):
        return _profile(name, read_fields(Path(name).expanduser()))
    if name not in profile_names():
        near = difflib.get_close_matches(name.lower(), profile_names(), 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise HardwareError(f"unknown hardware {name!r}: {hint}one of {', '.join(profile_names())}, or a .toml file")
    fields = _published(name)
    return _profile(name, fields | {"host_paths": _ASCEND_HOST_PATHS} if name.endswith(_HOST) else fields)


def read_fields(path: Path) -> dict[str, Any]:
    """A file of one's own, with what its ``base`` says.

    Raises:
        HardwareError: it cannot be read, or names no published profile.
    """
    try:
        own = tomllib.loads(path.read_bytes().decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise HardwareError(f"--hardware {path}: not a profile that can be read: {why}") from error
    base = own.pop("base", "")
    if not isinstance(base, str) or base not in profile_names():
        raise HardwareError(f"--hardware {path}: base = {base!r} must be one of {', '.join(profile_names())}")
    fields: dict[str, Any] = vars(load_profile(base)).copy()
    del fields["name"]
    for key, value in own.items():
        if isinstance(fields.get(key), dict) and isinstance(value, dict):
            fields[key] = fields[key] | value
        elif key == "tolerations" and isinstance(value, list):
            fields[key] = [*fields[key], *value]
        else:
            fields[key] = value
    if "devices" in own and "device_counts" not in own:
        fields["device_counts"] = ()  # those of the base are of another node
    return fields


def _published(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name.removesuffix(_HOST)}.toml").read_text())


def _profile(name: str, given: dict[str, Any]) -> HardwareProfile:
    """The profile, after a look at every field: a wrong one would show in the cluster, or not at all."""
    known = {field.name for field in dataclasses.fields(HardwareProfile)} - {"name"}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise HardwareError(
                f"--hardware {name}: unknown field {key!r}" + (f": did you mean {near[0]!r}?" if near else "")
            )
    fields = {"device_memory_mb": 0, **given}
    for key in _NUMBERS:
        least = {"device_memory_mb": 0, "grace_seconds": _LEAST_GRACE}.get(key, 1)
        if type(fields[key]) is not int or fields[key] < least:
            raise HardwareError(
                f"--hardware {name}: {key} must be a whole number of at least {least}; got {fields[key]!r}"
            )
    for key in _TABLES:
        values = fields[key].values() if isinstance(fields[key], dict) else (None,)
        if not all(isinstance(value, str) for value in values):
            raise HardwareError(f"--hardware {name}: [{key}] must be a table of texts; got {fields[key]!r}")
    for key, kind in (("tolerations", dict), ("host_paths", str), ("device_counts", int)):
        values = fields.get(key, ())
        if not isinstance(values, list | tuple) or not all(isinstance(value, kind) for value in values):
            raise HardwareError(f"--hardware {name}: {key} must be a list of {_KINDS[kind]}; got {values!r}")
        fields[key] = tuple(values)
    if not isinstance(fields["resource"], str):
        raise HardwareError(f"--hardware {name}: resource must be a text; got {fields['resource']!r}")
    return HardwareProfile(name=name, **fields)
