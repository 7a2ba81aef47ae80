"""Forward and backward of backbones on the CPU: the plain form (fp32, contiguous) against the faster honest ones.

The plain form is how insightface's arcface_torch would run the same network on a CPU. All forms compute the same loss
on the same images with the same weights; bf16 through autocast, parameters and loss in fp32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from app.backbones.registry import build_backbone
from benchmarks.machine import describe

BARS = {"r50": 2.0, "mbf": 2.5}
FORMS: dict[str, tuple[torch.dtype | None, bool, bool]] = {
    "fp32 contiguous (plain)": (None, False, False),
    "fp32 channels_last": (None, True, False),
    "bf16 channels_last": (torch.bfloat16, True, False),
    "bf16 channels_last compile": (torch.bfloat16, True, True),
}


def make_step(
    name: str, batch: int, dtype: torch.dtype | None, channels_last: bool, compile_it: bool
) -> Callable[[], None]:
    """One forward and backward pass."""
    torch.manual_seed(0)
    model = build_backbone(name, embedding_size=512)
    images = torch.randn(batch, 3, 112, 112)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(memory_format=torch.channels_last)
    if compile_it:
        model.compile()

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = model(images).square().mean()
        loss.backward()

    return step


def measure(name: str, batch: int, rounds: int, forms: list[str]) -> dict[str, float]:
    """Median images a second of each form, over rounds that alternate between them."""
    steps = {form: make_step(name, batch, *FORMS[form]) for form in forms}
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(rounds):
        for form, step in steps.items():
            started = time.perf_counter()
            step()
            times[form].append(time.perf_counter() - started)
    return {form: batch / statistics.median(values) for form, values in times.items()}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="r50,mbf,r10_small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    forms = [form for form, (_, _, compiled) in FORMS.items() if not (compiled and options.no_compile)]
    print(f"Machine: {describe()}. Batch {options.batch}, median of {options.rounds} alternating rounds.\n")
    print(f"| backbone | {' | '.join(f'{form}, img/s' for form in forms)} | best / plain | bar |")
    print("|" + " --- |" * (len(forms) + 3))
    for name in options.backbones.split(","):
        speeds = measure(name, options.batch, options.rounds, forms)
        gain = max(speeds.values()) / speeds[forms[0]]
        bar = BARS.get(name)
        verdict = "-" if bar is None else f"{bar}x: {'reached' if gain >= bar else 'MISSED'}"
        print(
            f"| {name} | {' | '.join(f'{speeds[form]:.1f}' for form in forms)} | {gain:.2f}x | {verdict} |", flush=True
        )


if __name__ == "__main__":
    main()
