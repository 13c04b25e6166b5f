"""Prompts become engine requests, engine tokens become deltas, and every answer ends exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from glmserve.client.output_stream import OutputStream
from glmserve.client.supervisor import EngineState
from glmserve.models.catalog import read_spec
from glmserve.observe.http_work import HttpWork
from glmserve.observe.metrics import Metrics
from glmserve.observe.request_log import RequestLog, RequestRecord
from glmserve.protocol.errors import (
    ContextLengthError,
    DeadlineExceededError,
    EngineUnavailableError,
    GlmserveError,
    InvalidRequestError,
    OverloadedError,
)
from glmserve.protocol.messages import EngineRequest, FinishReason, Refusal, RequestOutput
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.text.answer import ChoiceDelta, TextAnswer
from glmserve.text.generator import INLINE_CHARACTERS, GenerationRequest, TextGenerator
from glmserve.text.tokenizer import load_tokenizer

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tokenizer"
SPEC = read_spec(FIXTURE)
TOKENIZER = load_tokenizer(FIXTURE, SPEC)


class ScriptedClient:
    """Stands for the EngineClient: keeps what was submitted, and the test puts the outputs."""

    def __init__(self) -> None:
        self.state = EngineState.READY
        self.ready = None
        self.http_work = HttpWork()
        self.requests: list[EngineRequest] = []
        self.streams: list[OutputStream] = []
        self.aborted: list[str] = []
        self.room = 100

    def submit(self, request: EngineRequest) -> OutputStream:
        if len(self.requests) == self.room:
            raise EngineUnavailableError("the engine is restarting")
        self.requests.append(request)
        self.streams.append(OutputStream(request.request_id, self.aborted.append))
        return self.streams[-1]

    def say(self, index: int, text: str, finish: FinishReason | None = None, error: str | None = None) -> None:
        """Tokens of `text` in one output each."""
        ids = TOKENIZER.encode(text, add_special_tokens=False)
        for position, token_id in enumerate(ids or [None]):
            last = position == max(0, len(ids) - 1)
            tokens = [] if token_id is None else [token_id]
            self.streams[index].put(RequestOutput(self.requests[index].request_id, tokens, finish if last else None, error=error))


class Records(RequestLog):
    """Keeps the records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[RequestRecord] = []

    def write(self, record: RequestRecord) -> None:
        self.records.append(record)


class Setup:
    def __init__(self, first_token_timeout: float = 30.0, request_timeout: float = 60.0) -> None:
        self.client = ScriptedClient()
        self.log = Records()
        self.closed = 0
        self.generator = TextGenerator(
            self.client,  # type: ignore[arg-type]
            TOKENIZER, SPEC, Metrics("m"), self.log, first_token_timeout, request_timeout,
        )  # fmt: skip

    async def start(self, prompts: Sequence[str | list[int]] = ("你好",), max_length: int | None = None, **params: object) -> TextAnswer:
        request = GenerationRequest("r", list(prompts), SamplingParams(**{"max_tokens": None} | params), max_length=max_length)  # type: ignore[arg-type]
        return await self.generator.start(request, on_close=self.count_close)

    def count_close(self) -> None:
        self.closed += 1


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def read(answer: TextAnswer) -> list[ChoiceDelta]:
    async with answer:
        return [delta async for deltas in answer for delta in deltas]


async def test_choices_are_requests_with_seeds_of_their_own(setup: Setup) -> None:
    await setup.start(["你好", "再见"], n=2, seed=5, max_tokens=9)
    requests = setup.client.requests
    assert [request.sampling_params.seed for request in requests] == [5, 6, 5, 6]
    assert [request.sampling_params.n for request in requests] == [1] * 4
    assert [request.prompt_token_ids for request in requests] == [TOKENIZER.encode(text) for text in ("你好", "你好", "再见", "再见")]
    assert len({request.request_id for request in requests}) == 4


