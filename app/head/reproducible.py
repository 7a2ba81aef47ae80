"""Partial FC whose arithmetic is divided by logical workers alone: any number of processes computes the same bits.

The classes lie in as many logical shards as there are logical workers, and a process holds whole shards. Every product
is that of one micro-batch with one logical shard, so its shape, and with it the order of its sums, does not follow the
processes. What crosses shards is added in their order: log-sum-exps of a sample, and the gradient of its embedding. The
update of a shard takes the samples of all logical workers, in their order.

Price: as many products as logical workers squared, a micro-batch each, and L gradients [B, D] where ``PartialFC`` sends
one. The mathematics is that of ``app.head.softmax``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from app.head.class_shards import class_range, sample_classes
from app.head.config import HeadConfig
from app.head.forms import others_log_sum_exp
from app.head.partial_fc import ABSENT, HeadError, HeadShape, Part, PartialFC
from app.head.shaped_softmax import own_direction
from app.head.softmax import ActiveCentres, Samples

_NOTHING = -1e30  # the log-sum-exp of no class at all, with a gradient that is 0


@dataclass
class _Kept:
    """Of one logical worker's micro-batch in one shard: what the update needs; numbers [B], ``unit`` [B, D]."""

    unit: Tensor
    own: Tensor
    lse: Tensor
    to_lse: Tensor = field(default_factory=lambda: torch.empty(0))
    to_cosine: Tensor = field(default_factory=lambda: torch.empty(0))
    threshold: Tensor | None = None


