"""The memory behind the K/V blocks: one allocation, made once, for all layers."""

from __future__ import annotations

import torch

from glmserve.layers.attention import LayerCache
from glmserve.models.spec import ModelSpec
from glmserve.runner.sending import sent

_BLOCKS_AT_ONCE = 16  # 117 MB of ChatGLM-6B's in 16 bits


class KVPool:
    """`num_blocks` blocks of `block_size` tokens in every layer.

    On a GPU the numbers of one head and block lie together, so that a decode program reads whole pages; on a CPU those of one token do,
    so that a sequence of neighbouring blocks is a view.  Either way `caches` shows [num_blocks, block_size, num_kv_heads, head_dim].
    `dtype` may be float8_e4m3fn: K and V are then stored as they are (scale 1), numbers beyond its 448 as that.
    """

    def __init__(self, spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> None:
        heads, dim = spec.num_kv_heads, spec.head_dim
        by_head = device.type == "cuda"
        inner = (heads, block_size, dim) if by_head else (block_size, heads, dim)
        self.blocks = torch.empty((spec.num_layers, 2, num_blocks, *inner), dtype=dtype, device=device)
        # Not every device copies and fills 8-bit floats, but all do bytes.
        self._raw = self.blocks.view(torch.uint8) if dtype.itemsize == 1 else self.blocks
        self._raw[:, :, 0].zero_()  # padding rows read the null block, and a NaN there would spread
        views = self.blocks.transpose(3, 4) if by_head else self.blocks
        self.caches = [LayerCache(views[layer, 0], views[layer, 1]) for layer in range(spec.num_layers)]
        self.num_blocks = num_blocks
        self.block_size = block_size

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pool."""
        return self.blocks.nbytes

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole blocks in all layers, (source, destination) each; all sources are read as they were before.

        Many are copied some layers at a time: what is read takes memory that nobody has counted.
        """
        sources, destinations = sent(pairs, self.blocks.device).unbind(dim=1)
        for layers in self._raw.split(max(1, len(self._raw) * _BLOCKS_AT_ONCE // len(pairs))):
            layers[:, :, destinations] = layers[:, :, sources]


def bytes_per_block(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers."""
    return spec.kv_values_per_token * block_size * dtype.itemsize
