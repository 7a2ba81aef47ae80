"""Partial FC: class centres spread over all ranks, and the margin softmax over them (arXiv:2010.05222, 2203.15565).

Every rank holds a contiguous range of classes. It gathers the embeddings of all ranks, computes the softmax of its own
classes, and two small collectives normalise it: communication does not grow with the class count. Neither logits nor
the gradient of the centres are ever whole; how that works is told in ``app/head/softmax.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from app.device import dtype_of
from app.errors import AppError
from app.head.class_shards import class_range, sample_classes
from app.head.collectives import GatherEmbeddings, LogSumExpOverRanks, SumOverRanks, gather_labels
from app.head.config import HeadConfig
from app.head.forms import others_log_sum_exp
from app.head.margins import make_margin
from app.head.shaped_softmax import own_direction
from app.head.softmax import ActiveCentres, BlockwiseLogSumExp, Samples, SoftmaxSettings
from app.seeds import torch_stream
from app.settings import first_problem

ABSENT = -1  # label of a row that only fills up a micro-batch
_PIECE = 4096  # classes whose initial centres come from one random stream


class HeadError(AppError):
    """Sizes, options or labels that the head cannot work with."""


def product_dtype(precision: str, train_precision: str, device_kind: str) -> torch.dtype:
    """Type of the head's products for ``head.precision``.

    ``auto`` takes float16 where an accelerator trains in half precision: its products are as fast as bfloat16's and
    eight times as exact, and the head scales them so that float16's range suffices. A CPU keeps float32: few have
    instructions for either, and only bfloat16 is faster there.
    """
    if precision == "auto":
        precision = "fp32" if device_kind == "cpu" or train_precision == "fp32" else "fp16"
    return dtype_of(precision)


@dataclass(frozen=True)
class HeadShape:
    """What a head is told besides its section: sizes, and what the section's ``auto`` and 0 come to on its device.

    Args:
        logical_shards: parts that classes are sampled in; the run's logical workers.
        matmul_dtype: type of the products, see ``product_dtype``.
        block_bytes: memory of one block of centres, its momentum and logits.

    Raises:
        HeadError: a size is not above 0; names it.
    """

    embedding_size: int
    num_classes: int
    logical_shards: int = 1
    seed: int = 0
    matmul_dtype: torch.dtype = torch.float32
    block_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        for name in ("embedding_size", "num_classes", "logical_shards", "block_bytes"):
            if not getattr(self, name) > 0:
                raise HeadError(f"head: {name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class _MicroBatch:
    """What is kept of a forward pass until the update: ``unit`` [N, D] and, with their gradients, numbers [N]."""

    unit: Tensor
    own: Tensor
    others: Tensor
    cosine: Tensor
    threshold: Tensor | None = None


@dataclass(frozen=True)
class Part:
    """Classes that are updated together: their ``rows`` among this rank's, the active ones, and all samples."""

    rows: slice
    active: ActiveCentres
    samples: Samples


