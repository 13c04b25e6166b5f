"""From text to text on the recorded model of the released vocabulary: chats, batches, sampling filters, and the older vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from glmserve import LLM, SamplingParams
from glmserve.config import ServerConfig
from glmserve.models.chatglm.spec import OLD_VOCAB_OFFSET, OLD_VOCAB_SIZE
from glmserve.protocol.messages import EngineRequest
from glmserve.scheduler.request import Request
from glmserve.text.chatglm_tokenizer import ChatGLMTokenizer
from tests.runner.sampling import sampled_shares

OLD_REVISION_SPECIAL_KEYS = ("mask_token_id", "gmask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def golden(shared: Path, name: str) -> Any:
    return json.loads((shared / f"golden/v1_text/{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that the recorded chats were made with, laid out like a released folder."""
    folder = tmp_path_factory.mktemp("realvocab")
    for source in ("golden/v1/realvocab/config.json", "golden/v1/realvocab/model.safetensors", "tokenizer/ice_text.model"):
        (folder / Path(source).name).symlink_to(shared / source)
    return folder


@pytest.fixture(scope="module")
def old_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as revisions before April 2023 had it: 20,000 rows of image tokens in front, ids not in config.json."""
    old = tmp_path_factory.mktemp("old-vocabulary")
    weights = load_file(folder / "model.safetensors")
    for name in ("transformer.word_embeddings.weight", "lm_head.weight"):
        rows = weights[name]
        weights[name] = np.zeros((OLD_VOCAB_SIZE, rows.shape[1]), rows.dtype)
        weights[name][OLD_VOCAB_OFFSET : OLD_VOCAB_OFFSET + len(rows)] = rows
    save_file(weights, old / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": OLD_VOCAB_SIZE}
    (old / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in OLD_REVISION_SPECIAL_KEYS}))
    (old / "ice_text.model").symlink_to(folder / "ice_text.model")
    return old


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(model=str(folder), device="cpu", max_num_seqs=16, kv_cache_memory_bytes=2**26)


def messages_of(case: dict[str, Any]) -> list[dict[str, str]]:
    turns = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in case["history"]]
    return [*(message for turn in turns for message in turn), {"role": "user", "content": case["query"]}]


def greedy(max_tokens: int, **params: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **params)


def test_chats_from_messages_to_answers(shared: Path, llm: LLM) -> None:
    cases = golden(shared, "chat_cases")
    params = [greedy(case["max_length"] - len(case["input_ids"])) for case in cases]
    for case, result in zip(cases, llm.chat([messages_of(case) for case in cases], params, use_tqdm=False), strict=True):
        assert result.prompt == case["prompt"]
        assert result.prompt_token_ids == case["input_ids"]
        [answer] = result.outputs
        assert answer.token_ids == case["generated_ids"]
        assert answer.text == case["response"]
        assert answer.finish_reason == "length"


def test_chats_that_end_early(shared: Path, llm: LLM) -> None:
    for case in golden(shared, "chat_cases"):
        room = case["max_length"] - len(case["input_ids"])
        short = llm.chat(messages_of(case), greedy(case["max_length_short"] - len(case["input_ids"])), use_tqdm=False)[0].outputs[0]
        assert (short.text, short.finish_reason) == (case["response_short"], "length")
        ending = greedy(room, stop_token_ids=[case["eos_override"]], include_stop_str_in_output=True)  # it decodes to text, unlike <eop>
        stopped = llm.chat(messages_of(case), ending, use_tqdm=False)[0].outputs[0]
        assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == (case["eos_response"], "stop", case["eos_override"])
        assert len(stopped.token_ids) == case["eos_stream_count"] + 1


def test_raw_text_of_prompt_ids(shared: Path, llm: LLM) -> None:
    cases = golden(shared, "chat_cases")
    prompts = [{"prompt_token_ids": case["input_ids"]} for case in cases]
    params = [greedy(len(case["generated_ids"])) for case in cases]
    results = llm.generate(prompts, params, use_tqdm=False)
    assert [result.outputs[0].text for result in results] == [case["raw_decode"] for case in cases]


def test_a_batch_says_what_each_says_alone(shared: Path, llm: LLM, folder: Path) -> None:
    """Also for a text with [MASK], where the original's padded batches go astray."""
    cases = golden(shared, "batch_vs_single")
    tokenizer = ChatGLMTokenizer(folder, llm.spec, allow_special_tokens=True)
    prompts = [{"prompt_token_ids": tokenizer.encode(case["text"])} for case in cases]
    results = llm.generate(prompts, greedy(12), use_tqdm=False)
    assert [result.outputs[0].token_ids for result in results] == [case["tokens_single"] for case in cases]


