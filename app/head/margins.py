"""Margins: what happens to the cosine between an embedding and its own class centre before the softmax.

A margin is a module that maps the target cosines ``float32 [N]`` and the embeddings' norms ``float32 [N]`` to target
logits ``float32 [N]``, not yet scaled. Only the sample's own class passes through it, so the cost is O(N).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from app.errors import AppError
from app.head.config import HeadConfig


class MarginError(AppError):
    """A margin that does not exist, or values it does not take."""


class Margin(nn.Module):
    """Base: the plain cosine softmax (NormFace)."""

    follows = ""  # what ``observe`` wants to be told: norms, cosines (of the own classes) or nothing

    @property
    def hardness(self) -> Tensor | None:
        """What hard negatives weigh more by, float32 [], changed in place; see ``Curricular``."""
        return None

    def forward(self, cosine: Tensor, norms: Tensor) -> Tensor:  # noqa: ARG002
        """Target logits ``[N]`` from target cosines ``[N]`` and embedding norms ``[N]``."""
        return cosine

    def draw(self, rows: int) -> Tensor | None:  # noqa: ARG002
        """Random numbers ``[rows]`` on the CPU for this rank's samples, which ``take_draws`` gets of all; or None."""
        return None

    def take_draws(self, draws: Tensor) -> None:
        """Random numbers ``[N]`` of the samples that ``forward`` is called with next."""

    def regularizer(self, norms: Tensor) -> Tensor | None:  # noqa: ARG002
        """A term ``[N]`` added to each sample's loss, or None."""
        return None

    def threshold(self, cosine: Tensor) -> Tensor | None:  # noqa: ARG002
        """Above which cosine another class is a hard one, ``[N]`` from target cosines ``[N]``; None: none is."""
        return None

    def observe(self, values: Tensor) -> None:
        """Take note of what the margin follows, ``[B]`` of a whole global batch, after its step."""


class CombinedMargin(Margin):
    """cos(m1 * theta + m2) - m3: ArcFace (1, 0.5, 0), CosFace (1, 0, 0.4) and their mixtures (arXiv:1801.07698, eq. 4).

    Past theta + m2 = pi the cosine would rise again; from there the line cos(theta) - m2 * sin(pi - m2) goes on, or,
    with ``easy_margin``, the margin applies only to theta < pi / 2.

    Args:
        gradient: ``exact`` differentiates the margin, as the Ascend port does; ``straight-through`` leaves the line out
            and hands the gradient on as if there were no margin, as insightface does today.
    """

    def __init__(self, m1: float, m2: float, m3: float, *, easy_margin: bool = False, gradient: str = "exact") -> None:
        super().__init__()
        if m1 <= 0 or m2 < 0 or m3 < 0:
            raise MarginError(f"head.m1 must be above 0, head.m2 and head.m3 at least 0: got {m1}, {m2}, {m3}")
        if gradient not in ("exact", "straight-through"):
            raise MarginError(f"head.gradient must be exact or straight-through, got {gradient!r}")
        self.m1, self.m2, self.m3 = m1, m2, m3
        self.easy_margin = easy_margin
        self.straight_through = gradient == "straight-through"

    def forward(self, cosine: Tensor, norms: Tensor) -> Tensor:  # noqa: ARG002
        if self.straight_through:
            with torch.no_grad():
                moved = torch.cos(self.m1 * torch.acos(cosine) + self.m2) - self.m3
            return cosine + (moved - cosine).detach()
        if self.m1 != 1:
            return self._of_multiplied_angle(cosine) - self.m3
        if self.m2:
            cosine = _add_angle(cosine, torch.as_tensor(self.m2), easy_margin=self.easy_margin)
        return cosine - self.m3

    def _of_multiplied_angle(self, cosine: Tensor) -> Tensor:
        """By the angle itself: past pi, where m1 * theta may be, its cosine does not tell on which side it is."""
        # theta from atan2 keeps a finite gradient where acos has none.
        theta = self.m1 * torch.atan2(_sine(cosine), cosine)
        plain, moved = torch.cos(theta), torch.cos(theta + self.m2)
        if self.easy_margin:
            return torch.where(plain > 0, moved, plain)
        return torch.where(theta + self.m2 < math.pi, moved, plain - self.m2 * math.sin(self.m2))


class AdaFace(Margin):
    """AdaFace (arXiv:2204.00964): the margin follows image quality, which the embedding's norm stands for.

    The running mean and deviation of the norms change once a step, from the whole global batch, after its use; so they
    do not depend on how the batch was split over processes.
    """

    follows = "norms"

    def __init__(self, m: float = 0.4, h: float = 0.333, t_alpha: float = 0.01) -> None:
        super().__init__()
        self.m, self.h, self.t_alpha = m, h, t_alpha
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("std", torch.tensor(100.0))

    def forward(self, cosine: Tensor, norms: Tensor) -> Tensor:
        quality = (norms.detach().clamp(1e-3, 100) - self.mean) / (self.std + 1e-3) * self.h
        quality = quality.clamp(-1, 1)
        limit = 1e-3
        theta = torch.atan2(_sine(cosine), cosine) - self.m * quality
        return torch.cos(theta.clamp(limit, math.pi - limit)) - self.m * (1 + quality)

    def observe(self, values: Tensor) -> None:
        norms = values.detach().clamp(1e-3, 100)
        self.mean.lerp_(norms.mean(), self.t_alpha)
        if len(norms) > 1:  # one sample has no deviation: it would be NaN, and so every margin after it
            self.std.lerp_(norms.std(), self.t_alpha)


