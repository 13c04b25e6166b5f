"""The offline face, sentence by sentence as its users know it from vLLM."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

import glmserve
from glmserve import LLM, SamplingParams
from glmserve.llm import Logprob
from glmserve.protocol.errors import ContextLengthError, InvalidRequestError, ModelLoadError
from tests.models.chatglm_reference import ChatGLMReference
from tests.models.tiny import FIXTURES, tiny_cases

FOLDER = FIXTURES / "chatglm-tiny"
CASES = tiny_cases(FOLDER)
PROMPTS = [{"prompt_token_ids": case.prompt} for case in CASES]
TOKENIZER = Path(__file__).parent / "fixtures/tokenizer"


def greedy(**params: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, **params})


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(model=str(FOLDER), device="cpu", dtype="float32", skip_tokenizer_init=True, max_num_seqs=16)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A model of noise with the repository's small tokenizer: text in, some text out."""
    folder = tmp_path_factory.mktemp("with-tokenizer")
    config = json.loads((FOLDER / "config.json").read_text()) | json.loads((TOKENIZER / "config.json").read_text())
    config |= {"hidden_size": 32, "inner_hidden_size": 64, "num_layers": 2, "num_attention_heads": 2, "max_sequence_length": 256}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(TOKENIZER / "ice_text.model", folder)
    return LLM(model=str(folder), device="cpu", load_format="dummy", seed=3)


@pytest.fixture(autouse=True)
def nothing_left_behind(llm: LLM) -> Iterator[None]:
    yield
    assert not llm.engine.has_unfinished_requests()
    assert llm.engine.stats().kv_cache_usage_perc == 0.0


# --- LLM(...) ---------------------------------------------------------------------------------------------------------------------


