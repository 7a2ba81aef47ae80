"""SGD and AdamW on the rows of the class centres that a step sampled; equal to torch.optim where all are sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from app.head.partial_fc import PartialFC


class CentreOptimizer:
    """Updates the centres of a head in place, and only the rows whose classes took part.

    Args:
        name: ``sgd`` or ``adamw``.
        update: ``sparse`` leaves momentum and weights of the other rows alone, as the reference does; ``dense`` treats
            them as having gradient 0, so that momentum and weight decay go on.
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
    ) -> None:
        self.head, self.name = head, name
        self.momentum, self.weight_decay, self.betas, self.eps = momentum, weight_decay, betas, eps
        self.dense = update == "dense"
        shape, device = head.centres.shape, head.centres.device
        names = ("momentum",) if name == "sgd" else ("exp_avg", "exp_avg_sq")
        self.state = {key: torch.zeros(shape, dtype=torch.float32, device=device) for key in names}
        self.steps = 0

    @torch.no_grad()
    def step(self, lr: float, gradient_scale: float = 1.0) -> None:
        """Apply ``head.active.grad * gradient_scale``."""
        self.steps += 1
        rows, gradient = self.head.active_rows, self.head.active.grad
        if gradient is None:
            gradient = torch.zeros_like(self.head.active)
        gradient = gradient.float() * gradient_scale
        if rows is not None and self.dense:
            whole = torch.zeros(self.head.centres.shape, dtype=torch.float32, device=gradient.device)
            gradient, rows = whole.index_copy_(0, rows, gradient), None
        if rows is None:
            centres, state = self.head.centres.float(), self.state
        else:
            centres = self.head.centres[rows].float()
            state = {key: value[rows] for key, value in self.state.items()}
        centres = self._update(centres, gradient, state, lr)
        if rows is None:
            self.head.centres.copy_(centres)
            return
        self.head.centres.index_copy_(0, rows, centres.to(self.head.centres.dtype))
        for key, value in state.items():
            self.state[key].index_copy_(0, rows, value)

    def _update(self, centres: Tensor, gradient: Tensor, state: dict[str, Tensor], lr: float) -> Tensor:
        """New centres; ``state`` changes in place."""
        if self.name == "sgd":
            gradient = gradient.add(centres, alpha=self.weight_decay)
            state["momentum"].mul_(self.momentum).add_(gradient)
            return centres - lr * state["momentum"]
        first, second = self.betas
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        correction = (1 - second**self.steps) ** 0.5
        denominator = state["exp_avg_sq"].sqrt() / correction + self.eps
        rate = lr / (1 - first**self.steps)
        return centres * (1 - lr * self.weight_decay) - rate * state["exp_avg"] / denominator
