"""The margin softmax written plainly from the papers: whole logits, autograd, torch.optim, one process, float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from app.head.class_shards import sample_classes
from app.head.config import HeadConfig
from app.head.margins import Curricular
from app.head.partial_fc import PartialFC

SEED = 3


@dataclass(frozen=True)
class Case:
    """One setting of the head; ``labels``: classes that labels are drawn from."""

    classes: int = 13
    margin: tuple[str, float, float, float] = ("combined", 1.0, 0.5, 0.0)
    gradient: str = "exact"
    easy_margin: bool = False
    filtering: float = 0.0
    rate: float = 1.0
    update: str = "sparse"
    optimizer: str = "sgd"
    scale: float = 64.0
    labels: int = 0
    size: int = 8
    batch: int = 12
    lr: float = 0.05
    sub_centres: int = 1

    @property
    def steepness(self) -> float:
        """Largest derivative of a logit by its cosine: what a cosine's rounding error is multiplied by."""
        return self.scale * (2 + Followed.t if self.margin[0] == "curricular" else 1)

    def config(self) -> HeadConfig:
        """The case as a section of a recipe."""
        name, m1, m2, m3 = self.margin
        return HeadConfig(
            margin=name,
            m1=m1,
            m2=m2,
            m3=m3,
            easy_margin=self.easy_margin,
            gradient=self.gradient,
            scale=self.scale,
            sample_rate=self.rate,
            interclass_filtering=self.filtering,
            sub_centres=self.sub_centres,
        )

    def inputs(self, step: int) -> tuple[Tensor, Tensor]:
        """Embeddings float32 [batch, size] and labels int64 [batch] of a step."""
        generator = torch.Generator().manual_seed(1000 * self.classes + step)
        embeddings = torch.randn(self.batch, self.size, generator=generator) * 7
        return embeddings, torch.randint(0, self.labels or self.classes, (self.batch,), generator=generator)

    def centres(self) -> Tensor:
        """float32 [classes, sub_centres * size], each of a length between 0.1 and 2."""
        generator = torch.Generator().manual_seed(7)
        rows = self.classes * self.sub_centres
        lengths = torch.empty(rows, 1).uniform_(0.1, 2, generator=generator)
        centres = torch.nn.functional.normalize(torch.randn(rows, self.size, generator=generator)) * lengths
        return centres.view(self.classes, -1)


@dataclass
class Followed:
    """What a margin follows from step to step: AdaFace's mean and deviation of norms, CurricularFace's t."""

    mean: float = 20.0
    std: float = 100.0
    t: float = 0.4  # as if training had gone on for a while: at its start nothing depends on it

    def observe(self, norms: Tensor, own_cosines: Tensor) -> None:
        """After each step, of the whole batch."""
        norms = norms.clamp(1e-3, 100)
        self.mean = 0.99 * self.mean + 0.01 * float(norms.mean())
        self.std = 0.99 * self.std + 0.01 * float(norms.std())
        self.t = 0.99 * self.t + 0.01 * float(own_cosines.mean())


def start(head: PartialFC, case: Case) -> None:
    """Give a head the case's centres, and its margin the state that ``Followed`` starts with."""
    head.centres.copy_(case.centres()[head.start : head.stop])
    if isinstance(head.margin, Curricular):
        head.margin.t.fill_(Followed.t)


def target_logit(case: Case, cosine: Tensor, norm: Tensor, followed: Followed) -> Tensor:
    """The margin in terms of the angle; theta by arccos."""
    name, m1, m2, m3 = case.margin
    theta = torch.acos(cosine)
    if name == "none":
        return cosine
    if name == "adaface":
        quality = ((norm.detach().clamp(1e-3, 100) - followed.mean) / (followed.std + 1e-3) * 0.333).clamp(-1, 1)
        return torch.cos((theta - 0.4 * quality).clamp(1e-3, math.pi - 1e-3)) - 0.4 - 0.4 * quality
    shift = torch.as_tensor(m2)
    if name == "magface":
        shift = 0.45 + (0.8 - 0.45) * (norm.clamp(10, 110) - 10) / 100
    theta = m1 * theta
    moved = torch.cos(theta + shift) - m3
    if case.gradient == "straight-through":
        return cosine + (moved - cosine).detach()
    if case.easy_margin:
        return torch.where(torch.cos(theta) > 0, moved, torch.cos(theta) - m3)
    return torch.where(theta + shift < math.pi, moved, torch.cos(theta) - shift * torch.sin(math.pi - shift) - m3)


