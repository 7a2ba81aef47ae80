"""The hardware profiles as TorchX named resources: ``-h arcface_ascend_910b`` in any component."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torchx.plugins import register
from torchx.specs import Resource


def _load_hardware() -> ModuleType | None:
    """``components/hardware.py`` of this checkout; components are not part of the installed package."""
    path = Path(__file__).resolve().parents[2] / "components" / "hardware.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("arcface_hardware", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["arcface_hardware"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _register(hardware: Any, name: str) -> None:
    def resource() -> Resource:
        profile = hardware.load_profile(name)
        gpus, devices = profile.as_torchx()
        return Resource(cpu=profile.cpu, gpu=gpus, memMB=profile.memory_mb, devices=devices)

    resource.__name__ = "arcface_" + name.replace("-", "_")
    resource.__doc__ = f"One whole node of the hardware profile {name}."
    globals()[resource.__name__] = register.named_resource()(resource)


if (_hardware := _load_hardware()) is not None:
    for _name in _hardware.profile_names():
        if not _name.endswith("-host"):
            _register(_hardware, _name)