class Curricular(Margin):
    """CurricularFace (arXiv:2004.00288): ArcFace's margin, and hard negatives that weigh more as training goes on.

    The cosine c of another class counts as c (t + c) where it is above cos(theta + m) of the sample's own: see
    ``app.head.shaped_softmax``. t is the running mean of the own classes' cosines, from 0; it changes once a step, from
    the whole global batch, after its use, as in the paper's algorithm (the authors' code changes it before).
    """

    follows = "cosines"

    def __init__(self, m: float = 0.5, t_alpha: float = 0.01, *, easy_margin: bool = False) -> None:
        super().__init__()
        self.m, self.t_alpha, self.easy_margin = m, t_alpha, easy_margin
        self.t: Tensor
        self.register_buffer("t", torch.tensor(0.0))

    @property
    def hardness(self) -> Tensor:
        return self.t

    def forward(self, cosine: Tensor, norms: Tensor) -> Tensor:  # noqa: ARG002
        return _add_angle(cosine, torch.as_tensor(self.m), easy_margin=self.easy_margin)

    def threshold(self, cosine: Tensor) -> Tensor:
        return cosine * math.cos(self.m) - _sine(cosine) * math.sin(self.m)

    def observe(self, values: Tensor) -> None:
        self.t.lerp_(values.mean(), self.t_alpha)


class Elastic(Margin):
    """ElasticFace (arXiv:2109.09416): each sample's margin is drawn from a normal distribution, anew in every step.

    ``Arc`` (mean ``m2``) adds it to the angle, ``Cos`` (``m2`` 0, mean ``m3``) takes it off the cosine. Numbers come
    from the generator that the trainer seeds for each logical worker, so they do not depend on the number of processes.
    """

    def __init__(self, m2: float, m3: float, std: float) -> None:
        super().__init__()
        self.m2, self.m3, self.std = m2, m3, std
        self._draws = torch.zeros(())

    def draw(self, rows: int) -> Tensor:
        return torch.randn(rows)

    def take_draws(self, draws: Tensor) -> None:
        self._draws = draws

    def forward(self, cosine: Tensor, norms: Tensor) -> Tensor:  # noqa: ARG002
        if not self.m2:
            return cosine - (self.m3 + self.std * self._draws)
        # As the authors' code: no continuation where theta + margin passes pi.
        return torch.cos(torch.atan2(_sine(cosine), cosine) + self.m2 + self.std * self._draws)


class MagFace(Margin):
    """MagFace (arXiv:2103.06627): the margin grows with the norm a, and a regularizer rewards large norms.

    m(a) runs from ``lower_margin`` at a = ``lower`` to ``upper_margin`` at ``upper``; g(a) = a / upper^2 + 1 / a.
    """

    def __init__(
        self,
        *,
        lower: float = 10.0,
        upper: float = 110.0,
        lower_margin: float = 0.45,
        upper_margin: float = 0.8,
        weight: float = 35.0,
        easy_margin: bool = False,
    ) -> None:
        super().__init__()
        self.lower, self.upper = lower, upper
        self.lower_margin, self.upper_margin = lower_margin, upper_margin
        self.weight = weight
        self.easy_margin = easy_margin

    def forward(self, cosine: Tensor, norms: Tensor) -> Tensor:
        share = (norms.clamp(self.lower, self.upper) - self.lower) / (self.upper - self.lower)
        margin = self.lower_margin + (self.upper_margin - self.lower_margin) * share
        return _add_angle(cosine, margin, easy_margin=self.easy_margin)

    def regularizer(self, norms: Tensor) -> Tensor:
        norms = norms.clamp(self.lower, self.upper)
        return self.weight * (norms / self.upper**2 + 1 / norms)


def make_margin(config: HeadConfig) -> Margin:
    """The margin of a recipe's head, with the parameters of its paper."""
    if config.margin == "adaface":
        return AdaFace(config.m3 or 0.4, config.adaface_h, config.adaface_t_alpha)
    if config.margin == "curricular":
        return Curricular(config.m2, config.curricular_t_alpha, easy_margin=config.easy_margin)
    if config.margin == "elastic":
        return Elastic(config.m2, config.m3, config.elastic_std)
    if config.margin == "magface":
        if not (
            config.magface_lower < config.magface_upper and config.magface_lower_margin <= config.magface_upper_margin
        ):
            raise MarginError(
                "head.magface_lower must be below magface_upper, and the lower margin not above the upper"
            )
        return MagFace(
            lower=config.magface_lower,
            upper=config.magface_upper,
            lower_margin=config.magface_lower_margin,
            upper_margin=config.magface_upper_margin,
            weight=config.magface_weight,
            easy_margin=config.easy_margin,
        )
    if config.margin == "none":
        return Margin()
    return CombinedMargin(config.m1, config.m2, config.m3, easy_margin=config.easy_margin, gradient=config.gradient)


def _sine(cosine: Tensor) -> Tensor:
    # The floor keeps the gradient finite at cos = +-1, where that of the root is not.
    return (1 - cosine.square()).clamp_min(1e-12).sqrt()


def _add_angle(cosine: Tensor, angle: Tensor, *, easy_margin: bool) -> Tensor:
    """cos(theta + angle) while that falls, then the reference's continuation."""
    moved = cosine * torch.cos(angle) - _sine(cosine) * torch.sin(angle)
    if easy_margin:
        return torch.where(cosine > 0, moved, cosine)
    return torch.where(cosine > torch.cos(math.pi - angle), moved, cosine - torch.sin(math.pi - angle) * angle)
