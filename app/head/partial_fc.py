"""Partial FC: class centres spread over all ranks, and the margin softmax over them (arXiv:2010.05222, 2203.15565).

Every rank holds a contiguous range of classes. It gathers the embeddings of all ranks, computes the logits of its own
classes, and the softmax is normalised by two small collectives: communication does not grow with the class count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from app.head.class_shards import class_range, sample_classes
from app.head.margins import Margin
from app.head.softmax import BlockwiseLogSumExp, GatherEmbeddings, LogSumExpOverRanks, SumOverRanks

ABSENT = -1  # label of a row that only fills up a micro-batch


@dataclass(frozen=True)
class PartialFCConfig:
    """Sizes and options of the head; see ``HeadConfig`` for the fields."""

    embedding_size: int
    num_classes: int
    scale: float = 64.0
    sample_rate: float = 1.0
    interclass_filtering: float = 0.0
    logical_shards: int = 1
    seed: int = 0
    centre_dtype: torch.dtype = torch.float32
    matmul_dtype: torch.dtype = torch.float32
    block_bytes: int = 256 << 20


class PartialFC(nn.Module):
    """The head of one rank: class centres ``[C_local, D]`` and the loss over all ranks' classes.

    Use one step as ``begin_step(...)``, ``forward`` for each micro-batch, backward, then an optimizer that updates
    ``centres[active_rows]`` from ``active.grad``.
    """

    def __init__(self, config: PartialFCConfig, margin: Margin) -> None:
        super().__init__()
        self.config = config
        self.margin = margin
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.start, self.stop = class_range(config.num_classes, self.world, self.rank)
        self.centres = self._initial_centres()
        self.active = self.centres.requires_grad_()
        self.active_rows: Tensor | None = None  # None: all
        self._norms: list[Tensor] = []  # of this step's embeddings, all ranks', where the margin follows them

    def _initial_centres(self) -> Tensor:
        """Normal(0, 0.01), drawn in fixed pieces of classes: the same centres whatever the number of ranks."""
        config, piece = self.config, 4096
        rows = []
        for first in range(self.start - self.start % piece, self.stop, piece):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + first)
            drawn = torch.empty(piece, config.embedding_size).normal_(0, 0.01, generator=generator)
            rows.append(drawn[max(0, self.start - first) : max(0, self.stop - first)])
        return torch.cat(rows).to(config.centre_dtype) if rows else torch.empty(0, config.embedding_size)

    def to_device(self, device: torch.device) -> PartialFC:
        """Move centres and margin; call it before the optimizer is made."""
        self.margin.to(device)
        self.centres = self.centres.detach().to(device)
        self.active = self.centres.requires_grad_()
        return self

    def begin_step(self, step: int, labels: Tensor | None = None) -> None:
        """Choose the classes of this step and clear their gradient.

        Args:
            labels: int64 [N], all labels of the global batch; needed when ``sample_rate`` is below 1.
        """
        self._norms = []
        if self.config.sample_rate >= 1:
            self.active = self.centres.detach().requires_grad_()
            return
        assert labels is not None, "sampling needs the labels of the whole global batch"
        config = self.config
        classes = sample_classes(
            labels,
            config.num_classes,
            config.sample_rate,
            config.logical_shards,
            config.seed,
            step,
            self.start,
            self.stop,
        )
        self.active_rows = (classes - self.start).to(self.centres.device)
        self.active = self.centres.detach()[self.active_rows].requires_grad_()

    def forward(self, embeddings: Tensor, labels: Tensor, global_batch: int) -> Tensor:
        """This micro-batch's share of the mean loss over the global batch; the same scalar on every rank.

        Args:
            embeddings: float [B, D] of this rank, any scale; every rank gives equally many rows.
            labels: int64 [B], ``ABSENT`` for rows that only fill up.
            global_batch: samples that the mean is taken over.
        """
        embeddings = embeddings.float()
        if self.world > 1:
            embeddings = GatherEmbeddings.apply(embeddings)
            labels = _gather_labels(labels, self.world)
        norms = embeddings.norm(dim=1)
        if self.margin.follows_norms:  # choosing rows waits for the device
            self._norms.append(norms.detach()[labels != ABSENT])
        unit = embeddings / norms.clamp_min(1e-12)[:, None]
        own = self._own_rows(labels)
        target = self._target_logits(unit, norms, own)
        others = BlockwiseLogSumExp.apply(
            unit,
            self.active,
            own,
            self.config.scale,
            self.config.interclass_filtering,
            self._block_classes(len(unit)),
            self.config.matmul_dtype,
        )
        extra = self._regularizer(norms, own)
        if self.world > 1:
            target, others = SumOverRanks.apply(target), LogSumExpOverRanks.apply(others)
            extra = None if extra is None else SumOverRanks.apply(extra)
        loss = torch.logaddexp(others, target) - target
        if extra is not None:
            loss = loss + extra
        return torch.where(labels == ABSENT, 0, loss).sum() / global_batch

    def end_step(self) -> None:
        """Tell the margin the norms of the whole global batch, once its step counts."""
        if self.margin.follows_norms:
            self.margin.observe(torch.cat(self._norms))

    def _own_rows(self, labels: Tensor) -> Tensor:
        """Row in ``active`` of each sample's class, -1 where another rank holds it, int64 [N]."""
        here = (labels >= self.start) & (labels < self.stop)
        rows = torch.where(here, labels - self.start, -1)
        if self.config.sample_rate < 1 and self.active_rows is not None and len(self.active_rows):
            found = torch.searchsorted(self.active_rows, rows.clamp_min(0))
            rows = torch.where(here, found, -1)
        return rows

    def _target_logits(self, unit: Tensor, norms: Tensor, own: Tensor) -> Tensor:
        """Scaled target logits [N] of the samples whose class is here, 0 elsewhere."""
        if not len(self.active):
            return torch.zeros_like(norms)
        here = own >= 0
        centre = F.normalize(self.active[own.clamp_min(0)].float())
        cosine = (unit * centre).sum(1).clamp(-1, 1)
        # Only the rank that holds the class lets a gradient through, norms included: the sum over ranks is whole.
        return torch.where(here, self.margin(cosine, norms), 0) * self.config.scale

    def _regularizer(self, norms: Tensor, own: Tensor) -> Tensor | None:
        term = self.margin.regularizer(norms)
        return None if term is None else torch.where(own >= 0, term, 0)

    def _block_classes(self, samples: int) -> int:
        # Logits, their gradient and the exponentials are alive at once, four bytes each.
        return max(1024, self.config.block_bytes // (12 * max(1, samples)))


def _gather_labels(labels: Tensor, world: int) -> Tensor:
    gathered = labels.new_empty(world * len(labels))
    dist.all_gather_single(gathered, labels.contiguous())
    return gathered
