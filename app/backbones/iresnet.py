"""IResNet: the improved residual network of ArcFace (Deng et al., arXiv:1801.07698, section 3.2; arXiv:2004.04989).

State-dict keys and shapes equal insightface's ``iresnet*``, so published ``backbone.pth`` files load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.backbones.precision import parameter_precision

_EPS = 1e-5


class IBlock(nn.Module):
    """BN - conv3x3 - BN - PReLU - conv3x3(stride) - BN, plus the shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in, eps=_EPS)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps=_EPS)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels, eps=_EPS)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return out + shortcut


class IResNet(nn.Module):
    """Images ``float32 [B, 3, S, S]`` in [-1, 1] -> embeddings ``float32 [B, embedding_size]``, not normalised.

    Args:
        blocks: residual blocks of the four stages.
        widths: channels of the four stages; the stem has the first.
        stem_stride: 1 as published; 2 makes a network for small machines.
        gradient_checkpointing: recompute each stage in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        embedding_size: int = 512,
        image_size: int = 112,
        stem_stride: int = 1,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        self.conv1 = nn.Conv2d(3, widths[0], 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0], eps=_EPS)
        self.prelu = nn.PReLU(widths[0])
        channels, side = widths[0], -(-image_size // stem_stride)
        for number, (depth, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            self.add_module(f"layer{number}", _stage(channels, width, depth))
            channels, side = width, -(-side // 2)
        self.bn2 = nn.BatchNorm2d(channels, eps=_EPS)
        self.dropout = nn.Dropout(dropout, inplace=True)
        self.fc = nn.Linear(channels * side * side, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size, eps=_EPS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)
        # The scale of the embeddings is lost in the head's normalisation: its weight stays 1.
        self.features.weight.requires_grad_(False)

    def freezable(self) -> list[tuple[str, ...]]:
        """Names of the modules of the stem and of the four stages."""
        return [("conv1", "bn1", "prelu"), *((f"layer{number}",) for number in range(1, 5))]

    def forward(self, images: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(images)))
        for number in range(1, 5):
            stage = self.get_submodule(f"layer{number}")
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(stage, x, use_reentrant=False)
            else:
                x = stage(x)
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        with parameter_precision(x):
            embeddings: Tensor = self.features(self.fc(x.to(self.fc.weight.dtype)))
        return embeddings


def _stage(channels_in: int, channels: int, depth: int) -> nn.Sequential:
    downsample = nn.Sequential(nn.Conv2d(channels_in, channels, 1, 2, bias=False), nn.BatchNorm2d(channels, eps=_EPS))
    first = IBlock(channels_in, channels, 2, downsample)
    return nn.Sequential(first, *(IBlock(channels, channels, 1, None) for _ in range(depth - 1)))
