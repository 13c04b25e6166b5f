"""The engine on trained weights: the built-in model says what the code that trained it says with the same weights.

The expected tokens are those of `training.evaluate.generate`, which has no cache and no batches of mixed lengths.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.quality import perplexity
from glmserve.llm import LLM
from glmserve.protocol.sampling_params import SamplingParams
from tests.conftest import PROJECT
from training.chats import Chat
from training.evaluate import answer_loss, form_accuracy, rows_of
from training.fixed_requests import read_requests
from training.model import ChatGLM, Shape
from training.quantize import dequantized_state
from training.tokenizer import pieces_of
from training.vocabulary import Vocabulary

EXPECTED: dict[str, list[int]] = json.loads((Path(__file__).with_name("poems_greedy.json")).read_text(encoding="utf-8"))
REQUESTS = [read_requests()[int(index)] for index in EXPECTED]
PAIRS = [json.loads(line) for line in (PROJECT / "benchmarks" / "quality.jsonl").read_text(encoding="utf-8").splitlines()[:24]]
MAX_TOKENS = 220


@pytest.fixture(scope="module")
def llm(demo: Path) -> LLM:
    return LLM(str(demo), device="cpu", dtype="float32", max_num_seqs=16, enable_prefix_caching=False)


@pytest.fixture(scope="module")
def trained(demo: Path) -> ChatGLM:
    """The training code's model with the weights of the folder."""
    config = json.loads((demo / "config.json").read_text(encoding="utf-8"))
    sizes = {"hidden_size": config["hidden_size"], "num_heads": config["num_attention_heads"], "inner_size": config["inner_hidden_size"]}
    model = ChatGLM(Shape(config["vocab_size"], **sizes, num_layers=config["num_layers"]))
    model.load_state_dict(dequantized_state(load_file(demo / "model.safetensors")))
    return model.eval()


@pytest.fixture(scope="module")
def expected_perplexity(demo: Path, trained: ChatGLM) -> float:
    vocabulary = Vocabulary(pieces_of((demo / "ice_text.model").read_bytes()))
    rows = rows_of([Chat(pair["prompt"], pair["answer"]) for pair in PAIRS], vocabulary)
    nats, count = answer_loss(trained, rows, 2, torch.device("cpu"))
    return math.exp(nats / count)


def test_greedy_answers_are_those_of_the_training_code(llm: LLM) -> None:
    results = llm.generate([request.prompt for request in REQUESTS], SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS), use_tqdm=False)
    for request, result in zip(REQUESTS, results, strict=True):
        answer = result.outputs[0]
        assert list(answer.token_ids) == EXPECTED[str(read_requests().index(request))], request.query
        assert answer.finish_reason == "stop"
    right, total = form_accuracy(REQUESTS, [result.outputs[0].text for result in results])["all"]
    assert right / total >= 0.9


def test_perplexity_is_that_of_the_training_code(llm: LLM, expected_perplexity: float) -> None:
    assert perplexity(llm, PAIRS) == pytest.approx(expected_perplexity, rel=1e-4)


def test_perplexity_in_bfloat16_is_close(demo: Path, expected_perplexity: float) -> None:
    half = LLM(str(demo), device="cpu", dtype="bfloat16", max_num_seqs=16)
    assert perplexity(half, PAIRS) == pytest.approx(expected_perplexity, rel=1e-2)
