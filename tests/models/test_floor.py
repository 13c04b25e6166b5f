"""Floors of ChatGLM-6B's shape against figures that were computed apart from this code, from the same rates."""

from __future__ import annotations

import pytest

from glmserve.models.chatglm.spec import spec_from_config
from glmserve.models.floor import Chip, Workload, floor_of, head_values, layer_values

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
