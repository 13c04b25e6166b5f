"""A prefill step as numbers: each token's id, slot and positions, whatever the chunks are."""

from __future__ import annotations

import pytest

from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.runner.input_batch import prefill_arrays
from glmserve.scheduler.batch import PrefillChunk
from glmserve.scheduler.request import Request
from tests.scheduler.simulation import BOS, GMASK, MASK, spec_of

BLOCK_SIZE = 4


def request_of(name: str, token_ids: list[int], first_block: int, attention: str) -> Request:
    request = Request(EngineRequest(name, token_ids, SamplingParams(), 0.0), spec_of(attention), 100, 1)
    request.block_ids = list(range(first_block, first_block + 9))[::-1]
    return request


@pytest.mark.parametrize("attention,axes", [("prefix", 2), ("causal", 1)])
@pytest.mark.parametrize("num_soft_tokens", [0, 3])
def test_every_token_has_its_own_numbers(attention: str, axes: int, num_soft_tokens: int) -> None:
    whole = request_of("whole", [11, 12, 13, GMASK, BOS], 1, attention)
    begun = request_of("begun", [21, MASK, 23, 24, 25, 26, BOS, 28, 29, 30], 20, attention)
    later = request_of("later", [GMASK, *range(31, 45), BOS, 50, 51], 40, attention)
    chunks = [PrefillChunk(whole, 0, 5), PrefillChunk(begun, 0, 7), PrefillChunk(later, 6, 11), PrefillChunk(begun, 7, 3)]
    arrays = prefill_arrays(chunks, BLOCK_SIZE, axes, num_soft_tokens)
    expected = []
    for chunk in chunks:
        for index in range(chunk.start, chunk.start + chunk.length):
            block, within = divmod(num_soft_tokens + index, BLOCK_SIZE)
            slot = chunk.request.block_ids[block] * BLOCK_SIZE + within
            expected.append([chunk.request.token_ids[index], slot, *chunk.request.positions_of(index)[:axes]])
    assert arrays.tokens.tolist() == expected
    assert arrays.query_lens == [5, 7, 11, 3]
    assert arrays.seq_lens == [num_soft_tokens + end for end in (5, 7, 17, 10)]
    assert arrays.context_lens == [num_soft_tokens + chunk.request.context_len for chunk in chunks]
    assert arrays.tables == [chunk.request.block_ids for chunk in chunks]
    assert not arrays.whole
