"""Vision transformers as insightface trains them for faces: 9 x 9 patches, no class token, ReLU6, token masking.

State-dict keys and shapes equal insightface's ``vit_*``. Blocks are pre-norm (Dosovitskiy et al., arXiv:2010.11929); in
training a share of the tokens is left out of the blocks and a learned token stands in for them before the head (after
He et al., arXiv:2111.06377).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.backbones.precision import parameter_precision


class PatchEmbed(nn.Module):
    """Images ``[B, 3, S, S]`` -> tokens ``[B, T, D]``."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    """Multi-head self-attention without bias in the projections of queries, keys and values."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Tokens ``[B, T, D]``; ``bias`` ``[B, heads, T, T]`` is added to the scaled products before their softmax."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.unbind(0)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout)
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))
        return F.dropout(projected, self.dropout, self.training)


class Mlp(nn.Module):
    """Two linear layers with ReLU6 between."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.relu6(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(hidden), self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm transformer block; ``drop_path`` is the share of samples that skip each of its halves in training."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, dropout)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self._some(self.attn(self.norm1(x), bias))
        return x + self._some(self.mlp(self.norm2(x)))

    def _some(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop_path > 0):
            return x
        kept = torch.rand((x.shape[0], 1, 1), device=x.device) >= self.drop_path
        return x * kept.to(x.dtype) / (1 - self.drop_path)


class VisionTransformer(nn.Module):
    """Images ``float32 [B, 3, S, S]`` in [-1, 1] -> embeddings ``float32 [B, embedding_size]``, not normalised.

    Args:
        dim: width of the tokens.
        drop_path: of the last block; earlier ones rise to it linearly.
        mask_ratio: share of tokens left out in training.
        gradient_checkpointing: recompute each block in the backward pass.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        heads: int = 8,
        patch: int = 9,
        mlp_ratio: float = 4.0,
        embedding_size: int = 512,
        image_size: int = 112,
        dropout: float = 0.0,
        drop_path: float = 0.1,
        mask_ratio: float = 0.1,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        tokens = (image_size // patch) ** 2
        self.mask_ratio, self.dropout, self.gradient_checkpointing = mask_ratio, dropout, gradient_checkpointing
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(patch, dim)
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(
            nn.Linear(tokens * dim, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
            nn.Linear(dim, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        # Without masking nothing depends on it: it keeps its value, weight decay or not.
        self.mask_token.requires_grad_(mask_ratio > 0)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def freezable(self) -> list[tuple[str, ...]]:
        """Names of the stem's parts and of the four quarters of the blocks."""
        depth = len(self.blocks)
        cuts = [depth * quarter // 4 for quarter in range(5)]
        blocks = [tuple(f"blocks.{i}" for i in range(cuts[q], cuts[q + 1])) for q in range(4)]
        return [("patch_embed", "pos_embed"), *blocks]

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed
        x = F.dropout(x, self.dropout, self.training)
        restore = None
        if self.training and self.mask_ratio > 0:
            x, restore = self._leave_out(x)
        for block in self.blocks:
            x = self._run(block, x)
        x = self.norm(x.to(self.norm.weight.dtype))
        if restore is not None:
            x = self._put_back(x, restore)
        return self._embed(x)

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(block, *inputs, use_reentrant=False)
            return recomputed
        out: Tensor = block(*inputs)
        return out

    def _embed(self, x: Tensor) -> Tensor:
        with parameter_precision(x):
            embeddings: Tensor = self.feature(x.to(self.norm.weight.dtype).flatten(1))
        return embeddings

    def _leave_out(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a random choice of tokens of each sample; returns them, and where each token's place is, [B, T]."""
        batch, tokens, dim = x.shape
        order = torch.rand((batch, tokens), device=x.device).argsort(1)
        kept = order[:, : int(tokens * (1 - self.mask_ratio))]
        return x.gather(1, kept[:, :, None].expand(-1, -1, dim)), order.argsort(1)

    def _put_back(self, x: Tensor, restore: Tensor) -> Tensor:
        batch, kept, dim = x.shape
        missing = self.mask_token.to(x.dtype).expand(batch, restore.shape[1] - kept, dim)
        return torch.cat([x, missing], 1).gather(1, restore[:, :, None].expand(-1, -1, dim))