async def test_the_same_request_id_twice_is_two_engine_requests(setup: Setup) -> None:
    await setup.start()
    await setup.start()
    assert len({request.request_id for request in setup.client.requests}) == 2


async def test_max_tokens_fills_the_model_or_max_length(setup: Setup) -> None:
    num_prompt = len(TOKENIZER.encode("你好"))
    await setup.start()
    await setup.start(max_length=num_prompt + 3)
    await setup.start(max_length=10**6)
    assert [request.sampling_params.max_tokens for request in setup.client.requests] == [
        SPEC.max_model_len - num_prompt, 3, SPEC.max_model_len - num_prompt,
    ]  # fmt: skip


@pytest.mark.parametrize(("prompt", "more", "param"), [
    ("你好" * 2000, {}, "prompt"), ("你好", {"max_tokens": 512}, "max_tokens"), ("你好", {"max_length": 2}, "max_length"),
])  # fmt: skip
async def test_what_does_not_fit_is_refused_before_the_engine(setup: Setup, prompt: str, more: dict[str, int], param: str) -> None:
    with pytest.raises(ContextLengthError) as caught:
        await setup.start([prompt], **more)
    assert caught.value.param == param
    assert setup.client.requests == [] and setup.closed == 0


async def test_bad_token_ids(setup: Setup) -> None:
    for prompt in ([], [SPEC.vocab_size], [5, 6]):
        with pytest.raises(InvalidRequestError):
            await setup.start([prompt])


