"""The inputs of the step that measures memory are those of a real prefill step, at the null block."""

from __future__ import annotations

import pytest
import torch

from glmserve.runner.profiling import _prefill
from tests.engine.golden import make_engine
from tests.models.tiny import FIXTURES


@pytest.mark.parametrize("name", ["chatglm-tiny", "llama-tiny"])
def test_the_largest_step_is_whole_prompts_that_a_model_can_run(name: str) -> None:
    engine = make_engine(FIXTURES / name, device="cpu", dtype="float32", num_kv_blocks=40)
    model, caches = engine.runner.model, engine.runner.pool.caches
    with torch.inference_mode():
        token_ids, metadata = _prefill(model, engine.spec, [20, 17], 16, torch.device("cpu"))
        hidden = model(token_ids, metadata, caches)
    assert hidden.shape == (37, engine.spec.hidden_size) and hidden.isfinite().all()
    assert metadata.whole and not metadata.padded and metadata.max_query_len == 20
    assert metadata.query_starts is not None and metadata.query_starts.tolist() == [0, 20, 37]
    assert not metadata.slot_mapping.div(16, rounding_mode="floor").any(), "all in the null block"