class ReproduciblePartialFC(PartialFC):
    """The head of one rank, for ``train.reproducible``; used as ``PartialFC`` is.

    Its loss is that of the rank's own micro-batch, and the gradient of the embeddings is not multiplied by the number
    of ranks: who adds them up adds, and does not average.

    Args:
        shares: the logical workers of each rank, in order.
    """

    def __init__(
        self, config: HeadConfig, shape: HeadShape, device: torch.device | str, shares: Sequence[Sequence[int]]
    ) -> None:
        self.shares = [list(share) for share in shares]
        super().__init__(config, shape, device)
        self._kept: dict[int, list[_Kept]] = {}  # by logical worker, one entry a local shard
        self._followed_of: dict[int, Tensor] = {}
        self._turn = 0
        self._shards: list[ActiveCentres] = []

    def _own_range(self) -> tuple[int, int]:
        return shard_rows(self.shape.num_classes, self.shares, self.rank)

    def _ranges(self) -> list[tuple[int, int]]:
        """Classes of this rank's logical shards."""
        count = sum(map(len, self.shares))
        return [class_range(self.shape.num_classes, count, shard) for shard in self.shares[self.rank]]

    def begin_step(self, step: int, labels: Tensor | None = None) -> None:
        """See ``PartialFC``."""
        shape, rate = self.shape, self.config.sample_rate
        if rate < 1 and labels is None:
            raise HeadError("sampling classes needs the labels of the whole global batch")
        self._kept, self._followed_of, self._turn, self._shards = {}, {}, 0, []
        self._take_hardness()
        for first, last in self._ranges():
            rows = None
            if rate < 1:
                assert labels is not None
                shards = (rate, shape.logical_shards, shape.seed)
                classes = sample_classes(labels, shape.num_classes, *shards, step, first, last)
                rows = classes - first
            self._shards.append(ActiveCentres(self.centres[first - self.start : last - self.start], rows))

    def forward(self, embeddings: Tensor, labels: Tensor, global_batch: float) -> Tensor:
        """The loss of this rank's micro-batch over the global batch; see the class.

        Args:
            embeddings: float [B, D], labels: int64 [B]; see ``PartialFC``. A rank without a micro-batch in this turn
                gives ``ABSENT`` labels.
        """
        embeddings = embeddings.float()
        if torch.is_grad_enabled() and not embeddings.requires_grad:
            embeddings = embeddings.detach().requires_grad_()
        norms = embeddings.norm(dim=1)
        unit = embeddings / norms.clamp_min(1e-12)[:, None]
        turn, self._turn = self._turn, self._turn + 1
        lse, cosine = _ShardedSoftmax.apply(unit, labels, self, turn)
        if self.margin.follows == "norms":
            self._follow_all(_gather(norms.detach(), self.world), turn)
        target = self.margin(cosine.clamp(-1, 1), norms) * self.config.scale
        loss = torch.logaddexp(torch.logsumexp(lse.clamp_min(_NOTHING), 0), target) - target
        if (extra := self.margin.regularizer(norms)) is not None:
            loss = loss + extra
        wrong = (labels != ABSENT) & ((labels < 0) | (labels >= self.shape.num_classes)) | torch.isinf(norms)
        loss = torch.where(labels == ABSENT, 0, loss)
        return torch.where(wrong, torch.nan, loss).sum() / global_batch

    def step_tensors(self) -> tuple[object, ...]:
        """See ``PartialFC``."""
        return (*super().step_tensors(), self._kept, self._shards)

    def compute(self, units: Tensor, labels: Tensor, turn: int) -> tuple[Tensor, Tensor, Tensor]:
        """All ranks' micro-batches of a turn against this rank's shards.

        Args:
            units: float32 [W, B, D], labels: int64 [W, B].

        Returns:
            log-sum-exp of other classes and cosine of the own one (0 where it is not here), float32 [S, W, B], and the
            gradient of the first, [S, W, B, D].
        """
        shape = (len(self._shards), *units.shape[:2])
        lse, cosine = units.new_zeros(shape), units.new_zeros(shape)
        gradient = units.new_zeros((*shape, units.shape[2]))
        size = self.block_classes(units.shape[1])
        for rank, share in enumerate(self.shares):
            if turn >= len(share):
                continue
            kept = self._kept[share[turn]] = []
            for number, (active, (first, last)) in enumerate(zip(self._shards, self._ranges(), strict=True)):
                unit, own = units[rank], _own_rows(labels[rank], active, first, last)
                cosine[number, rank] = (unit * _unit_centres(active, own, unit)).sum(1).masked_fill(own < 0, 0)
                kept.append(_Kept(unit, own, lse[number, rank]))
        thresholds = self._thresholds(cosine, turn)
        for rank, share in enumerate(self.shares):
            for number, part in enumerate(self._kept[share[turn]] if turn < len(share) else []):
                part.threshold = None if thresholds is None else thresholds[rank]
                active = self._shards[number]
                lse[number, rank], gradient[number, rank] = others_log_sum_exp(
                    part.unit, active, part.own, self.settings, active.blocks(size), part.threshold
                )
        return lse, cosine, gradient

    def _thresholds(self, cosine: Tensor, turn: int) -> Tensor | None:
        """Above which cosines of other classes are hard, [W, B], from own cosines [S, W, B]; or None."""
        if self.margin.follows != "cosines":
            return None
        whole = cosine.sum(0).clamp_(-1, 1)  # the class is in one shard
        if self.world > 1:
            dist.all_reduce(whole)
        self._follow_all(whole, turn)
        return self.margin.threshold(whole)

    def _follow_all(self, values: Tensor, turn: int) -> None:
        """Keep what the margin follows, [W, B], of this turn's logical workers."""
        for rank, share in enumerate(self.shares):
            if turn < len(share):
                self._followed_of[share[turn]] = values[rank]

    def differentiate(self, to_lse: Tensor, to_cosine: Tensor, gradient: Tensor, turn: int) -> Tensor:
        """Gradient by ``units`` of each shard, [S, W, B, D], into ``gradient``, from those of ``compute``'s values."""
        for rank, share in enumerate(self.shares):
            if turn >= len(share):
                continue
            for number, kept in enumerate(self._kept[share[turn]]):
                kept.to_lse = to_lse[number, rank]
                kept.to_cosine = to_cosine[rank].masked_fill(kept.own < 0, 0)
                part = gradient[number, rank].mul_(kept.to_lse[:, None])
                direction = _unit_centres(self._shards[number], kept.own, kept.unit)
                part.addcmul_(direction, kept.to_cosine[:, None])
        return gradient

    def finite(self) -> Tensor:
        """See ``PartialFC``."""
        values = [v for parts in self._kept.values() for k in parts for v in (k.unit, k.to_lse, k.to_cosine)]
        checks = [torch.isfinite(value).all() for value in values]
        return torch.stack(checks).all() if checks else torch.ones((), dtype=torch.bool, device=self.centres.device)

    def take_parts(self, gradient_scale: float) -> list[Part]:
        """Each logical shard with the samples of all logical workers in their order; handed over once."""
        kept, self._kept = [parts for _, parts in sorted(self._kept.items())], {}
        found = []
        for number, (active, (first, last)) in enumerate(zip(self._shards, self._ranges(), strict=True)):
            parts = [worker[number] for worker in kept]
            to_lse = torch.cat([part.to_lse for part in parts])
            offset = torch.log(to_lse * (gradient_scale * self.config.scale)) - torch.cat([p.lse for p in parts])
            samples = Samples(
                torch.cat([part.unit for part in parts]),
                torch.where(to_lse > 0, offset, -torch.inf),
                torch.cat([part.own for part in parts]),
                torch.cat([part.to_cosine for part in parts]) * gradient_scale,
                None if self.margin.follows != "cosines" else torch.cat([_threshold_of(part) for part in parts]),
            )
            found.append(Part(slice(first - self.start, last - self.start), active, samples))
        return found

    def end_step(self) -> None:
        """See ``PartialFC``."""
        if self.margin.follows:
            self.margin.observe(torch.cat([values for _, values in sorted(self._followed_of.items())]))