def test_positions_and_visibility_of_padded_batches(shared: Path, llm: LLM, folder: Path) -> None:
    """There is no padding here; what the original computes for the tokens between its pads is the same."""
    tokenizer = ChatGLMTokenizer(folder, llm.spec, allow_special_tokens=True)
    for batch in golden(shared, "padded_batches"):
        for text, ids, positions, masked in zip(
            batch["texts"], batch["input_ids"], batch["position_ids"], batch["attention_mask_true_means_masked"], strict=True
        ):
            pads = ids.count(llm.spec.pad_token_id)
            request = Request(EngineRequest(text, tokenizer.encode(text), SamplingParams(), 0.0), llm.spec, 2048, seed=0)
            assert request.token_ids == ids[pads:]
            ours = np.array([request.positions_of(index) for index in range(len(request.token_ids))]).T
            if "[MASK]" not in text:  # see test_a_batch_says_what_each_says_alone
                assert (ours == np.array(positions)[:, pads:]).all()
            row, column = np.indices((len(request.token_ids),) * 2)
            visible = (column < request.context_len) | ((row >= request.context_len) & (column <= row))
            assert (visible == (np.array(masked)[0, pads:, pads:] == 0)).all()


def test_the_older_vocabulary(shared: Path, old_folder: Path) -> None:
    """Same texts in and out, every id 20,000 higher."""
    old = LLM(model=str(old_folder), device="cpu", kv_cache_memory_bytes=2**26)
    assert (old.spec.bos_token_id, old.spec.eos_token_ids) == (150004, (150005,))
    cases = golden(shared, "chat_cases")
    params = [greedy(len(case["generated_ids"])) for case in cases]
    for case, result in zip(cases, old.chat([messages_of(case) for case in cases], params, use_tqdm=False), strict=True):
        assert result.prompt_token_ids == [token + OLD_VOCAB_OFFSET for token in case["input_ids"]]
        assert result.outputs[0].token_ids == [token + OLD_VOCAB_OFFSET for token in case["generated_ids"]]
        assert result.outputs[0].text == case["response"]


def test_sampling_filters_leave_what_the_original_leaves(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in golden(shared, "sampling_cases")["sampling"]:
        wanted = {key: value for key, value in case["params"].items() if key not in ("max_length", "do_sample")}
        wanted["top_k"] = case["effective_top_k"]
        shares = sampled_shares(monkeypatch, case["logits"], case["input_ids"], **wanted)
        expected = np.array(case["probs"])
        assert np.abs(shares - expected).max() <= 1.5 / 4096, case["params"]
        assert not shares[expected == 0].any()
        assert np.count_nonzero(expected) == case["kept"]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.95, "top_p": 0.7, "top_k": 50}])
def test_invalid_scores_become_token_5(shared: Path, monkeypatch: pytest.MonkeyPatch, bad: float, params: dict[str, float]) -> None:
    recorded = golden(shared, "sampling_cases")["invalid_score"]
    forced = int(np.argmax(recorded["nan_row"]))
    assert forced == int(np.argmax(recorded["neg_inf_row"])) == 5
    logits = [float(i % 7) for i in range(120)]
    logits[3] = bad
    shares = sampled_shares(monkeypatch, logits, [1], num_draws=16, **params)
    assert shares[forced] == 1.0


def test_default_sampling_is_the_released_one(shared: Path) -> None:
    defaults = ServerConfig()
    assert defaults.default_top_k == golden(shared, "sampling_cases")["generation_config_defaults"]["top_k"]
    assert (defaults.default_max_length, defaults.default_top_p, defaults.default_temperature) == (2048, 0.7, 0.95)
