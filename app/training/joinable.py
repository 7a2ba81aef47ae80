"""A backbone that a rank without a micro-batch can still take part with.

DistributedDataParallel reduces gradients in the backward pass of a step's last micro-batch, and expects every rank
there. Where the shares of logical workers are uneven, some ranks have nothing to run by then: they pass ``None`` and
contribute an empty batch of embeddings whose backward gives every parameter a zero gradient.
"""

from __future__ import annotations

from torch import Tensor, nn


class JoinableBackbone(nn.Module):
    """Wraps a backbone: ``float32 [B, 3, H, W]`` or ``None`` -> embeddings ``[B, D]`` or ``[0, D]``."""

    def __init__(self, backbone: nn.Module, embedding_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.embedding_size = embedding_size

    def forward(self, images: Tensor | None) -> Tensor:
        if images is not None:
            embeddings: Tensor = self.backbone(images)
            return embeddings
        touched = [parameter.reshape(-1)[:1].sum() for parameter in self.parameters() if parameter.requires_grad]
        connected = sum(touched[1:], start=touched[0]) * 0.0
        return connected.new_empty((0, self.embedding_size)) + connected
