"""Floors of ChatGLM-6B's shape against figures that were computed apart from this code, from the same rates."""

from __future__ import annotations

import pytest

from glmserve.models.chatglm.spec import spec_from_config
from glmserve.models.floor import Chip, StepCosts, Workload, floor_of, head_bytes, head_values, layer_bytes, layer_values

SPEC = spec_from_config({"vocab_size": 130528, "hidden_size": 4096, "num_layers": 28, "num_attention_heads": 32})
BF16, FP8 = Chip("H200", 4.2e12, 736e12), Chip("H200", 4.2e12, 1369e12)


def test_weights_read_in_one_step() -> None:
    assert 2 * (layer_values(SPEC) + head_values(SPEC)) == pytest.approx(12.34e9, rel=0.001)


@pytest.mark.parametrize(
    ("num_prompts", "input_len", "output_len", "bf16", "fp8"),
    [
        (1, 128, 256, 337, 675),
        (8, 128, 256, 2_490, 4_970),
        (32, 64, 128, 8_880, 17_660),
        (64, 128, 256, 12_300, 24_400),
        (256, 128, 256, 19_150, 37_000),
        (1024, 128, 128, 18_950, 36_250),
    ],
)
def test_output_tokens_a_second(num_prompts: int, input_len: int, output_len: int, bf16: float, fp8: float) -> None:
    workload = Workload("", num_prompts, input_len, output_len)
    tokens = num_prompts * output_len
    assert tokens / floor_of(workload, SPEC, BF16).seconds == pytest.approx(bf16, rel=0.01)
    assert tokens / floor_of(workload, SPEC, FP8, weight_bytes=1, kv_bytes=1).seconds == pytest.approx(fp8, rel=0.01)


def test_a_decode_step_reads_each_matrix_once_and_each_request_s_own_keys_and_values() -> None:
    costs = StepCosts(SPEC, layer_bytes(SPEC, 2), head_bytes(SPEC, 2), kv_bytes=2)
    one, many = costs.decode(1, 100), costs.decode(32, 3200)
    token_bytes = 2 * 28 * 4096 * 2
    assert one.read_bytes == pytest.approx(12.34e9 + 100 * token_bytes, rel=0.001)
    assert many.read_bytes - one.read_bytes == 3100 * token_bytes
    assert (one.write_bytes, many.write_bytes) == (token_bytes, 32 * token_bytes)
    assert many.flops == 32 * one.flops
    assert one.flops == pytest.approx(12.34e9 + 4 * 28 * 4096 * 100, rel=0.001)


def test_a_prefill_step_needs_scores_where_it_samples_and_pairs_by_who_sees_whom() -> None:
    costs = StepCosts(SPEC, layer_bytes(SPEC, 2), head_bytes(SPEC, 2), kv_bytes=1)
    pair, token = 4 * 28 * 4096, 2 * layer_values(SPEC)
    whole, causal, later, both = (costs.prefill([chunk], 0) for chunk in ((0, 10, 10), (0, 10, 0), (90, 10, 0), (0, 10, 8)))
    assert (whole.flops - 10 * token, causal.flops - 10 * token, later.flops - 10 * token) == (100 * pair, 55 * pair, 955 * pair)
    assert both.flops - 10 * token == (8 * 8 + 9 + 10) * pair
    assert whole.read_bytes == layer_bytes(SPEC, 2) and later.read_bytes - causal.read_bytes == 90 * 2 * 28 * 4096
    assert whole.write_bytes == 10 * 2 * 28 * 4096
    sampling, head = costs.prefill([(0, 10, 10)], 1), 2 * head_values(SPEC)
    assert (sampling.flops - whole.flops, sampling.read_bytes - whole.read_bytes) == (head, head_bytes(SPEC, 2))
    together = costs.prefill([(0, 10, 10), (90, 10, 0)], 0)
    assert together.flops == whole.flops + later.flops and together.read_bytes == later.read_bytes