class _ShardedSoftmax(torch.autograd.Function):
    """unit [B, D], labels [B] of each rank -> log-sum-exp [L, B] a logical shard, and cosine of the own class [B]."""

    @staticmethod
    def forward(
        ctx: Any, unit: Tensor, labels: Tensor, head: ReproduciblePartialFC, turn: int
    ) -> tuple[Tensor, Tensor]:
        lse, cosine, gradient = head.compute(_gather(unit, head.world), _gather(labels, head.world), turn)
        ctx.head, ctx.turn, ctx.gradient = head, turn, gradient
        # The class is in one shard; whatever order adds zeros to it gives it.
        return _to_owners(lse, head), _to_owners(cosine, head).sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_lse, to_cosine = gradients
        head = ctx.head
        parts = head.differentiate(_to_shards(to_lse, head), _gather(to_cosine, head.world), ctx.gradient, ctx.turn)
        ctx.gradient = None
        parts = _to_owners(parts, head)
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total, None, None, None


def shard_rows(num_classes: int, shares: Sequence[Sequence[int]], rank: int) -> tuple[int, int]:
    """Half-open range of classes of a rank that holds whole logical shards."""
    count = sum(map(len, shares))
    first = class_range(num_classes, count, shares[rank][0])[0]
    return first, class_range(num_classes, count, shares[rank][-1])[1]


def _gather(values: Tensor, world: int) -> Tensor:
    """[...] of each rank -> [W, ...]."""
    if world == 1:
        return values[None]
    gathered = values.new_empty((world * len(values), *values.shape[1:]))
    dist.all_gather_single(gathered, values.contiguous())
    return gathered.view(world, *values.shape)


def _to_owners(values: Tensor, head: ReproduciblePartialFC) -> Tensor:
    """[S, W, ...], this rank's shards for all ranks' micro-batches -> [L, ...], all shards for its own, in order."""
    if head.world == 1:
        return values[:, 0]
    each = values[0, 0].numel()
    counts = [len(share) * each for share in head.shares]
    outgoing = values.transpose(0, 1).contiguous()
    received = values.new_empty((sum(map(len, head.shares)), *values.shape[2:]))
    dist.all_to_all_single(received.view(-1), outgoing.view(-1), counts, [counts[head.rank]] * head.world)
    return received


def _to_shards(values: Tensor, head: ReproduciblePartialFC) -> Tensor:
    """The way back: [L, ...] of each rank's micro-batch -> [S, W, ...] for this rank's shards."""
    if head.world == 1:
        return values[:, None]
    each = values[0].numel()
    counts = [len(share) * each for share in head.shares]
    received = values.new_empty((head.world, len(head.shares[head.rank]), *values.shape[1:]))
    dist.all_to_all_single(received.view(-1), values.contiguous().view(-1), [counts[head.rank]] * head.world, counts)
    return received.transpose(0, 1)


def _own_rows(labels: Tensor, active: ActiveCentres, first: int, last: int) -> Tensor:
    """Active row of each sample's class, -1 where it is in another shard, int64 [B]."""
    rows = torch.where((labels >= first) & (labels < last), labels - first, -1)
    if active.rows is None:
        return rows
    if not len(active):
        return torch.full_like(rows, -1)
    found = torch.searchsorted(active.rows, rows.clamp_min(0)).clamp_max(len(active) - 1)
    return torch.where((rows >= 0) & (active.rows[found] == rows), found, -1)


def _threshold_of(kept: _Kept) -> Tensor:
    assert kept.threshold is not None
    return kept.threshold


def _unit_centres(active: ActiveCentres, own: Tensor, unit: Tensor) -> Tensor:
    """The own class's (nearest) centre at length 1, float32 [B, D]; another one's where it is not here."""
    if not len(active):
        return torch.zeros_like(unit)
    rows = own.clamp_min(0)
    centre = active.centres[rows if active.rows is None else active.rows[rows]].float()
    if centre.shape[1] > unit.shape[1]:
        return own_direction(centre, unit)
    return centre / centre.norm(dim=1, keepdim=True).clamp_min(1e-12)
