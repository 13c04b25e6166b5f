"""Why a request took as long as it did: what held it up most, as a code for machines and a sentence for people.

Works on lines of the request log, whether they come from a file or from a running server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from glmserve.observe.request_record import CLIENT_GONE_STATUS, RequestLine
from glmserve.protocol.messages import WaitCause

OWN_WORK = frozenset({"long_prompt", "long_answer", "decode"})  # takes its time also where nothing is wrong
LARGE_SHARE = 0.25  # of the whole time: worth a word
LONG_ANSWER_TOKENS = 200  # fewer, and it is the steps that were slow


class Part(NamedTuple):
    """Seconds that a request spent on one thing, and what to say of it."""

    seconds: float
    cause: str
    sentence: str


class Reason(NamedTuple):
    """Why: a code and a sentence."""

    cause: str
    why: str


def reason_of(line: RequestLine) -> Reason:
    """What held a request up, else its longest part; how it ended where it did not end well.  The sentence names every large part."""
    if line.status == CLIENT_GONE_STATUS:
        written = "before its first token" if line.first_token_seconds is None else f"with {_tokens(line.completion_tokens)} written"
        return Reason("client_gone", f"the client went away after {_span(line.e2e_seconds)}, {written}")
    if line.status >= 400:
        words = line.error or f"it ended with status {line.status}"
        return Reason("deadline" if line.status == 504 else "failed", words)
    longest, *others = sorted(parts_of(line), reverse=True)
    large = [longest, *(part for part in others if 0 < LARGE_SHARE * line.e2e_seconds <= part.seconds)]
    large.sort(key=lambda part: part.cause in OWN_WORK)  # what it waited for comes first
    return Reason(large[0].cause, "; ".join(part.sentence for part in large))


def parts_of(line: RequestLine) -> Iterator[Part]:
    """All that its time went to, in no order; what is left over is the server's own."""
    preempted, stalled = line.preempted_seconds or 0.0, line.prefill_stall_seconds or 0.0
    queue, prefill, decode = line.queue_seconds or 0.0, line.prefill_seconds or 0.0, line.decode_seconds or 0.0
    # a request that is pushed back before its first token loses the time of its prompt, else of its answer
    prompt = prefill if decode else max(0.0, prefill - preempted)
    answer = max(0.0, decode - stalled - preempted)
    others = f"{_tokens(line.prefill_stall_tokens)} of other prompts"
    admission, turn, tokenize, client = line.admission_seconds, line.turn_seconds, line.tokenize_seconds, line.slow_client_seconds
    yield Part(admission, "admission", f"for {_span(admission)} its body was read and checked")
    yield Part(turn, "turn", f"waited {_span(turn)} for its turn: this server answers one request at a time")
    yield Part(tokenize, "tokenize", f"its text was turned into {_tokens(line.prompt_tokens)} in {_span(tokenize)}")
    yield _queue(line, queue)
    new_tokens = line.prompt_tokens - line.cached_tokens
    yield Part(prompt, "long_prompt", f"its prompt was computed in {_span(prompt)}: {_tokens(new_tokens)}")
    yield Part(preempted, "preempted", f"pushed back {_times(line.preemptions)} for want of K/V blocks, which took {_span(preempted)}")
    yield Part(stalled, "prefill_of_others", f"its answer stood still for {_span(stalled)} while {others} were computed")
    yield _answer(line, answer)
    yield Part(client, "slow_client", f"the client read slowly: the server waited {_span(client)} for it to take what was written")
    rest = max(0.0, line.e2e_seconds - admission - turn - tokenize - queue - prefill - decode - client)
    yield Part(rest, "server", f"{_span(rest)} passed in the server, outside the engine")


def _queue(line: RequestLine, seconds: float) -> Part:
    others = "1 request" if line.num_ahead == 1 else f"{line.num_ahead} requests"
    most = f", {line.largest_ahead} the most" if line.largest_ahead and line.num_ahead > 1 else ""
    match line.wait_cause:
        case WaitCause.KV_FULL:
            return Part(seconds, "kv_full", f"waited {_span(seconds)} for K/V blocks: {others} before it held all of them{most}")
        case WaitCause.BATCH_FULL:
            return Part(seconds, "batch_full", f"waited {_span(seconds)} for a place in the batch: {others} ran, as many as may")
        case WaitCause.BATCHING:
            return Part(seconds, "batching", f"waited {_span(seconds)} because the batching mode lets nobody join running requests")
        case WaitCause.NONE:
            return Part(seconds, "queue", f"waited {_span(seconds)} in the queue while others were computed")


def _answer(line: RequestLine, seconds: float) -> Part:
    tokens = max(1, line.completion_tokens // max(1, line.choices))
    each = f"{_tokens(tokens)} at {_span(seconds / tokens)} each"
    if tokens >= LONG_ANSWER_TOKENS:
        return Part(seconds, "long_answer", f"long answer: {each}")
    return Part(seconds, "decode", f"its answer was computed in {_span(seconds)}: {each}")


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _span(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.1f} s"
