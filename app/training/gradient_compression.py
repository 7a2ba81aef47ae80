"""Gradients of the backbone cross the network in half precision; sums are half precision too, weights are not."""

# No `from __future__ import annotations` here: DDP looks at the hook's annotations.
import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future


def compressed_all_reduce(dtype: torch.dtype, bucket: dist.GradBucket) -> Future[Tensor]:
    """Mean over ranks of a bucket of DDP, as a communication hook whose state is the ``dtype`` on the wire.

    torch's own hook for bfloat16 insists on NCCL; this one runs on every backend that can add the type.
    """
    buffer = bucket.buffer()
    # Divided before the sum: fp16 has no room for the sum of many ranks.
    small = buffer.to(dtype).div_(dist.get_world_size())
    reduced = dist.all_reduce(small, async_op=True).get_future()

    def decompress(done: Future[list[Tensor]]) -> Tensor:
        return buffer.copy_(done.value()[0])

    return reduced.then(decompress)
