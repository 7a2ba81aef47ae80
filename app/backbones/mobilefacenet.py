"""MobileFaceNet (Chen et al., arXiv:1804.07573) in insightface's widths; state-dict keys and shapes equal theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from app.backbones.precision import parameter_precision


class ConvBlock(nn.Module):
    """Convolution - BN, and a PReLU unless ``linear``."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        *,
        linear: bool = False,
    ) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels_in, channels, kernel, stride, padding, groups=groups, bias=False)
        layers: list[nn.Module] = [convolution, nn.BatchNorm2d(channels)]
        self.layers = nn.Sequential(*layers, *([] if linear else [nn.PReLU(channels)]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Bottleneck(nn.Module):
    """1x1 expansion - 3x3 depthwise - 1x1 projection, with a shortcut when ``residual``."""

    def __init__(self, channels_in: int, channels: int, expanded: int, stride: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            ConvBlock(channels_in, expanded),
            ConvBlock(expanded, expanded, 3, stride, 1, groups=expanded),
            ConvBlock(expanded, channels, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


class Residual(nn.Module):
    """A row of residual bottlenecks."""

    def __init__(self, channels: int, depth: int, expanded: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Bottleneck(channels, channels, expanded, 1, residual=True) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class GlobalDepthwise(nn.Module):
    """The head: a depthwise convolution over the whole map, a linear layer, BN."""

    def __init__(self, channels: int, side: int, embedding_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBlock(channels, channels, side, groups=channels, linear=True),
            nn.Flatten(),
            nn.Linear(channels, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class MobileFaceNet(nn.Module):
    """Images ``float32 [B, 3, S, S]`` in [-1, 1] -> embeddings ``float32 [B, embedding_size]``, not normalised.

    Args:
        blocks: depth of the second layer and of the three residual rows.
        scale: multiplies the paper's widths (64, 128).
    """

    def __init__(
        self,
        blocks: Sequence[int],
        scale: int,
        *,
        embedding_size: int = 512,
        image_size: int = 112,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        narrow, wide = 64 * scale, 128 * scale
        second = ConvBlock(narrow, narrow, 3, 1, 1, groups=64) if blocks[0] == 1 else Residual(narrow, blocks[0], 128)
        self.layers = nn.ModuleList(
            [
                ConvBlock(3, narrow, 3, 2, 1),
                second,
                Bottleneck(narrow, narrow, 128, 2, residual=False),
                Residual(narrow, blocks[1], 128),
                Bottleneck(narrow, wide, 256, 2, residual=False),
                Residual(wide, blocks[2], 256),
                Bottleneck(wide, wide, 512, 2, residual=False),
                Residual(wide, blocks[3], 256),
            ]
        )
        self.conv_sep = ConvBlock(wide, 512)
        self.features = GlobalDepthwise(512, -(-image_size // 16), embedding_size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def freezable(self) -> list[tuple[str, ...]]:
        """Names of the modules of the stem and of the four stages."""
        return [("layers.0",), ("layers.1",), *((f"layers.{number}", f"layers.{number + 1}") for number in (2, 4, 6))]

    def forward(self, images: Tensor) -> Tensor:
        x = images
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            x = checkpoint_sequential(list(self.layers), 4, x, use_reentrant=False)
        else:
            for layer in self.layers:
                x = layer(x)
        x = self.conv_sep(x)
        with parameter_precision(x):
            embeddings: Tensor = self.features(x.to(next(self.features.parameters()).dtype))
        return embeddings
