"""Forward and backward of backbones on the CPU: the plain form (fp32, contiguous) against the faster honest ones.

The plain form is how insightface's arcface_torch would run the same network on a CPU. All forms compute the same loss
on the same images with the same weights; bf16 through autocast, parameters and loss in fp32. A form that needs more
than four times the plain form's time in its second step leaves after it, and that step is its figure (marked ~).

What the processor could do at most is measured too, as one large fp32 matrix product: a training step needs about three
times the multiply-adds of the forward pass, so the plain form's share of that peak bounds what any fp32 form can gain.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from app.backbones.registry import build_backbone
from app.command_line import CommandLine
from app.evaluate.flops import count
from benchmarks.machine import describe

BARS = {"r50": 2.0, "mbf": 2.5}
PLAIN = "fp32 (plain)"
FORMS: dict[str, tuple[torch.dtype | None, bool, bool]] = {
    PLAIN: (None, False, False),
    "fp32 channels_last": (None, True, False),
    "fp32 channels_last compile": (None, True, True),
    "bf16 channels_last": (torch.bfloat16, True, False),
    "bf16 channels_last compile": (torch.bfloat16, True, True),
}
HOPELESS = 4.0


def make_step(
    name: str, batch: int, dtype: torch.dtype | None, channels_last: bool, compile_it: bool
) -> Callable[[], object]:
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


def seconds(step: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def peak() -> float:
    """fp32 multiply-adds a second of the best of ten 2048 x 2048 x 2048 products."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return float(2048**3 / min(seconds(lambda: torch.mm(left, right)) for _ in range(10)))


def measure(name: str, batch: int, rounds: int, forms: list[str]) -> tuple[dict[str, float], set[str]]:
    """Median images a second of each form over rounds that alternate between them, and which left before."""
    steps, speeds = {}, {}
    times: dict[str, list[float]] = {}
    for form in forms:
        step = make_step(name, batch, *FORMS[form])
        step()
        times[form] = [seconds(step)]
        if times[form][0] > HOPELESS * times[PLAIN][0]:
            speeds[form] = batch / times[form][0]
        else:
            steps[form] = step
    left = set(speeds)
    for _ in range(rounds):
        for form, step in steps.items():
            times[form].append(seconds(step))
    speeds |= {form: batch / statistics.median(times[form][1:]) for form in steps}
    return speeds, left


def main() -> None:
    """Measure and print a Markdown table."""
    parser = CommandLine("python -m benchmarks.backbones", description=__doc__)
    parser.add_argument("--backbones", default="mbf,r50,r10_small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    forms = [form for form, (_, _, compiled) in FORMS.items() if not (compiled and options.no_compile)]
    most = peak()
    print(f"Machine: {describe()}. Batch {options.batch}, median of {options.rounds} alternating rounds.")
    print(f"A fp32 matrix product reaches {most / 1e9:.0f} GMAdd/s.\n")
    print(f"| backbone, img/s | {' | '.join(forms)} | best / plain | bar | plain, of the peak |")
    print("|" + " --- |" * (len(forms) + 4), flush=True)
    for name in options.backbones.split(","):
        speeds, left = measure(name, options.batch, options.rounds, forms)
        gain = max(speeds.values()) / speeds[PLAIN]
        bar = BARS.get(name)
        verdict = "-" if bar is None else f"{bar}x: {'reached' if gain >= bar else 'MISSED'}"
        shown = " | ".join(f"{'~' if form in left else ''}{speeds[form]:.1f}" for form in forms)
        share = 3 * count(name)[0] * speeds[PLAIN] / most
        print(f"| {name} | {shown} | {gain:.2f}x | {verdict} | {share:.0%} |", flush=True)


if __name__ == "__main__":
    main()
