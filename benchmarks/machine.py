"""What machine a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def describe() -> str:
    """Processor, cores and versions, in a line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    capability = torch.backends.cpu.get_cpu_capability()
    bf16 = "with" if torch.cpu.get_capabilities().get("avx512_bf16") else "without"
    name = f"{name} ({capability}, {bf16} bf16 instructions)"
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
