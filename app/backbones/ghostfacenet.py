"""GhostFaceNets (Alansari et al., IEEE Access 2023): GhostNet and GhostNetV2 with PReLU and a global depthwise head.

The published weights are Keras files; only architecture and size are theirs. Ghost modules make half of their channels
by a cheap depthwise convolution (arXiv:1911.11907); V2's gate a module by decoupled fully connected attention
(arXiv:2211.12905).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from app.backbones.precision import parameter_precision

# Kernel, channels inside, channels, squeeze-and-excitation, stride of each bottleneck, for a width of 1.
_BOTTLENECKS = (
    (3, 16, 16, False, 1),
    (3, 48, 24, False, 2),
    (3, 72, 24, False, 1),
    (5, 72, 40, True, 2),
    (5, 120, 40, True, 1),
    (3, 240, 80, False, 2),
    (3, 200, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 480, 112, True, 1),
    (3, 672, 112, True, 1),
    (5, 672, 160, True, 2),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
)


def _divisible(channels: float) -> int:
    """The nearest multiple of 4, not more than a tenth below."""
    rounded = max(4, int(channels + 2) // 4 * 4)
    return rounded + 4 if rounded < 0.9 * channels else rounded


def _conv(
    channels_in: int, channels: int, kernel: int | tuple[int, int] = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (size[0] // 2, size[1] // 2)
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, size, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(channels)
    )


class GhostModule(nn.Module):
    """``[B, I, H, W]`` -> ``[B, O, H, W]``: half by a pointwise convolution, from it the rest by a depthwise one."""

    def __init__(self, channels_in: int, channels: int, *, activation: bool, attention: bool) -> None:
        super().__init__()
        half = channels // 2
        self.primary = _conv(channels_in, half)
        self.cheap = _conv(half, channels - half, 3, groups=half)
        if activation:
            self.primary.append(nn.PReLU(half))
            self.cheap.append(nn.PReLU(channels - half))
        self.gate: nn.Module | None = None
        if attention:
            self.gate = nn.Sequential(
                _conv(channels_in, channels),
                _conv(channels, channels, (1, 5), groups=channels),
                _conv(channels, channels, (5, 1), groups=channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        out = torch.cat([first, self.cheap(first)], 1)
        if self.gate is None:
            return out
        gate = torch.sigmoid(self.gate(F.avg_pool2d(x, 2, ceil_mode=True)))
        return out * F.interpolate(gate, size=out.shape[-2:], mode="nearest")


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole map says (arXiv:1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = _divisible(channels / 4)
        self.reduce = nn.Conv2d(channels, inside, 1)
        self.act = nn.PReLU(inside)
        self.expand = nn.Conv2d(inside, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * F.hardsigmoid(weights)


class GhostBottleneck(nn.Module):
    """Ghost module - depthwise convolution where it halves the map - squeeze and excite - ghost module; a shortcut."""

    def __init__(
        self, channels_in: int, inside: int, channels: int, kernel: int, stride: int, *, excite: bool, attention: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [GhostModule(channels_in, inside, activation=True, attention=attention)]
        if stride > 1:
            layers.append(_conv(inside, inside, kernel, stride, inside))
        if excite:
            layers.append(SqueezeExcite(inside))
        layers.append(GhostModule(inside, channels, activation=False, attention=False))
        self.layers = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels or stride > 1:
            self.shortcut = nn.Sequential(
                _conv(channels_in, channels_in, kernel, stride, channels_in), _conv(channels_in, channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) + self.shortcut(x)
        return out


class GhostFaceNet(nn.Module):
    """Images ``float32 [B, 3, S, S]`` in [-1, 1] -> embeddings ``float32 [B, embedding_size]``, not normalised.

    Args:
        width: multiplies the channels; published: 1.3 and others.
        stride: of the stem, 1 or 2.
        attention: gate the ghost modules of all bottlenecks but the first two, as V2 does.
    """

    def __init__(
        self,
        *,
        width: float,
        stride: int,
        attention: bool,
        last: int,
        bottlenecks: Sequence[tuple[int, int, int, bool, int]] = _BOTTLENECKS,
        embedding_size: int = 512,
        image_size: int = 112,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        channels, side = _divisible(16 * width), -(-image_size // stride)
        self.stem = _conv(3, channels, 3, stride).append(nn.PReLU(channels))
        blocks = []
        for number, (kernel, inside, outside, excite, step) in enumerate(bottlenecks):
            wide, out = _divisible(inside * width), _divisible(outside * width)
            gated = attention and number > 1
            blocks.append(GhostBottleneck(channels, wide, out, kernel, step, excite=excite, attention=gated))
            channels, side = out, -(-side // step)
        self.blocks = nn.Sequential(*blocks)
        wide = _divisible(last * width)
        self.conv = _conv(channels, wide).append(nn.PReLU(wide))
        self.features = nn.Sequential(
            nn.Conv2d(wide, wide, side, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Conv2d(wide, embedding_size, 1, bias=False),
            nn.Flatten(),
            nn.BatchNorm1d(embedding_size),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def freezable(self) -> list[tuple[str, ...]]:
        """Names of the modules of the stem and of four stages, which end where the map is halved."""
        cuts = (0, 3, 5, 11, len(self.blocks))
        return [("stem",), *(tuple(f"blocks.{i}" for i in range(cuts[n], cuts[n + 1])) for n in range(4))]

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            x = checkpoint_sequential(list(self.blocks), 4, x, use_reentrant=False)
        else:
            x = self.blocks(x)
        x = self.conv(x)
        with parameter_precision(x):
            embeddings: Tensor = self.features(x.to(next(self.features.parameters()).dtype))
        return embeddings