async def test_long_texts_leave_the_event_loop(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    threads: list[str] = []
    encode = TOKENIZER.encode

    def noted(text: str) -> list[int]:
        threads.append(threading.current_thread().name)
        return encode(text)

    monkeypatch.setattr(TOKENIZER, "encode", noted)
    await setup.generator.encode("短")
    await setup.generator.encode("长" * (INLINE_CHARACTERS + 1))
    assert threads[0] == threading.main_thread().name and threads[1].startswith("tokenizer")


async def test_admission_sees_the_true_size_and_may_refuse(setup: Setup) -> None:
    seen: list[tuple[int, int]] = []

    def refuse(num_requests: int, num_tokens: int) -> None:
        seen.append((num_requests, num_tokens))
        raise OverloadedError("full")

    with pytest.raises(OverloadedError):
        await setup.generator.start(GenerationRequest("r", ["你好"], SamplingParams(n=3)), refuse)
    assert seen == [(3, len(TOKENIZER.encode("你好")))]
    assert setup.client.requests == []


async def test_an_engine_that_leaves_half_way_through_submitting(setup: Setup) -> None:
    setup.client.room = 2
    with pytest.raises(EngineUnavailableError):
        await setup.start(n=4)
    assert len(setup.client.aborted) == 2


async def test_deltas_join_to_the_text(setup: Setup) -> None:
    answer = await setup.start()
    setup.client.say(0, "你好, 世界")
    setup.client.say(0, "再见", FinishReason.STOP)
    deltas = await read(answer)
    assert "".join(delta.text for delta in deltas).replace(" ", "") == "你好,世界再见"
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [FinishReason.STOP]
    assert answer.usage.completion_tokens == len([token for delta in deltas for token in delta.token_ids])
    assert setup.closed == 1 and setup.log.records[0].status == 200 and setup.client.aborted == []


async def test_what_is_ready_together_comes_together(setup: Setup) -> None:
    answer = await setup.start()
    setup.client.say(0, "你好世界你好世界")
    setup.client.say(0, "再见", FinishReason.STOP)
    assert len(await read(answer)) == 1


async def test_choices_run_side_by_side(setup: Setup) -> None:
    answer = await setup.start(n=2)
    setup.client.say(1, "世界", FinishReason.LENGTH)
    setup.client.say(0, "你好", FinishReason.STOP)
    texts = {delta.index: delta.text for delta in await read(answer)}
    assert {index: text.strip() for index, text in texts.items()} == {0: "你好", 1: "世界"}
    assert answer.usage.prompt_tokens == len(TOKENIZER.encode("你好"))
    assert setup.closed == 1


@pytest.mark.parametrize("n", [1, 2])
async def test_a_stop_string_aborts_the_engine_request(setup: Setup, n: int) -> None:
    answer = await setup.start(n=n, stop=["世界"])
    for index in range(n):
        setup.client.say(index, "你好世界再见再见")
    deltas = await read(answer)
    assert [delta.stop_reason for delta in deltas if delta.finish_reason] == ["世界"] * n
    assert "".join(delta.text for delta in deltas).strip().replace(" ", "") == "你好" * n
    assert len(setup.client.aborted) == n
    counted = answer.usage.completion_tokens
    assert counted < n * len(TOKENIZER.encode("你好世界再见再见", add_special_tokens=False))


@pytest.mark.parametrize("finish", [FinishReason.ERROR, FinishReason.ABORT])
async def test_an_engine_that_gives_up_is_an_error(setup: Setup, finish: FinishReason) -> None:
    answer = await setup.start(n=2)
    setup.client.say(0, "你好")
    setup.client.say(1, "", finish, "out of luck")
    with pytest.raises(GlmserveError, match="out of luck"):
        await read(answer)
    assert len(setup.client.aborted) == 1  # the other one
    assert setup.closed == 1
    assert {choice.finish_reason for choice in setup.log.records[0].choices} == {FinishReason.ERROR, finish}


@pytest.mark.parametrize(("refusal", "kind"), [(Refusal.INVALID, InvalidRequestError), (Refusal.DRAINING, EngineUnavailableError)])
async def test_what_the_engine_refuses_is_no_fault_of_the_server(setup: Setup, refusal: Refusal, kind: type[GlmserveError]) -> None:
    answer = await setup.start()
    setup.client.streams[0].put(
        RequestOutput(setup.client.requests[0].request_id, [], FinishReason.ERROR, error="not now", refusal=refusal)
    )
    with pytest.raises(kind, match="not now"):
        await read(answer)


async def test_a_lost_engine_is_503(setup: Setup) -> None:
    answer = await setup.start()
    setup.client.state = EngineState.RESTARTING
    setup.client.say(0, "", FinishReason.ERROR, "killed by signal 9")
    with pytest.raises(EngineUnavailableError, match="signal 9"):
        await read(answer)


@pytest.mark.parametrize("says_something", [False, True])
async def test_deadlines_abort(says_something: bool) -> None:
    setup = Setup(first_token_timeout=0.05, request_timeout=0.1)
    answer = await setup.start()
    if says_something:
        setup.client.say(0, "你好")
    with pytest.raises(DeadlineExceededError, match=r"0\.1 s" if says_something else r"0\.05 s"):
        await read(answer)
    assert len(setup.client.aborted) == 1 and setup.closed == 1
    assert setup.log.records[0].status == 504
    assert setup.log.records[0].choices[0].finish_reason is FinishReason.TIMEOUT


@pytest.mark.parametrize("n", [1, 3])
async def test_cancelling_the_reader_aborts(setup: Setup, n: int) -> None:
    answer = await setup.start(n=n)
    reading = asyncio.create_task(read(answer))
    await asyncio.sleep(0)
    setup.client.say(0, "你好")
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert len(setup.client.aborted) == n and setup.closed == 1
    assert setup.log.records[0].status == 499


async def test_leaving_early_aborts_and_closing_twice_is_harmless(setup: Setup) -> None:
    answer = await setup.start()
    async with answer:
        pass
    answer.close()
    assert len(setup.client.aborted) == 1 and setup.closed == 1 and len(setup.log.records) == 1


async def test_an_answer_never_entered_can_be_closed(setup: Setup) -> None:
    answer = await setup.start()
    answer.close()
    assert len(setup.client.aborted) == 1 and setup.closed == 1
