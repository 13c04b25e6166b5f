"""The engine on trained weights: demo-en says what transformers' Llama says with the same folder in float32."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from glmserve import LLM, SamplingParams

pytestmark = [pytest.mark.demo_en, pytest.mark.slow]

NUM_TOKENS = 48
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain in three sentences why the sky is blue.",
    "def fibonacci(n):",
    "List the numbers from 1 to 20.",
    "北京是哪个国家的首都?",
]
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)


@pytest.fixture(scope="module")
def llm(demo_en: Path) -> LLM:
    return LLM(model=str(demo_en), device="cpu", dtype="float32", max_model_len=512, max_num_seqs=16)


@pytest.fixture(scope="module")
def prompts(llm: LLM) -> list[list[int]]:
    """Half of them chat turns, half bare text, of different lengths."""
    tokenizer = llm.get_tokenizer()
    chat = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS[:3]]
    return [chat_ids(llm, text) for text in chat] + [tokenizer.encode(question) for question in QUESTIONS[3:]]


def chat_ids(llm: LLM, text: str) -> list[int]:
    """With special tokens read as such, which the server's own `encode` refuses to do with text from users."""
    return Tokenizer.from_file(str(Path(llm.config.model) / "tokenizer.json")).encode(text).ids


@pytest.fixture(scope="module")
def expected(demo_en: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of transformers, one prompt at a time."""
    model = reference_model(demo_en)
    return [reference_tokens(model, prompt) for prompt in prompts]


def reference_model(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of no concern here
        transformers = pytest.importorskip("transformers", reason="transformers, the second opinion, is not installed")
        transformers.utils.logging.disable_progress_bar()
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def reference_tokens(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False)
    return answer[0, ids.shape[1] :].tolist()


def generated(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    results = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], GREEDY, use_tqdm=False)
    return [result.outputs[0].token_ids for result in results]


def test_each_prompt_alone(llm, prompts, expected):
    assert [generated(llm, [prompt])[0] for prompt in prompts] == expected


def test_all_prompts_in_one_batch(llm, prompts, expected):
    assert generated(llm, prompts) == expected
    assert generated(llm, prompts[::-1]) == expected[::-1]


def test_prompts_split_over_steps_and_cached_prefixes_change_nothing(demo_en, prompts, expected):
    """A token budget smaller than a prompt cuts its prefill; the second time its blocks come from the cache."""
    llm = LLM(model=str(demo_en), device="cpu", dtype="float32", max_model_len=512, max_num_seqs=8, max_num_batched_tokens=16, block_size=4)
    params = SamplingParams(temperature=0.0, max_tokens=8)
    for cached in (False, True):
        results = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        assert [result.outputs[0].token_ids for result in results] == [tokens[:8] for tokens in expected]
        assert all(bool(result.num_cached_tokens) == cached for result in results if len(result.prompt_token_ids) > 8)


def test_it_knows_the_capital_of_france(llm):
    answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}], GREEDY, use_tqdm=False)[0].outputs[0]
    assert answer.text == "The capital of France is Paris."
    assert answer.finish_reason == "stop"


def test_logprobs_are_those_of_transformers(llm, demo_en, prompts):
    model = reference_model(demo_en)
    with torch.inference_mode():
        scores = model(torch.tensor([prompts[0]])).logits[0, -1].log_softmax(-1)
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=5)
    step = llm.generate({"prompt_token_ids": prompts[0]}, params, use_tqdm=False)[0].outputs[0].logprobs[0]
    top = scores.topk(5)
    assert [token for token, entry in sorted(step.items(), key=lambda item: item[1].rank)][:5] == top.indices.tolist()
    for token, entry in step.items():
        assert entry.logprob == pytest.approx(scores[token].item(), abs=3e-4)


def test_the_tokenizer_and_chat_prompt_are_those_of_transformers(llm, demo_en):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="transformers, the second opinion, is not installed")
        reference = transformers.AutoTokenizer.from_pretrained(demo_en)
        for text in [*QUESTIONS, "", "  two  spaces\n\n", "3.14159 २०२६ 👩‍👩‍👧 naïve\t"]:
            assert llm.get_tokenizer().encode(text) == reference(text)["input_ids"], text
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Bye"}]
        ids = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    result = llm.chat(messages, SamplingParams(max_tokens=1), use_tqdm=False)[0]
    assert result.prompt_token_ids == ids