class PartialFC(nn.Module):
    """The head of one rank: class centres ``[C_local, D]`` and the loss over all ranks' classes.

    With K sub-centres a class they are ``[C_local, K * D]``: shards, samples and checkpoints stay rows of classes.

    Use one step as ``begin_step(...)``, ``forward`` and backward for each micro-batch, then, when the step is finite on
    all ranks, ``CentreOptimizer.step``. The centres have no ``.grad``.

    Args:
        config: the section ``[head]`` of the recipe.

    Raises:
        HeadError: more ranks than classes, or a value of the section that is not possible; names it.
        MarginError: values that the margin does not take.
    """

    def __init__(self, config: HeadConfig, shape: HeadShape, device: torch.device | str = "cpu") -> None:
        super().__init__()
        if problem := first_problem(config):
            raise HeadError(f"head.{problem}")
        self.config, self.shape = config, shape
        self.margin = make_margin(config).to(device)
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        if self.world > shape.num_classes:
            raise HeadError(
                f"{self.world} processes cannot share {shape.num_classes} classes: start at most {shape.num_classes}"
            )
        self.start, self.stop = self._own_range()
        self.settings = SoftmaxSettings(
            config.scale, config.interclass_filtering, shape.matmul_dtype, config.sub_centres, self.margin.hardness
        )
        self.centres = self._initial_centres(torch.device(device))
        self.active = ActiveCentres(self.centres, None)
        self._batches: list[_MicroBatch] = []
        self._followed: list[Tensor] = []  # of this step's samples, all ranks': what the margin follows

    def _own_range(self) -> tuple[int, int]:
        return class_range(self.shape.num_classes, self.world, self.rank)

    def _initial_centres(self, device: torch.device) -> Tensor:
        """Normal(0, 0.01), drawn in fixed pieces of classes: the same centres whatever the number of ranks."""
        shape, dtype = self.shape, dtype_of(self.config.centre_dtype)
        width = shape.embedding_size * self.config.sub_centres
        centres = torch.empty((self.stop - self.start, width), dtype=dtype, device=device)
        drawn = torch.empty(_PIECE, width)
        for first in range(self.start - self.start % _PIECE, self.stop, _PIECE):
            drawn.normal_(0, 0.01, generator=torch_stream(shape.seed, "head.centres", first // _PIECE))
            low, high = max(self.start, first), min(self.stop, first + _PIECE)
            centres[low - self.start : high - self.start].copy_(drawn[low - first : high - first])
        return centres

    def block_classes(self, samples: int) -> int:
        """Classes in a block, such that their rows, momentum and two arrays of logits take ``block_bytes``."""
        each = 8 * (self.shape.embedding_size + max(1, samples)) * self.config.sub_centres
        return max(128, self.shape.block_bytes // each // 64 * 64)

    def begin_step(self, step: int, labels: Tensor | None = None) -> None:
        """Choose the classes of this step and forget the last one.

        Args:
            labels: int64 [N], all labels of the global batch; needed when ``sample_rate`` is below 1.
        """
        self._followed, self._batches = [], []
        self._take_hardness()
        shape, rate, rows = self.shape, self.config.sample_rate, None
        if rate < 1:
            if labels is None:
                raise HeadError("sampling classes needs the labels of the whole global batch")
            shards = (rate, shape.logical_shards, shape.seed)
            classes = sample_classes(labels, shape.num_classes, *shards, step, self.start, self.stop)
            rows = classes - self.start
        self.active = ActiveCentres(self.centres, rows)

    def forward(self, embeddings: Tensor, labels: Tensor, global_batch: float) -> Tensor:
        """This micro-batch's share of the mean loss over the global batch; the same scalar on every rank.

        Args:
            embeddings: float [B, D] of this rank, any scale; every rank gives equally many rows.
            labels: int64 [B], ``ABSENT`` for rows that only fill up.
            global_batch: samples that the mean is taken over.

        Raises:
            HeadError: a label outside the classes. On an accelerator, where looking would stall it, the loss is NaN,
                as it is of embeddings that are not finite or whose length is not.
        """
        training = torch.is_grad_enabled()
        embeddings = embeddings.float()
        if (draws := self.margin.draw(len(embeddings))) is not None:
            draws = draws.to(embeddings.device)
            self.margin.take_draws(gather_labels(draws, self.world) if self.world > 1 else draws)
        if training and not embeddings.requires_grad:  # the centres learn even where the embeddings do not
            embeddings = embeddings.detach().requires_grad_()
        if self.world > 1:
            embeddings = GatherEmbeddings.apply(embeddings)
            labels = gather_labels(labels, self.world)
        norms = embeddings.norm(dim=1)
        unit = embeddings / norms.clamp_min(1e-12)[:, None]
        own, strange = self._own_rows(labels)
        strange = strange | torch.isinf(norms)  # longer than float32 can tell: as a unit it would be 0, and silent
        cosine = self._own_cosines(unit, own)
        threshold = self._follow(norms, cosine, own, labels)
        others = self._others(unit, own, threshold)
        if training:
            cosine.retain_grad()
            others.retain_grad()
            self._batches.append(_MicroBatch(unit.detach(), own, others, cosine, threshold))
        # Only the rank that holds the class lets a gradient through, norms included: the sum over ranks is whole.
        target = torch.where(own >= 0, self.margin(cosine.clamp(-1, 1), norms), 0) * self.config.scale
        extra = self._regularizer(norms, own)
        total = others
        if self.world > 1:
            target, total = SumOverRanks.apply(target), LogSumExpOverRanks.apply(others)
            extra = None if extra is None else SumOverRanks.apply(extra)
        loss = torch.logaddexp(total, target) - target
        if extra is not None:
            loss = loss + extra
        loss = torch.where(labels == ABSENT, 0, loss)
        return torch.where(strange, torch.nan, loss).sum() / global_batch

    def _others(self, unit: Tensor, own: Tensor, threshold: Tensor | None) -> Tensor:
        """Log-sum-exp of this rank's active classes but the own one, float32 [N]."""
        active, settings = self.active, self.settings
        blocks = active.blocks(self.block_classes(len(unit)))
        others: Tensor = BlockwiseLogSumExp.apply(
            unit, blocks, lambda x, some: others_log_sum_exp(x, active, own, settings, some, threshold)
        )
        active.measured = settings.plain
        return others

    def finite(self) -> Tensor:
        """Whether the gradient of the centres is finite on this rank, bool []; known from numbers a sample."""
        values = [part for batch in self._batches for part in (batch.unit, batch.others.grad, batch.cosine.grad)]
        checks = [torch.isfinite(value).all() for value in values if value is not None]
        return torch.stack(checks).all() if checks else torch.ones((), dtype=torch.bool, device=self.centres.device)

    def _take_hardness(self) -> None:
        """The margin's as it is now: the update of the centres may still read it when ``end_step`` changes it."""
        if self.margin.hardness is not None:
            self.settings = replace(self.settings, hardness=self.margin.hardness.clone())

    def step_tensors(self) -> tuple[object, ...]:
        """What ``CentreOptimizer.step`` reads and the next ``begin_step`` forgets."""
        return (self.active, self._batches, self.settings)

    def take_samples(self, gradient_scale: float) -> Samples:
        """All samples since ``begin_step`` with their gradients times ``gradient_scale``; they are handed over once."""
        batches, self._batches = [b for b in self._batches if b.others.grad is not None], []
        if not batches:
            empty = self.centres.new_empty(0, dtype=torch.float32)
            return Samples(empty.view(0, self.shape.embedding_size), empty, empty.long(), empty)
        zero = torch.zeros_like(batches[0].others)
        to_others = torch.cat([zero if b.others.grad is None else b.others.grad for b in batches])
        to_target = torch.cat([zero if b.cosine.grad is None else b.cosine.grad for b in batches])
        others = torch.cat([b.others.detach() for b in batches])
        # The derivative by a log-sum-exp of other classes is their probability times a weight: never negative.
        offset = torch.log(to_others * (gradient_scale * self.config.scale)) - others
        offset = torch.where(to_others > 0, offset, -torch.inf)
        own, unit = torch.cat([b.own for b in batches]), torch.cat([b.unit for b in batches])
        thresholds = [b.threshold for b in batches if b.threshold is not None]
        return Samples(unit, offset, own, to_target * gradient_scale, torch.cat(thresholds) if thresholds else None)

    def take_parts(self, gradient_scale: float) -> list[Part]:
        """What ``CentreOptimizer`` updates one after another; see ``take_samples``."""
        return [Part(slice(0, len(self.centres)), self.active, self.take_samples(gradient_scale))]

    def end_step(self) -> None:
        """Tell the margin what it follows of the whole global batch, once its step counts."""
        if self.margin.follows:
            self.margin.observe(torch.cat(self._followed))

    def _follow(self, norms: Tensor, cosine: Tensor, own: Tensor, labels: Tensor) -> Tensor | None:
        """Keep what the margin follows, of all ranks' samples; returns the thresholds [N] of hard cosines, or None."""
        followed = norms.detach()
        if self.margin.follows == "cosines":  # one rank knows each
            followed = torch.where(own >= 0, cosine.detach().clamp(-1, 1), 0)
            if self.world > 1:
                dist.all_reduce(followed)
        if self.margin.follows:  # choosing rows waits for the device
            self._followed.append(followed[labels != ABSENT])
        return self.margin.threshold(followed)

    def _own_rows(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Active row of each sample's class, -1 where another rank holds it, int64 [N]; and which labels are wrong."""
        classes = self.shape.num_classes
        strange = ((labels < 0) | (labels >= classes)) & (labels != ABSENT)
        here = (labels >= self.start) & (labels < self.stop)
        rows = torch.where(here, labels - self.start, -1)
        if self.active.rows is not None:
            if not len(self.active):
                strange, rows = strange | here, torch.full_like(rows, -1)
            else:
                found = torch.searchsorted(self.active.rows, rows.clamp_min(0)).clamp_max(len(self.active) - 1)
                known = here & (self.active.rows[found] == rows)
                strange, rows = strange | (here & ~known), torch.where(known, found, -1)
        if labels.device.type == "cpu" and strange.any():
            sample = int(strange.nonzero()[0, 0])
            raise HeadError(
                f"label {int(labels[sample])} of sample {sample} of the micro-batch is outside the classes "
                f"0..{classes - 1}, or was not among the labels that begin_step was given"
            )
        return rows, strange

    def _own_cosines(self, unit: Tensor, own: Tensor) -> Tensor:
        """Cosine between each sample and its class where that is here, float32 [N]; else something finite."""
        if not len(self.active):
            return unit.sum(1) * 0
        active = own.clamp_min(0)
        rows = active if self.active.rows is None else self.active.rows[active]
        centre = self.centres[rows].float()
        if self.config.sub_centres > 1:
            return (unit * own_direction(centre, unit)).sum(1)
        return (unit * (centre / centre.norm(dim=1, keepdim=True).clamp_min(1e-12))).sum(1)

    def _regularizer(self, norms: Tensor, own: Tensor) -> Tensor | None:
        term = self.margin.regularizer(norms)
        return None if term is None else torch.where(own >= 0, term, 0)
