"""SGD and AdamW on class centres, block by block and in place; equal to torch.optim on the rows they touch.

The gradient of a block exists only while its block is updated: SGD lets the product accumulate into the momentum,
AdamW takes it in a buffer of one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from app.head.forms import Gradient, gradients
from app.head.lanes import in_lanes
from app.head.partial_fc import Part, PartialFC
from app.head.softmax import ActiveCentres, Block


@dataclass(frozen=True)
class _WholeGradient:
    """A gradient that exists, float32 [k, D]."""

    values: Tensor

    def add_to(self, values: Tensor, beta: float, centres: Tensor, decay: float) -> None:
        values.zero_() if beta == 0 else values.mul_(beta)
        values.add_(self.values).add_(centres, alpha=decay)


AnyGradient = Gradient | _WholeGradient


class CentreOptimizer:
    """Updates the centres of a head in place.

    Args:
        name: ``sgd`` or ``adamw``.
        update: what happens to the rows whose classes a step did not sample. ``sparse`` leaves weights and state alone,
            as insightface's PartialFC (v1) and PartialFCAdamW do; ``dense`` gives them the gradient 0, so that momentum
            and weight decay go on, as its PartialFC_V2 does.
        momentum_dtype: how momentum (AdamW: the first moment) is stored; arithmetic is float32. AdamW's second moment
            is always float32: it moves by a thousandth a step, less than bfloat16 can show.
    """

    def __init__(
        self,
        head: PartialFC,
        name: str,
        *,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        update: str = "sparse",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.head, self.name = head, name
        self.momentum, self.weight_decay, self.betas, self.eps = momentum, weight_decay, betas, eps
        self.dense = update == "dense"
        kinds = {"momentum": momentum_dtype}
        if name != "sgd":
            kinds = {"exp_avg": momentum_dtype, "exp_avg_sq": torch.float32}
        shape, device = head.centres.shape, head.centres.device
        self.state = {key: torch.zeros(shape, dtype=dtype, device=device) for key, dtype in kinds.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, lr: float, gradient_scale: float = 1.0) -> None:
        """Update by the gradient of all losses since ``begin_step``, times ``gradient_scale``.

        Call it once a step, after backward, when the step is known to be finite on all ranks.
        """
        self.steps += 1
        for part in self.head.take_parts(gradient_scale):
            update, active = self._update_active, part.active
            if self.dense and active.rows is not None:
                update, active = self._update_all, ActiveCentres(active.centres, None)
            blocks = active.blocks(self.head.block_classes(len(part.samples)))
            in_lanes(partial(update, part, lr), blocks, active.centres.device)

    def _update_active(self, part: Part, lr: float, blocks: Sequence[Block]) -> None:
        """Blocks of the active classes."""
        gradient_of = gradients(part.samples, part.active, self.head.settings, blocks)
        for block in blocks:
            weight = block.read(part.active.centres)
            self._update(part, block, weight, gradient_of(block, weight), lr)

    def _update_all(self, part: Part, lr: float, blocks: Sequence[Block]) -> None:
        """``dense`` where classes were sampled: blocks of all centres, with gradient 0 for most."""
        active = part.active
        rows = active.host_rows
        assert active.rows is not None
        assert rows is not None
        # Of the active classes in a block there are at most as many as in the block.
        gradient_of = gradients(part.samples, active, self.head.settings, blocks)
        for block in blocks:
            weight = block.read(active.centres)
            whole = torch.zeros_like(weight)
            first, last = torch.searchsorted(rows, torch.tensor([block.start, block.stop])).tolist()
            if first < last:
                some = Block(first, last, active.rows[first:last])
                inside = active.rows[first:last] - block.start
                chosen = weight.index_select(0, inside)
                gradient = torch.empty_like(chosen)
                gradient_of(some, chosen).add_to(gradient, 0.0, chosen, 0.0)
                whole.index_copy_(0, inside, gradient)
            self._update(part, block, weight, _WholeGradient(whole), lr)

    def _update(self, part: Part, block: Block, weight: Tensor, gradient: AnyGradient, lr: float) -> None:
        stored = {key: value[part.rows] for key, value in self.state.items()}
        state = {key: block.read(value) for key, value in stored.items()}
        if self.name == "sgd":
            gradient.add_to(state["momentum"], self.momentum, weight, self.weight_decay)
            weight.add_(state["momentum"], alpha=-lr)
        else:
            self._adamw(weight, gradient, state, lr)
        block.write(part.active.centres, weight)
        for key, value in state.items():
            block.write(stored[key], value)

    def _adamw(self, weight: Tensor, gradient: AnyGradient, state: dict[str, Tensor], lr: float) -> None:
        """arXiv:1711.05101, in torch's order of operations."""
        values = torch.empty_like(weight)
        gradient.add_to(values, 0.0, weight, 0.0)
        first, second = self.betas
        weight.mul_(1 - lr * self.weight_decay)
        state["exp_avg"].lerp_(values, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(values, values, value=1 - second)
        denominator = (state["exp_avg_sq"].sqrt() / (1 - second**self.steps) ** 0.5).add_(self.eps)
        weight.addcdiv_(state["exp_avg"], denominator, value=-lr / (1 - first**self.steps))
