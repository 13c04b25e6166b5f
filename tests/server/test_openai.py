"""OpenAI's protocol, asked through the official client."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from tests.server.conftest import ANSWER
from tests.server.serving import MODEL, ServerInThread, chat_body

MESSAGES = [{"role": "user", "content": "你好"}]


@pytest.fixture
def api(fast: ServerInThread) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{fast.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def answer(fast: ServerInThread) -> str:
    """What chat makes of ANSWER: full-width marks beside Chinese."""
    return fast.http.post("/chat", json={"prompt": "你好"}).json()["response"]


def test_chat_gives_text_usage_and_reason(api: openai.OpenAI, fast: ServerInThread, answer: str, answer_ids: tuple[int, ...]) -> None:
    completion = api.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert completion.choices[0].message.content == answer
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == MODEL and completion.system_fingerprint
    assert completion.usage.prompt_tokens == fast.count_texts(["你好"])
    assert completion.usage.completion_tokens == len(answer_ids)
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + len(answer_ids)
    assert completion.usage.prompt_tokens_details.cached_tokens == 0


def test_chat_post_processes_the_answer(answer: str) -> None:
    assert answer.replace(" ", "") == "你好！我是人工智能助手，很高兴见到你."


def test_streamed_chat_is_the_same_text(api: openai.OpenAI, answer: str) -> None:
    chunks = list(api.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_ends_with_usage_when_asked(api: openai.OpenAI, answer_ids: tuple[int, ...]) -> None:
    chunks = list(api.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(answer_ids)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_is_events_ended_by_done(fast: ServerInThread) -> None:
    response = fast.http.post("/v1/chat/completions", json=chat_body(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]"
    for event in events:
        assert json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_several_choices(api: openai.OpenAI, answer: str) -> None:
    whole = api.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, seed=7)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert {choice.message.content for choice in whole.choices} == {answer}
    texts = ["", "", ""]
    for chunk in api.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [answer] * 3


def test_max_tokens_ends_with_length(api: openai.OpenAI) -> None:
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        completion = api.chat.completions.create(model=MODEL, messages=MESSAGES, **limit)
        assert completion.choices[0].finish_reason == "length"
        assert completion.usage.completion_tokens == 2


def test_without_max_tokens_the_model_length_ends_it(fast: ServerInThread) -> None:
    completion = fast.http.post("/v1/chat/completions", json=chat_body(ignore_eos=True)).json()
    assert completion["choices"][0]["finish_reason"] == "length"
    assert completion["usage"]["total_tokens"] == fast.spec.max_model_len


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_cuts_the_text_and_aborts(fast: ServerInThread, stream: bool) -> None:
    body = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "stop": ["助手", "never"], "stream": stream}
    response = fast.http.post("/v1/completions", json=body)
    choices = [json.loads(line[6:])["choices"][0] for line in response.text.split("\n\n") if line.startswith("data: {")] if stream else []
    choices = choices or response.json()["choices"]
    text = "".join(choice["text"] for choice in choices)
    assert text and ANSWER.startswith(text) and "助手" not in text
    assert choices[-1]["finish_reason"] == "stop" and choices[-1]["stop_reason"] == "助手"
    body["include_stop_str_in_output"] = True
    body["stream"] = False
    assert fast.http.post("/v1/completions", json=body).json()["choices"][0]["text"] == text + "助手"


def test_stop_token_is_named(fast: ServerInThread, answer_ids: tuple[int, ...]) -> None:
    body = {"prompt": "x", "max_tokens": 50, "stop_token_ids": [answer_ids[3]]}
    choice = fast.http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] == answer_ids[3]


def test_chat_logprobs(api: openai.OpenAI, fast: ServerInThread, answer_ids: tuple[int, ...]) -> None:
    completion = api.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2, max_tokens=3)
    content = completion.choices[0].logprobs.content
    assert [entry.token for entry in content] == [fast.tokenizer.token_text(token_id) for token_id in answer_ids[:3]]
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in content)
    assert bytes(content[1].bytes) == fast.tokenizer.token_bytes(answer_ids[1])
    streamed = []
    for chunk in api.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2, max_tokens=3, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == content


def test_logprobs_without_top(api: openai.OpenAI) -> None:
    completion = api.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, max_tokens=2)
    assert [entry.top_logprobs for entry in completion.choices[0].logprobs.content] == [[], []]


def test_completion_logprobs_count_offsets(api: openai.OpenAI) -> None:
    completion = api.completions.create(model=MODEL, prompt="x", logprobs=2, max_tokens=4)
    logprobs = completion.choices[0].logprobs
    text = completion.choices[0].text
    for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        assert text[offset:].startswith(token.strip())
    assert logprobs.text_offset == sorted(logprobs.text_offset) and logprobs.text_offset[-1] == len(text) - len(logprobs.tokens[-1])
    assert len(logprobs.token_logprobs) == 4
    assert all(token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True))


def test_completions_of_text_and_of_token_ids(api: openai.OpenAI, fast: ServerInThread) -> None:
    one = api.completions.create(model=MODEL, prompt="你好", max_tokens=50)
    assert one.choices[0].text == ANSWER or one.choices[0].text.strip() == ANSWER
    ids = fast.tokenizer.encode("你好")
    same = api.completions.create(model=MODEL, prompt=ids, max_tokens=50)
    assert same.choices[0].text == one.choices[0].text
    assert same.usage.prompt_tokens == len(ids)
    many = api.completions.create(model=MODEL, prompt=["你好", "再见你好"], n=2, max_tokens=3)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.usage.prompt_tokens == fast.count_texts(["你好", "再见你好"])
    assert api.completions.create(model=MODEL, prompt=[ids, ids], max_tokens=3).usage.prompt_tokens == 2 * len(ids)


def test_completions_default_to_16_tokens(fast: ServerInThread) -> None:
    assert fast.http.post("/v1/completions", json={"prompt": "x", "ignore_eos": True}).json()["usage"]["completion_tokens"] == 16


def test_echo(api: openai.OpenAI, fast: ServerInThread) -> None:
    plain = api.completions.create(model=MODEL, prompt="你好", max_tokens=3).choices[0].text
    assert api.completions.create(model=MODEL, prompt="你好", echo=True, max_tokens=3).choices[0].text == "你好" + plain
    chunks = api.completions.create(model=MODEL, prompt="你好", echo=True, max_tokens=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "你好" + plain


def test_token_ids_are_returned_when_asked(fast: ServerInThread, answer_ids: tuple[int, ...]) -> None:
    body = {"prompt": "你好", "max_tokens": 3, "return_token_ids": True}
    completion = fast.http.post("/v1/completions", json=body).json()
    assert completion["choices"][0]["token_ids"] == list(answer_ids[:3])
    assert completion["prompt_token_ids"] == fast.tokenizer.encode("你好")


def test_content_as_text_parts(fast: ServerInThread) -> None:
    parts = [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1, "user": "me", "metadata": {"a": "b"}}
    assert fast.http.post("/v1/chat/completions", json=body).status_code == 200


def test_models(api: openai.OpenAI, fast: ServerInThread) -> None:
    assert [model.id for model in api.models.list()] == [MODEL]
    assert api.models.retrieve(MODEL).max_model_len == fast.spec.max_model_len
    with pytest.raises(openai.NotFoundError, match="other"):
        api.models.retrieve("other")


def test_tokenize_and_back(fast: ServerInThread) -> None:
    answer = fast.http.post("/tokenize", json={"prompt": "你好, 世界", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == fast.spec.max_model_len
    plain = fast.http.post("/tokenize", json={"prompt": "你好, 世界", "add_special_tokens": False}).json()["tokens"]
    assert answer["tokens"][: len(plain)] == plain and len(plain) < answer["count"]
    assert fast.http.post("/detokenize", json={"tokens": plain}).json()["prompt"].strip() == "你好, 世界"
    chat = fast.http.post("/tokenize", json={"messages": [{"role": "user", "content": "你好"}]}).json()
    assert chat["tokens"] == fast.tokenizer.encode("你好")


def test_request_id_is_honoured_and_made(fast: ServerInThread) -> None:
    response = fast.http.post("/v1/chat/completions", json=chat_body(max_tokens=1), headers={"X-Request-Id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert response.json()["id"] == "chatcmpl-mine-1"
    made = fast.http.post("/v1/chat/completions", json=chat_body(max_tokens=1), headers={"X-Request-Id": "bad id"})
    assert len(made.headers["x-request-id"]) == 32


def test_seed_and_priority_and_extras_are_taken(fast: ServerInThread) -> None:
    extras = {"seed": 1, "priority": -1, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2, "logit_bias": {"5": 1.5}}
    assert fast.http.post("/v1/chat/completions", json=chat_body(max_tokens=3, **extras)).status_code == 200


def test_the_async_client_runs_many_at_once(fast: ServerInThread, answer: str) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{fast.url}/v1", api_key="none") as client:
            calls = [client.chat.completions.create(model=MODEL, messages=MESSAGES) for _ in range(40)]
            return [completion.choices[0].message.content or "" for completion in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == [answer] * 40


def test_docs_show_the_fields_of_a_body(fast: ServerInThread) -> None:
    schema = httpx.get(f"{fast.url}/openapi.json").json()["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert "temperature" in schema["content"]["application/json"]["schema"]["properties"]
