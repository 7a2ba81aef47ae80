"""A backbone that a rank without a micro-batch can still take part with, and that may leave parameters unused.

DistributedDataParallel reduces gradients in the backward pass of a step's last micro-batch, and waits there for every
parameter on every rank. Where the shares of logical workers are uneven, some ranks have nothing to run by then; and
a backbone may have parameters that its output does not depend on (the mask token of a ViT that masks nothing). Both
are joined to the graph by a node that hands no gradient on: autograd visits the parameter, DDP counts it as ready,
and a gradient that comes by another way is the only one there is. The node costs no pass over memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class JoinableBackbone(nn.Module):
    """Wraps a backbone: ``float32 [B, 3, H, W]`` or ``None`` -> embeddings ``[B, D]`` or ``[0, D]``.

    With a ``projection`` D -> T the output is ``[B, D + T]``: each embedding, then its projection.

    Args:
        alone: no other rank waits for this one's gradients, and nothing is joined. Which parameters learn must not
            change afterwards.
    """

    def __init__(
        self, backbone: nn.Module, embedding_size: int, projection: nn.Linear | None = None, *, alone: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.projection = backbone, projection
        self.width = embedding_size + (projection.out_features if projection is not None else 0)
        self._joined = [] if alone else [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, images: Tensor | None, *, one_by_one: bool = False) -> Tensor:
        if images is not None:
            embeddings: Tensor = self.backbone(images)
            if self.projection is not None:
                embeddings = torch.cat([embeddings, self.projection(embeddings)], 1)
        else:
            some = next(self.parameters())
            embeddings = some.new_empty((0, self.width), dtype=torch.float32)
        if not self._joined:  # or all are frozen
            return embeddings
        if one_by_one:  # backward reaches the last first
            for parameter in self._joined:
                embeddings = _Join.apply(embeddings, parameter)  # type: ignore[no-untyped-call]
            return embeddings
        joined: Tensor = _Join.apply(embeddings, *self._joined)  # type: ignore[no-untyped-call]
        return joined


def lay_out_buckets(model: DistributedDataParallel) -> None:
    """Let DDP settle now which gradients it sums together, by a backward pass without images; all ranks take part.

    It settles that by the order in which the gradients of its first backward pass come, and until then sums all at
    once. Where a gradient lies decides in which order the ranks' values are added, and with three ranks or more their
    rounding: a run that starts again would have a first step of other bits. The order here is from the last parameter
    to the first, as backward comes by them.
    """
    model(None, one_by_one=True).sum().backward()
    for parameter in model.parameters():
        parameter.grad = None


class _Join(torch.autograd.Function):
    """The embeddings as they are, as a function of the parameters too: of those with derivative 0."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = len(parameters)
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # None is 0 to autograd, and yet the parameter's own node runs, where DDP listens.
        return (gradients[0], *[None] * ctx.parameters)
