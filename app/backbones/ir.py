"""IR: the residual network as AdaFace (arXiv:2204.00964) and other PyTorch trainers have it.

Compared with ``iresnet``: a shortcut that changes no channels is a strided pooling without weights, the embedding's
BatchNorm has no scale and shift, and features are dropped before the embedding. State-dict keys and shapes equal those
of AdaFace's ``ir_18``, ``ir_50`` and ``ir_101``; its weights see BGR.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.backbones.precision import parameter_precision


class IRBlock(nn.Module):
    """BN - conv3x3 - BN - PReLU - conv3x3(stride) - BN, plus the shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if channels_in != channels:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.res_layer(x)
        return out + self.shortcut_layer(x)


class IR(nn.Module):
    """Images ``float32 [B, 3, S, S]`` in [-1, 1] -> embeddings ``float32 [B, embedding_size]``, not normalised.

    Args:
        blocks: residual blocks of the four stages.
        widths: channels of the four stages; the stem has the first.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        embedding_size: int = 512,
        image_size: int = 112,
        dropout: float = 0.4,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.blocks, self.gradient_checkpointing = tuple(blocks), gradient_checkpointing
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        )
        body, channels, side = [], widths[0], image_size
        for depth, width in zip(blocks, widths, strict=True):
            body += [IRBlock(channels, width, 2), *(IRBlock(width, width, 1) for _ in range(depth - 1))]
            channels, side = width, -(-side // 2)
        self.body = nn.Sequential(*body)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(channels * side * side, embedding_size),
            nn.BatchNorm1d(embedding_size, affine=False),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def freezable(self) -> list[tuple[str, ...]]:
        """Names of the modules of the stem and of the four stages."""
        stages: list[tuple[str, ...]] = [("input_layer",)]
        start = 0
        for depth in self.blocks:
            stages.append(tuple(f"body.{number}" for number in range(start, start + depth)))
            start += depth
        return stages

    def forward(self, images: Tensor) -> Tensor:
        x = self.input_layer(images)
        for block in self.body:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = self.output_layer[:3](x)
        with parameter_precision(x):
            embeddings: Tensor = self.output_layer[3:](x.to(self.output_layer[3].weight.dtype))
        return embeddings
