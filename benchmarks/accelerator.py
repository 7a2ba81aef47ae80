"""A training step on an accelerator, and its head alone: this project's against the reference's, in one process.

The reference is written here from insightface's arcface_torch: images in NCHW, autocast to float16 with a gradient
scaler, clipping at 5, dense gradients of all centres and ``torch.optim.SGD`` for both. Both sides have the same
backbone and get batches that are on the device already: what decodes and copies them is measured in
``benchmarks.data``. Sides alternate; figures are medians of rounds of ``--steps`` steps that end with the device idle.
Memory is the allocator's peak beside what the other side holds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.command_line import CommandLine
from app.config.recipe import HeadConfig, ModelConfig, OptimConfig, Recipe, TrainConfig
from app.data.loader import Batch
from app.device import Device, detect_device, dtype_of
from app.head.optimizer import CentreOptimizer
from app.head.partial_fc import HeadShape, PartialFC
from app.run_folder import build_model
from app.training.build import make_trainer
from app.training.plan import ElasticPlan
from app.world import World
from benchmarks.partial_fc import LR, MARGIN, SCALE, SIZE, CrossEntropy

Step = Callable[[int], None]


@dataclass(frozen=True)
class HeadCase:
    """A head alone."""

    classes: int
    rate: float
    batch: int
    precision: str


@dataclass(frozen=True)
class StepCase:
    """A whole step."""

    backbone: str
    classes: int
    rate: float
    batch: int
    channels_last: bool = True  # ours; the reference is NCHW


HEADS = [
    HeadCase(360_232, 1.0, 128, "fp16"),
    HeadCase(360_232, 1.0, 512, "fp16"),
    HeadCase(360_232, 1.0, 512, "fp32"),
    HeadCase(360_232, 0.1, 512, "fp16"),
    HeadCase(2_000_000, 0.1, 512, "fp16"),
    HeadCase(2_000_000, 1.0, 128, "fp16"),
    # HeadCase(10_000_000, 0.05, 512, "fp16"),
]
STEPS = [
    StepCase("mbf", 360_232, 1.0, 128),
    StepCase("mbf", 360_232, 1.0, 128, channels_last=False),
    StepCase("r50", 360_232, 1.0, 128),
    StepCase("r50", 2_000_000, 0.1, 128),
    StepCase("r100", 360_232, 1.0, 128),
    StepCase("vit_s", 360_232, 1.0, 128),
]


class ReferenceHead:
    """PartialFC_V2 and its optimizer: sampled rows are chosen with autograd, so that gradient and update are dense."""

    def __init__(self, classes: int, rate: float, device: torch.device) -> None:
        self.centres = torch.empty(classes, SIZE, device=device).normal_(0, 0.01).requires_grad_()
        self.rate, self.classes = rate, classes

    def loss(self, embeddings: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """[N, D], [N] -> []."""
        weight, own = self.centres, labels
        if self.rate < 1:
            chance = torch.rand(self.classes, device=labels.device)
            chance[labels.unique()] = 2.0
            classes = torch.topk(chance, int(self.rate * self.classes)).indices.sort().values
            weight, own = self.centres[classes], torch.searchsorted(classes, labels)
        unit, directions = F.normalize(embeddings.float()), F.normalize(weight)
        cosine = F.linear(unit.to(dtype), directions.to(dtype)).float().clamp(-1, 1)
        rows = torch.arange(len(own), device=own.device)
        target = torch.cos(torch.acos(cosine[rows, own]) + MARGIN)
        logits = cosine.index_put((rows, own), target) * SCALE
        found: Tensor = CrossEntropy.apply(logits, own)  # type: ignore[no-untyped-call]
        return found


def reference_head(case: HeadCase, device: Device) -> Step:
    """The reference's head alone."""
    head = ReferenceHead(case.classes, case.rate, device.torch_device)
    optimizer = torch.optim.SGD([head.centres], LR, momentum=0.9, weight_decay=5e-4)
    inputs = head_inputs(case, device)

    def step(number: int) -> None:
        embeddings, labels = inputs[number % len(inputs)]
        loss = head.loss(embeddings.detach().requires_grad_(), labels, dtype_of(case.precision))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_head(case: HeadCase, device: Device) -> Step:
    """This project's head alone, with its question whether all is finite."""
    config = HeadConfig(m2=MARGIN, scale=SCALE, sample_rate=case.rate)
    shape = HeadShape(SIZE, case.classes, matmul_dtype=dtype_of(case.precision), block_bytes=device.block_bytes)
    head = PartialFC(config, shape, device.torch_device)
    optimizer = CentreOptimizer(head, "sgd")
    inputs = head_inputs(case, device)
    host = [labels.cpu() for _, labels in inputs]

    def step(number: int) -> None:
        embeddings, labels = inputs[number % len(inputs)]
        head.begin_step(number, host[number % len(inputs)])
        head(embeddings.detach().requires_grad_(), labels, len(labels)).backward()
        assert head.finite()
        optimizer.step(LR)

    return step


def head_inputs(case: HeadCase, device: Device) -> list[tuple[Tensor, Tensor]]:
    """Embeddings and labels of four steps."""
    place = device.torch_device
    return [
        (torch.randn(case.batch, SIZE, device=place), torch.randint(0, case.classes, (case.batch,), device=place))
        for _ in range(4)
    ]