def loss_of(
    case: Case, embeddings: Tensor, labels: Tensor, centres: Tensor, chosen: Tensor, followed: Followed | None = None
) -> Tensor:
    """Mean loss over the batch, with the full matrix of logits; ``followed`` is told of it."""
    followed = followed or Followed()
    norms = embeddings.norm(dim=1)
    each = torch.nn.functional.normalize(centres.view(case.classes, case.sub_centres, -1), dim=2)
    cosine = torch.einsum("nd,ckd->nck", embeddings / norms[:, None], each).amax(2)
    own = torch.nn.functional.one_hot(labels, case.classes).bool()
    if case.filtering:
        cosine = torch.where((cosine > case.filtering) & ~own, 0, cosine)
    target = target_logit(case, cosine[own], norms, followed)
    if case.margin[0] == "curricular":  # arXiv:2004.00288, eq. 6 and 7
        hard = cosine > torch.cos(torch.acos(cosine[own]) + case.margin[2])[:, None]
        cosine = torch.where(hard & ~own, cosine * (followed.t + cosine), cosine)
    logits = torch.where(own, target[:, None], cosine)[:, chosen] * case.scale
    loss = torch.nn.functional.cross_entropy(logits, torch.searchsorted(chosen, labels))
    if case.margin[0] == "magface":
        a = norms.clamp(10, 110)
        loss = loss + 35 * (a / 110**2 + 1 / a).mean()
    followed.observe(norms.detach(), cosine[own].detach())
    return loss


class Oracle:
    """Trains ``case.centres()``; ``steps`` holds each step's loss and gradient of the embeddings."""

    def __init__(self, case: Case, logical_shards: int, steps: int) -> None:
        self.steps: list[tuple[Tensor, Tensor]] = []
        centres = case.centres().double().requires_grad_()
        optimizer, followed = self._optimizer(case, centres), Followed()
        for step in range(steps):
            embeddings, labels = case.inputs(step)
            embeddings = embeddings.double().requires_grad_()
            chosen = torch.arange(case.classes)
            if case.rate < 1:
                chosen = sample_classes(labels, case.classes, case.rate, logical_shards, SEED, step, 0, case.classes)
            loss = loss_of(case, embeddings, labels, centres, chosen, followed)
            optimizer.zero_grad()
            loss.backward()
            assert embeddings.grad is not None
            self.steps.append((loss.detach(), embeddings.grad))
            idle = torch.ones(case.classes, dtype=torch.bool)
            idle[chosen] = False
            before, state = centres.detach().clone(), _copy(optimizer, centres)
            optimizer.step()
            if case.update == "sparse" and idle.any():  # rows that were not sampled stay as they were
                with torch.no_grad():
                    centres[idle] = before[idle]
                    for key, value in optimizer.state[centres].items():
                        if value.dim():
                            value[idle] = state[key][idle] if key in state else 0
        self.centres = centres.detach()
        self.state = {key: value for key, value in optimizer.state[centres].items() if value.dim()}

    def _optimizer(self, case: Case, centres: Tensor) -> torch.optim.Optimizer:
        if case.optimizer == "sgd":
            return torch.optim.SGD([centres], lr=case.lr, momentum=0.9, weight_decay=0.01)
        return torch.optim.AdamW([centres], lr=case.lr, weight_decay=0.01)


def _copy(optimizer: torch.optim.Optimizer, centres: Tensor) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in optimizer.state[centres].items() if value.dim()}
