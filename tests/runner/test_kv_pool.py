"""Copies of K/V blocks: all at once, however many."""

from __future__ import annotations

import pytest
import torch

from glmserve.runner import kv_pool
from tests.runner.sampling import spec_of


@pytest.mark.parametrize("num_pairs", [1, 16, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_all_sources_are_read_as_they_were(num_pairs: int, dtype: torch.dtype) -> None:
    pool = kv_pool.KVPool(spec_of("chatglm"), 100, 4, dtype, torch.device("cpu"))
    pool.blocks.copy_(torch.randn(pool.blocks.shape).to(dtype))
    before = pool.blocks.float().clone()
    pairs = [(number, number + 1) for number in range(1, num_pairs + 1)]  # each destination is the next one's source
    pool.copy_blocks(pairs)
    after = pool.blocks.float()
    assert torch.equal(after[:, :, 2 : num_pairs + 2], before[:, :, 1 : num_pairs + 1])
    assert torch.equal(after[:, :, num_pairs + 2 :], before[:, :, num_pairs + 2 :])
