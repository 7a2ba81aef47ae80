"""EdgeFace (George et al., arXiv:2307.01838): EdgeNeXt (arXiv:2206.10589) whose linear layers have low rank.

State-dict keys and shapes equal the published checkpoints', which have ``model.`` before each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.backbones.precision import parameter_precision

_EPS = 1e-6
_FREQUENCIES = 32


class LowRankLinear(nn.Module):
    """A linear layer as the product of two: ``[.., I]`` -> ``[.., rank]`` -> ``[.., O]``."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inputs, rank, bias=False)
        self.linear2 = nn.Linear(rank, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(self.linear1(x))
        return out


def _linear(inputs: int, outputs: int, gamma: float) -> nn.Module:
    """A linear layer; with ``gamma`` above 0 of so large a share of its full rank."""
    if not gamma:
        return nn.Linear(inputs, outputs)
    return LowRankLinear(inputs, outputs, max(2, int(min(inputs, outputs) * gamma)))


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of ``[B, C, H, W]``."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Two linear layers with GELU between, four times as wide inside."""

    def __init__(self, dim: int, gamma: float) -> None:
        super().__init__()
        self.fc1 = _linear(dim, 4 * dim, gamma)
        self.fc2 = _linear(4 * dim, dim, gamma)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class ConvBlock(nn.Module):
    """Depthwise convolution - LayerNorm - MLP, with a shortcut: ``[B, C, H, W]``."""

    def __init__(self, dim: int, kernel: int, gamma: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))
        self.conv_dw = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = Mlp(dim, gamma)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + (self.gamma * inner).permute(0, 3, 1, 2)


class FourierPositions(nn.Module):
    """Sines and cosines of a pixel's place, projected to ``[1, C, H, W]`` (as in XCiT, arXiv:2106.09681)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * _FREQUENCIES, dim, 1)

    def forward(self, height: int, width: int) -> Tensor:
        weight = self.token_projection.weight
        order = torch.arange(_FREQUENCIES, device=weight.device) // 2
        periods = 10000 ** (2 * order.float() / _FREQUENCIES)
        waves = []
        for count in (height, width):
            place = torch.arange(1, count + 1, device=weight.device).float() / (count + _EPS) * 2 * math.pi
            angle = place[:, None] / periods
            waves.append(torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], 2).flatten(1))
        rows = waves[0][:, None].expand(height, width, _FREQUENCIES)
        columns = waves[1][None].expand(height, width, _FREQUENCIES)
        positions = torch.cat([rows, columns], 2).permute(2, 0, 1)[None]
        projected: Tensor = self.token_projection(positions.to(weight.dtype))
        return projected


class ChannelAttention(nn.Module):
    """Cross-covariance attention: channels attend to channels, tokens ``[B, T, C]``."""

    def __init__(self, dim: int, heads: int, gamma: float) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = _linear(dim, 3 * dim, gamma)
        self.proj = _linear(dim, dim, gamma)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 4, 1)
        queries, keys, values = qkv.unbind(0)
        weights = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(-2, -1) * self.temperature
        out: Tensor = self.proj((weights.softmax(-1) @ values).permute(0, 3, 1, 2).reshape(batch, tokens, dim))
        return out


class SplitTransposeBlock(nn.Module):
    """Depthwise convolutions over groups of channels, one after the other, then channel attention and an MLP."""

    def __init__(self, dim: int, scales: int, heads: int, gamma: float, *, positions: bool) -> None:
        super().__init__()
        width = -(-dim // scales)
        self.gamma_xca = nn.Parameter(torch.full((dim,), 1e-6))
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))
        count = max(1, scales - 1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(count))
        self.pos_embd = FourierPositions(dim) if positions else None
        self.norm_xca = nn.LayerNorm(dim, eps=_EPS)
        self.xca = ChannelAttention(dim, heads, gamma)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = Mlp(dim, gamma)

    def forward(self, x: Tensor) -> Tensor:
        shortcut, parts, done = x, x.chunk(len(self.convs) + 1, 1), []
        part = parts[0]
        for number, convolution in enumerate(self.convs):
            part = convolution(part + parts[number] if number else part)
            done.append(part)
        x = torch.cat([*done, parts[-1]], 1)
        batch, dim, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        if self.pos_embd is not None:
            tokens = tokens + self.pos_embd(height, width).flatten(2).transpose(1, 2)
        tokens = tokens + self.gamma_xca * self.xca(self.norm_xca(tokens))
        tokens = self.gamma * self.mlp(self.norm(tokens))
        return shortcut + tokens.transpose(1, 2).reshape(batch, dim, height, width)


class Stage(nn.Module):
    """Halves the map, but for the first, and runs its blocks; the last may be a ``SplitTransposeBlock``."""

    def __init__(self, blocks: Sequence[nn.Module], channels_in: int, channels: int, *, first: bool) -> None:
        super().__init__()
        halve = nn.Sequential(LayerNorm2d(channels_in, eps=_EPS), nn.Conv2d(channels_in, channels, 2, 2))
        self.downsample = nn.Identity() if first else halve
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.downsample(x))
        return out


class Head(nn.Module):
    """Mean over the map, LayerNorm, a linear layer."""

    def __init__(self, dim: int, embedding_size: int, gamma: float) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=_EPS)
        self.fc = _linear(dim, embedding_size, gamma)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(x.mean((2, 3), keepdim=True)).flatten(1))
        return out


class EdgeFace(nn.Module):
    """Images ``float32 [B, 3, S, S]`` in [-1, 1] -> embeddings ``float32 [B, embedding_size]``, not normalised.

    Args:
        depths, dims: blocks and channels of the four stages.
        heads: of channel attention.
        gamma: rank of the linear layers over their full rank; 0: they are whole.
        gradient_checkpointing: recompute each stage in the backward pass.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        *,
        heads: int,
        gamma: float,
        embedding_size: int = 512,
        image_size: int = 112,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.image_size, self.gradient_checkpointing = image_size, gradient_checkpointing
        self.stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNorm2d(dims[0], eps=_EPS))
        made, before = [], dims[0]
        for number, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            plain = depth - (number > 0)
            blocks: list[nn.Module] = [ConvBlock(dim, 3 + 2 * number, gamma) for _ in range(plain)]
            if number:
                scales = (2, 2, 3, 4)[number]
                blocks.append(SplitTransposeBlock(dim, scales, heads, gamma, positions=number == 1))
            made.append(Stage(blocks, before, dim, first=number == 0))
            before = dim
        self.stages = nn.Sequential(*made)
        self.head = Head(dims[-1], embedding_size, gamma)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def freezable(self) -> list[tuple[str, ...]]:
        """Names of the modules of the stem and of the four stages."""
        return [("stem",), *((f"stages.{number}",) for number in range(4))]

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for stage in self.stages:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(stage, x, use_reentrant=False)
            else:
                x = stage(x)
        with parameter_precision(x):
            embeddings: Tensor = self.head(x.to(self.head.norm.weight.dtype))
        return embeddings
