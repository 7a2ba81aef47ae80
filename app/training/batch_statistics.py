"""BatchNorm over logical workers: statistics belong to the micro-batch, running statistics to the whole step.

Every micro-batch of a step starts from the same running statistics; afterwards the running statistics are the mean
over all logical workers. So they do not depend on which process ran which micro-batch, nor on how many there were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from app.training.ordered_sum import sum_in_order
from app.training.plan import ElasticPlan


class BatchStatistics:
    """The running statistics of all BatchNorm layers of a model, as one flat float32 buffer."""

    def __init__(self, model: nn.Module, logical_workers: int, ordered: ElasticPlan | None = None) -> None:
        """Move the layers' ``running_mean`` and ``running_var`` into one buffer; call it after moving the model.

        Args:
            ordered: the plan of a run whose sums are those of logical workers in order; see ``sum_in_order``.
        """
        self.logical_workers, self.ordered = logical_workers, ordered
        self._parts: list[Tensor] = []
        layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._layers = [layer for layer in layers if layer.running_mean is not None and layer.running_var is not None]
        self._flat: Tensor | None = None
        self._counts, self._training = self._gather_counts(), list[bool]()
        self._places: list[slice] = []  # of the layers in the buffer
        buffers = [buffer for layer in self._layers for buffer in (layer.running_mean, layer.running_var)]
        if not buffers:
            return
        self._flat = torch.cat([buffer.detach().float().flatten() for buffer in buffers if buffer is not None])
        offset = 0
        for layer in self._layers:
            first = offset
            for name in ("running_mean", "running_var"):
                size = getattr(layer, name).numel()
                # A view of the flat buffer: the layer's in-place update lands there, and one collective serves all.
                layer.register_buffer(name, self._flat[offset : offset + size])
                offset += size
            self._places.append(slice(first, offset))
        self._before = self._flat.clone()
        self._total = torch.zeros_like(self._flat)

    def _gather_counts(self) -> Tensor | None:
        """Layers' ``num_batches_tracked``, int64 [L], of which each keeps a view: to ask each would wait for it."""
        self._counting = [layer for layer in self._layers if layer.num_batches_tracked is not None]
        counts = [count for layer in self._counting if (count := layer.num_batches_tracked) is not None]
        if not counts:
            return None
        flat = torch.stack(counts)
        for layer, count in zip(self._counting, flat, strict=True):
            layer.register_buffer("num_batches_tracked", count)
        return flat

    def begin_step(self) -> None:
        """Remember the running statistics that every micro-batch of this step starts from."""
        if self._flat is not None:
            self._before.copy_(self._flat)
            self._total.zero_()
            self._parts = []
        if self._counts is not None:
            self._counts_before = self._counts.clone()

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Run one micro-batch's forward inside; what a backward pass with recomputation adds later does not count."""
        if self._flat is not None:
            self._flat.copy_(self._before)
        yield
        if self._flat is not None and self.ordered is not None:
            self._parts.append(self._flat.clone())
        elif self._flat is not None:
            self._total.add_(self._flat)

    def end_step(self, *, keep: bool = True) -> None:
        """Average over the logical workers of all ranks, a collective; unless ``keep``, go back to before the step."""
        if self._flat is None:
            return
        if not keep:
            self._flat.copy_(self._before)
        else:
            if self.ordered is not None:
                self._total = sum_in_order(torch.stack(self._parts), self.ordered)
            elif dist.is_initialized():
                dist.all_reduce(self._total)
            self._flat.copy_(self._total / self.logical_workers)
        # A frozen layer keeps every bit, which the mean of equal numbers need not.
        for layer, place in zip(self._layers, self._places, strict=True):
            if not layer.training:
                self._flat[place] = self._before[place]
        if self._counts is not None:
            # One step is one update, however many micro-batches this rank ran.
            torch.add(self._counts_before, self._learning(), alpha=int(keep), out=self._counts)

    def _learning(self) -> Tensor:
        """1 for each layer that counts and trains and 0 for those that rest, int64 [L]."""
        training = [layer.training for layer in self._counting]
        if training != self._training:
            assert self._counts is not None
            self._training = training
            self._ones = torch.tensor(training, dtype=torch.int64, device=self._counts.device)
        return self._ones
