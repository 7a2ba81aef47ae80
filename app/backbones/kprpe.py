"""ViT with KP-RPE (Kim et al., CVPR 2024, arXiv:2403.14852): where a face's five points lie steers the attention.

For a query at patch i and a key at patch j, ``w(i)[bucket(i, j)]`` is added to their scaled product. The bucket says
how many rows and columns lie between them, finely when near (iRPE's product, arXiv:2107.14222: 7 x 7 buckets); the
weights w are a linear map of the way from the five points to patch i, one a head and block, zero at the start.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from app.backbones.vit import VisionTransformer
from app.face_points import TEMPLATE

# iRPE's piecewise index for a ratio of 1.9: distances up to _NEAR keep their own bucket, and from there it grows with
# the logarithm, towards _MOST at _FAR.
_NEAR, _MOST, _FAR = 1.9, 3.8, 15.2
_BUCKETS = (2 * int(_MOST) + 1) ** 2


def bucket_of(distance: int) -> int:
    """-3 to 3, for a number of rows or columns."""
    far = abs(distance)
    if far > _NEAR:
        far = min(int(_MOST), round(_NEAR + math.log(far / _NEAR) / math.log(_FAR / _NEAR) * (_MOST - _NEAR)))
    return int(math.copysign(far, distance))


class KeyPointViT(VisionTransformer):
    """Images ``float32 [B, 3, S, S]`` in [-1, 1] -> embeddings ``float32 [B, embedding_size]``, not normalised.

    Nothing is masked. State-dict keys and shapes are those of ``VisionTransformer`` without its ``mask_token``, with
    ``keypoint_linear``.

    Args:
        dim: width of the tokens.
        drop_path: of the last block; earlier ones rise to it linearly.
        gradient_checkpointing: recompute each block in the backward pass.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        heads: int = 8,
        patch: int = 9,
        embedding_size: int = 512,
        image_size: int = 112,
        dropout: float = 0.0,
        drop_path: float = 0.1,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            dim,
            depth,
            heads=heads,
            patch=patch,
            embedding_size=embedding_size,
            image_size=image_size,
            dropout=dropout,
            drop_path=drop_path,
            mask_ratio=0.0,
            gradient_checkpointing=gradient_checkpointing,
        )
        del self.mask_token
        self.heads, side = heads, image_size // patch
        self.keypoint_linear = nn.Linear(2 * len(TEMPLATE), _BUCKETS * heads * depth)
        nn.init.zeros_(self.keypoint_linear.weight)
        nn.init.zeros_(self.keypoint_linear.bias)
        self.template: Tensor
        self.places: Tensor
        self.buckets: Tensor
        self.register_buffer("template", torch.tensor(TEMPLATE / 112, dtype=torch.float32), persistent=False)
        rows, columns = torch.arange(side * side) // side, torch.arange(side * side) % side
        centres = torch.stack([columns, rows], 1).add(0.5) / side
        self.register_buffer("places", centres, persistent=False)
        table = torch.tensor([bucket_of(distance) + int(_MOST) for distance in range(1 - side, side)])
        between = [table[place[:, None] - place[None] + side - 1] for place in (rows, columns)]
        self.register_buffer("buckets", between[0] * (2 * int(_MOST) + 1) + between[1], persistent=False)

    def freezable(self) -> list[tuple[str, ...]]:
        """Names of the stem's parts and of the four quarters of the blocks."""
        stem, *quarters = super().freezable()
        return [(*stem, "keypoint_linear"), *quarters]

    def forward(self, images: Tensor, points: Tensor | None = None) -> Tensor:
        """Embed.

        Args:
            points: float32 [B, 5, 2], eyes, nose and corners of the mouth, x and y as shares of the image's side;
                those of ``app.face_points.TEMPLATE`` where left out, which aligned faces have.
        """
        x = self.patch_embed(images) + self.pos_embed
        x = nn.functional.dropout(x, self.dropout, self.training)
        points = self.template[None] if points is None else points
        for block, bias in zip(self.blocks, self._biases(points).unbind(0), strict=True):
            x = self._run(block, x, bias.to(x.dtype))
        return self._embed(self.norm(x.to(self.norm.weight.dtype)))

    def _biases(self, points: Tensor) -> Tensor:
        """``[depth, B or 1, heads, T, T]``; one for all images where they share their points."""
        ways = (self.places[None, :, None] - points[:, None].to(self.places.dtype)).flatten(2)
        batch, tokens, _ = ways.shape
        weights = self.keypoint_linear(ways).reshape(batch, tokens, len(self.blocks), self.heads, _BUCKETS)
        weights = weights.permute(2, 0, 3, 1, 4)
        index = self.buckets.expand(*weights.shape[:3], tokens, tokens)
        return weights.gather(4, index)