def recipe_of(case: StepCase) -> Recipe:
    """As glint360k is trained: float16, a batch a device."""
    return Recipe(
        model=ModelConfig(backbone=case.backbone, channels_last=case.channels_last),
        head=HeadConfig(m2=MARGIN, scale=SCALE, sample_rate=case.rate),
        optim=OptimConfig(lr=LR, clip_norm=5.0),
        train=TrainConfig(batch_size=case.batch, precision="fp16", logical_workers=1),
    )


def our_step(case: StepCase, device: Device) -> Step:
    """The trainer's own step."""
    trainer = make_trainer(recipe_of(case), World(0, 1, 0, device), ElasticPlan(1, 1), case.classes)
    place, batches = device.torch_device, []
    for _ in range(4):
        images = torch.randint(0, 256, (case.batch, 112, 112, 3), dtype=torch.uint8, device=place).permute(0, 3, 1, 2)
        labels = torch.randint(0, case.classes, (case.batch,))
        batches.append([Batch(images, labels, torch.arange(case.batch))])

    def step(number: int) -> None:
        trainer.step(number, batches[number % 4], LR)

    return step


def reference_step(case: StepCase, device: Device) -> Step:
    """arcface_torch's loop: the scaler scales the loss, gradients are clipped at 5, two optimizers in one."""
    place = device.torch_device
    backbone = build_model(ModelConfig(backbone=case.backbone), 112).to(place).train()
    head = ReferenceHead(case.classes, case.rate, place)
    groups: list[dict[str, Any]] = [{"params": list(backbone.parameters())}, {"params": [head.centres]}]
    optimizer = torch.optim.SGD(groups, LR, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler(device.kind, growth_interval=100)
    images = [torch.rand(case.batch, 3, 112, 112, device=place) * 2 - 1 for _ in range(4)]
    labels = [torch.randint(0, case.classes, (case.batch,), device=place) for _ in range(4)]

    def step(number: int) -> None:
        with device.autocast("fp16"):
            embeddings = backbone(images[number % 4])
        loss = head.loss(embeddings, labels[number % 4], torch.float16)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(backbone.parameters(), 5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def measure(
    sides: dict[str, Callable[[Any, Device], Step]], case: Any, device: Device, rounds: int, steps: int
) -> dict[str, tuple[float, float]]:
    """Median seconds a step and peak GB of each side; NaN where it does not fit."""
    module = getattr(torch, device.kind)
    made: dict[str, tuple[Step, float]] = {}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for side, make in sides.items():
        gc.collect()
        module.empty_cache()
        module.reset_peak_memory_stats()
        before = module.memory_allocated()
        try:
            step = make(case, device)
            for number in range(4):
                step(number)
            device.synchronize()
        except torch.OutOfMemoryError:
            continue
        made[side] = (step, (module.max_memory_allocated() - before) / 1e9)
    for _ in range(rounds):
        for side, (step, _) in made.items():
            started = time.perf_counter()
            for number in range(steps):
                step(number)
            device.synchronize()
            seconds[side].append((time.perf_counter() - started) / steps)
    nothing = (float("nan"), float("nan"))
    return {side: (statistics.median(seconds[side]), made[side][1]) if side in made else nothing for side in sides}


def row(name: str, found: dict[str, tuple[float, float]], images: int) -> str:
    """One line of a table; ``images`` a step, 0 for milliseconds."""
    reference, ours = found["reference"], found["ours"]

    def speed(seconds: float) -> str:
        return f"{images / seconds:,.0f} img/s" if images else f"{seconds * 1e3:.2f} ms"

    cells = [name, speed(reference[0]), speed(ours[0]), f"{reference[0] / ours[0]:.2f}x"]
    return "| " + " | ".join([*cells, f"{reference[1]:.2f}", f"{ours[1]:.2f}"]) + " |"


def main() -> None:
    """Print two tables."""
    parser = CommandLine("python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="", help="heads or steps")
    options = parser.parse_args()
    device = detect_device()
    module = getattr(torch, device.kind)
    print(f"{module.get_device_name()}, torch {torch.__version__}; {options.rounds} alternating rounds of")
    print(f"{options.steps} steps, medians. Embeddings of {SIZE}; memory in GB.\n")
    titles = "| reference | ours | faster | reference, GB | ours, GB |\n|" + " --- |" * 6
    if options.only != "steps":
        print(f"| head: classes, rate, batch, products {titles}")
        for head in HEADS:
            found = measure(
                {"reference": reference_head, "ours": our_head}, head, device, options.rounds, options.steps
            )
            print(row(f"{head.classes:,}, {head.rate:g}, {head.batch}, {head.precision}", found, 0), flush=True)
    if options.only != "heads":
        print(f"\n| step: backbone, classes, rate, batch {titles}")
        for case in STEPS:
            found = measure(
                {"reference": reference_step, "ours": our_step}, case, device, options.rounds, options.steps
            )
            name = f"{case.backbone}{'' if case.channels_last else ' (NCHW)'}"
            print(row(f"{name}, {case.classes:,}, {case.rate:g}, {case.batch}", found, case.batch), flush=True)


if __name__ == "__main__":
    main()