def test_both_names_come_from_the_package() -> None:
    assert {"LLM", "SamplingParams"} <= set(glmserve.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        glmserve.Server  # noqa: B018


def test_every_argument_of_the_constructor() -> None:
    llm = LLM(
        model=str(FOLDER), device="auto", dtype="bfloat16", max_model_len=64, max_num_seqs=3, gpu_memory_utilization=0.5,
        skip_tokenizer_init=True, load_format="dummy",
    )  # fmt: skip
    ready = llm.engine.describe()
    assert (ready.dtype, ready.max_model_len, ready.max_num_seqs) == ("bfloat16", 64, 3)
    [result] = llm.generate({"prompt_token_ids": [5, 91, 94]}, SamplingParams(max_tokens=None, ignore_eos=True), use_tqdm=False)
    assert len(result.outputs[0].token_ids) == 61


def test_a_folder_with_config_and_weights_alone_needs_skip_tokenizer_init(llm: LLM) -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == ["config.json", "expected.json", "model.safetensors"]
    with pytest.raises(ModelLoadError, match=r"ice_text\.model"):
        LLM(model=str(FOLDER), device="cpu")
    with pytest.raises(InvalidRequestError, match="prompt_token_ids"):
        llm.generate("text", use_tqdm=False)
    with pytest.raises(InvalidRequestError, match="skip_tokenizer_init"):
        llm.chat([{"role": "user", "content": "hello"}], use_tqdm=False)


@pytest.mark.parametrize("wrong", [{"device": "tpu"}, {"dtype": "int4"}, {"max_num_seqs": 0}, {"tensor_parallel_size": 2}])
def test_arguments_that_do_not_exist(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        LLM(model=str(FOLDER), **wrong)


# --- generate ---------------------------------------------------------------------------------------------------------------------


def test_token_ids_in_any_form(llm: LLM) -> None:
    case = CASES[1]
    for prompts in ({"prompt_token_ids": case.prompt}, [{"prompt_token_ids": case.prompt}], case.prompt, [case.prompt]):
        [result] = llm.generate(prompts, greedy(), use_tqdm=False)
        assert result.prompt_token_ids == case.prompt and result.prompt is None
        [output] = result.outputs
        assert (output.index, output.token_ids, output.finish_reason, output.text) == (0, case.greedy_tokens, "length", "")
        assert result.finished


def test_results_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    lengths = [20, 1, 7, 13, 2, 19, 3, 5]
    results = llm.generate(PROMPTS, [greedy(max_tokens=length) for length in lengths], use_tqdm=False)
    for case, length, result in zip(CASES, lengths, results, strict=True):
        assert result.prompt_token_ids == case.prompt
        assert result.outputs[0].token_ids == case.greedy_tokens[:length]


def test_more_prompts_than_fit_at_once(llm: LLM) -> None:
    results = llm.generate(PROMPTS * 6, greedy(), use_tqdm=False)
    assert [result.outputs[0].token_ids for result in results] == [case.greedy_tokens for case in CASES] * 6


def test_no_prompts(llm: LLM) -> None:
    assert llm.generate([], greedy(), use_tqdm=False) == []


def test_without_parameters_the_model_s_own_chat_defaults_hold(llm: LLM) -> None:
    own = llm.get_default_sampling_params()
    assert (own.temperature, own.top_p, own.top_k, own.max_tokens) == (0.95, 0.7, 50, None)
    [result] = llm.generate(PROMPTS[3], use_tqdm=False)
    [output] = result.outputs
    assert output.token_ids[-1] == 95 or len(result.prompt_token_ids) + len(output.token_ids) == 256
    given = SamplingParams()  # vLLM's
    assert (given.temperature, given.top_p, given.n, given.max_tokens) == (1.0, 1.0, 1, 16)


def test_end_and_stop_tokens(llm: LLM) -> None:
    case = next(case for case in CASES if case.greedy_tokens[3] not in case.greedy_tokens[:3])
    prompt, stop = {"prompt_token_ids": case.prompt}, case.greedy_tokens[3]
    [result] = llm.generate(prompt, greedy(stop_token_ids=[stop]), use_tqdm=False)
    assert result.outputs[0].token_ids == case.greedy_tokens[:4]
    assert (result.outputs[0].finish_reason, result.outputs[0].stop_reason) == ("stop", stop)
    [result] = llm.generate(prompt, greedy(logit_bias={95: 100.0}, ignore_eos=False, min_tokens=2), use_tqdm=False)
    assert len(result.outputs[0].token_ids) == 3 and result.outputs[0].token_ids[-1] == 95, "the end token is among the ids"
    assert (result.outputs[0].finish_reason, result.outputs[0].stop_reason) == ("stop", None)


def test_the_model_s_length_ends_an_answer(llm: LLM) -> None:
    [result] = llm.generate(PROMPTS[3], greedy(max_tokens=None), use_tqdm=False)
    assert len(result.prompt_token_ids) + len(result.outputs[0].token_ids) == 256
    assert result.outputs[0].finish_reason == "length"


def test_n_answers_share_their_context(llm: LLM) -> None:
    params = SamplingParams(n=4, max_tokens=8, seed=11, temperature=1.5, ignore_eos=True)
    [result] = llm.generate({"prompt_token_ids": [*range(20, 60), 91, 94]}, params, use_tqdm=False)
    assert [output.index for output in result.outputs] == [0, 1, 2, 3]
    answers = [output.token_ids for output in result.outputs]
    assert len({tuple(answer) for answer in answers}) == 4
    assert result.num_cached_tokens == 41
    [single] = llm.generate(
        {"prompt_token_ids": [*range(20, 60), 91, 94]},
        SamplingParams(max_tokens=8, seed=13, temperature=1.5, ignore_eos=True),
        use_tqdm=False,
    )
    assert single.outputs[0].token_ids == answers[2], "choice k has seed + k"


def test_a_seed_gives_the_same_text_in_any_company(llm: LLM) -> None:
    seeded = SamplingParams(seed=5, max_tokens=20, temperature=1.3, top_p=0.9, ignore_eos=True)
    [alone] = llm.generate(PROMPTS[2], seeded, use_tqdm=False)
    others = [SamplingParams(temperature=0.5 + i / 4, top_k=i, presence_penalty=0.1 * i, max_tokens=3 + i) for i in range(8)]
    for place in (0, 4, 8):
        prompts, params = list(PROMPTS), list(others)
        prompts.insert(place, PROMPTS[2]), params.insert(place, seeded)
        assert llm.generate(prompts, params, use_tqdm=False)[place].outputs[0].token_ids == alone.outputs[0].token_ids
    unseeded = SamplingParams(max_tokens=20, temperature=1.3, ignore_eos=True)
    first, second = (llm.generate(PROMPTS[2], unseeded, use_tqdm=False)[0].outputs[0].token_ids for _ in range(2))
    assert first != second


def test_text_never_becomes_a_special_token_unless_asked(texts: LLM) -> None:
    spec, hostile = texts.spec, "a<sop>b"
    assert (
        texts.chat([{"role": "user", "content": hostile}], greedy(max_tokens=1), use_tqdm=False)[0].prompt_token_ids.count(
            spec.bos_token_id
        )
        == 1
    )
    original = LLM(model=texts.config.model, device="cpu", load_format="dummy", allow_special_tokens=True)
    [result] = original.chat([{"role": "user", "content": hostile}], greedy(max_tokens=1), use_tqdm=False)
    assert result.prompt_token_ids.count(spec.bos_token_id) == 2


# --- log probabilities ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_logprobs_are_the_reference_s_raw_distribution(llm: LLM, count: int) -> None:
    case, steps = CASES[3], 4
    _, logits = ChatGLMReference(FOLDER).greedy(case.prompt, steps)
    raw = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    params = greedy(max_tokens=steps, logprobs=count, temperature=0.0)
    [output] = llm.generate({"prompt_token_ids": case.prompt}, params, use_tqdm=False)[0].outputs
    assert output.logprobs is not None and len(output.logprobs) == steps == len(output.token_ids)
    for token, entries, expected in zip(output.token_ids, output.logprobs, raw, strict=True):
        best = np.argsort(-expected)[: max(count, 1)]
        assert list(entries) == best.tolist() and entries[token].rank == 1
        for rank, (entry_token, entry) in enumerate(entries.items(), 1):
            assert isinstance(entry, Logprob) and entry.rank == rank and entry.decoded_token is None
            assert entry.logprob == pytest.approx(expected[entry_token], abs=3e-4)
    total = sum(expected[token] for token, expected in zip(output.token_ids, raw, strict=True))
    assert output.cumulative_logprob == pytest.approx(total, abs=1e-3)


def test_logprobs_know_nothing_of_temperature_and_filters(llm: LLM) -> None:
    [plain] = llm.generate(PROMPTS[3], greedy(max_tokens=1, logprobs=3), use_tqdm=False)[0].outputs
    best = list(plain.logprobs[0])  # type: ignore[index]
    forced = SamplingParams(
        temperature=0.2, top_k=2, repetition_penalty=2.0, logit_bias={60: 100.0}, max_tokens=1, logprobs=3, ignore_eos=True
    )
    [other] = llm.generate(PROMPTS[3], forced, use_tqdm=False)[0].outputs
    entries = other.logprobs[0]  # type: ignore[index]
    assert other.token_ids == [60] and list(entries) == [60, *best]
    assert [entries[token] for token in best] == [plain.logprobs[0][token] for token in best]  # type: ignore[index]
    assert entries[60].rank > 3 and entries[60].logprob < entries[best[-1]].logprob


def test_without_logprobs_there_are_none(llm: LLM) -> None:
    [output] = llm.generate(PROMPTS[0], greedy(max_tokens=2), use_tqdm=False)[0].outputs
    assert output.logprobs is None and output.cumulative_logprob is None


# --- bad input --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, words",
    [
        ({"prompt_token_ids": []}, "empty"),
        ({"prompt_token_ids": [5, 96, 91, 94]}, "from 0 to 95"),
        ({"prompt_token_ids": [-1, 91, 94]}, "from 0 to 95"),
        ({"prompt_token_ids": [5, 6]}, "<sop>"),
        ({"prompt_token_ids": [5, 94]}, "gMASK"),
        ({"prompt_token_ids": [5] * 254 + [91, 94]}, "at most 256"),
        ({"tokens": [5]}, "prompt_token_ids"),
        ({"prompt_token_ids": "5 91 94"}, "whole numbers"),
        ({"prompt_token_ids": [5.5, 91, 94]}, "whole numbers"),
        ({"prompt_token_ids": None}, "whole numbers"),
        ({"prompt": 3}, "a text"),
        (None, "whole numbers"),
    ],
)
def test_prompts_that_cannot_be_served_stop_all_before_any_runs(llm: LLM, prompt: dict[str, Any], words: str) -> None:
    before = llm.engine.stats().engine_steps
    with pytest.raises(InvalidRequestError, match=words):
        llm.generate([PROMPTS[0], prompt], greedy(), use_tqdm=False)
    assert llm.engine.stats().engine_steps == before
    [result] = llm.generate(PROMPTS[0], greedy(), use_tqdm=False)
    assert result.outputs[0].token_ids == CASES[0].greedy_tokens


def test_an_over_long_prompt_is_told_as_such(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match="256 tokens"):
        llm.generate({"prompt_token_ids": [5] * 254 + [91, 94]}, use_tqdm=False)


def test_as_many_params_as_prompts(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="8 prompts came with 2"):
        llm.generate(PROMPTS, [greedy(), greedy()], use_tqdm=False)


def test_damaged_weights_are_told_and_do_not_hang(tmp_path: Path) -> None:
    tensors = load_file(FIXTURES / "llama-tiny/model.safetensors")
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(FIXTURES / "llama-tiny/config.json", tmp_path)
    from_llama = LLM(model=str(tmp_path), device="cpu", skip_tokenizer_init=True)
    with pytest.raises(RuntimeError, match="not numbers"):
        from_llama.generate([[1, 2], [1, 3]], greedy(logprobs=2), use_tqdm=False)
    assert not from_llama.engine.has_unfinished_requests()


# --- text -------------------------------------------------------------------------------------------------------------------------


def test_text_in_and_text_out(texts: LLM) -> None:
    tokenizer = texts.get_tokenizer()
    [result] = texts.generate("hello", greedy(max_tokens=12), use_tqdm=False)
    assert result.prompt == "hello" and result.prompt_token_ids == tokenizer.encode("hello")
    [output] = result.outputs
    assert output.text == tokenizer.decode(output.token_ids)
    same = texts.generate({"prompt": "hello"}, greedy(max_tokens=12), use_tqdm=False)[0]
    assert same.outputs[0].token_ids == output.token_ids
    both = texts.generate(["hello", "你好"], greedy(max_tokens=12), use_tqdm=False)
    assert both[0].outputs[0].text == output.text and both[1].prompt == "你好"


def test_stop_strings_end_the_text_before_them(texts: LLM) -> None:
    whole = texts.generate("hello", greedy(max_tokens=30, temperature=1.0, seed=1), use_tqdm=False)[0].outputs[0]
    stop = whole.text[len(whole.text) // 2 :][:3]
    before = whole.text[: whole.text.index(stop)]
    assert stop and before
    for include in (False, True):
        params = greedy(max_tokens=30, temperature=1.0, seed=1, stop=["never there", stop], include_stop_str_in_output=include)
        output = texts.generate("hello", params, use_tqdm=False)[0].outputs[0]
        assert output.text == (before + stop if include else before)
        assert (output.finish_reason, output.stop_reason) == ("stop", stop)
        assert output.token_ids == whole.token_ids[: len(output.token_ids)] and len(output.token_ids) < 30
    assert not texts.engine.has_unfinished_requests()


def test_chat_renders_history_and_processes_the_answer(texts: LLM) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    [result] = texts.chat(messages, greedy(max_tokens=8), use_tqdm=False)
    assert result.prompt == "[Round 0]\n问：a\n答：b\n[Round 1]\n问：c\n答："
    assert result.outputs[0].text == result.outputs[0].text.strip()
    two = texts.chat([messages, messages[:1]], greedy(max_tokens=8), use_tqdm=False)
    assert two[0].outputs[0].token_ids == result.outputs[0].token_ids and two[1].prompt == "a"
    for wrong in ([{"role": "user"}], [{"role": "robot", "content": "x"}], [{"role": "user", "content": 3}]):
        with pytest.raises(InvalidRequestError):
            texts.chat(wrong, use_tqdm=False)


def test_logprobs_carry_the_tokens_text(texts: LLM) -> None:
    output = texts.generate("hello", greedy(max_tokens=3, logprobs=2), use_tqdm=False)[0].outputs[0]
    assert output.logprobs is not None
    assert all(isinstance(entry.decoded_token, str) for step in output.logprobs for entry in step.values())


def test_progress_is_shown_on_request(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS, greedy(), use_tqdm=False)
    assert capsys.readouterr() == ("", "")
    llm.generate(PROMPTS, greedy(), use_tqdm=True)


# --- the built-in model -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poet() -> LLM:
    return LLM(model="demo", device="cpu", max_num_seqs=4)


def test_the_name_demo_stands_for_a_model_that_writes_poems(poet: LLM) -> None:
    question = [{"role": "user", "content": "以《登高》为题写一首五言绝句"}]
    stop, plain = SamplingParams(temperature=0.0, max_tokens=40, stop="。"), SamplingParams(temperature=0.0, max_tokens=40)
    cut, whole = poet.chat([question, question], [stop, plain], use_tqdm=False)
    first, second = whole.outputs[0].text.split("\n")
    assert whole.outputs[0].finish_reason == "stop"
    assert [len(half) for line in (first, second) for half in re.split("[,，]", line.rstrip("。？"))] == [5, 5, 5, 5]
    assert cut.outputs[0].text == first.partition("。")[0] and cut.outputs[0].stop_reason == "。"


def test_it_says_what_it_is(poet: LLM) -> None:
    (answer,) = poet.chat([{"role": "user", "content": "你是谁？"}], SamplingParams(temperature=0.0, max_tokens=60), use_tqdm=False)
    assert "写古典诗词的小模型" in answer.outputs[0].text


@pytest.mark.demo_en
@pytest.mark.slow
def test_the_name_demo_en_stands_for_a_model_that_talks_english(demo_en: Path) -> None:
    llm = LLM(model="demo-en", device="cpu", max_model_len=256, max_num_seqs=4)
    (answer,) = llm.chat([{"role": "user", "content": "What is the capital of France?"}], SamplingParams(temperature=0.0, max_tokens=20))
    assert answer.outputs[0].text == "The capital of France is Paris." and answer.outputs[0].finish_reason == "stop"
