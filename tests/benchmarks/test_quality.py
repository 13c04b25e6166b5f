"""The quality script's perplexity is that of the logits themselves."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.quality import perplexity
from glmserve.llm import LLM
from tests.engine.golden import all_logits
from tests.models.tiny import FIXTURES

PAIRS = [
    {"prompt": "5 9 11 91 94", "answer": "7 8 9"},
    {"prompt": "40 41 91 94", "answer": "60"},
    {"prompt": "91 94", "answer": "1 2 3 4 5 6"},
]
END = 95


class Numbers:
    """A tokenizer for the fixture model, whose texts are numbers."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(word) for word in text.split()]


def expected(llm: LLM) -> float:
    nats, count = 0.0, 0
    for pair in PAIRS:
        prompt, answer = Numbers().encode(pair["prompt"]), [*Numbers().encode(pair["answer"]), END]
        scores = torch.from_numpy(all_logits(llm.engine, prompt + answer[:-1])[len(prompt) - 1 :]).double().log_softmax(-1)
        nats -= float(scores[range(len(answer)), answer].sum())
        count += len(answer)
    return math.exp(nats / count)


@pytest.mark.parametrize(
    "settings", [{"max_num_seqs": 2}, {"max_num_seqs": 1}, {"quantization": "int4"}, {"num_kv_blocks": 8, "block_size": 4}]
)
def test_fed_answers_cost_what_their_logits_say(monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]) -> None:
    settings = {"num_kv_blocks": 40, "max_model_len": 24, **settings}
    llm = LLM(str(FIXTURES / "chatglm-tiny"), device="cpu", dtype="float32", skip_tokenizer_init=True, **settings)
    monkeypatch.setattr(llm, "get_tokenizer", Numbers)
    assert perplexity(llm, PAIRS) == pytest.approx(expected(llm), rel=1e-5)
