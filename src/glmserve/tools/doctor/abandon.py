"""Does a server go on writing for a client that has left?  Found out by leaving, and by looking at what it does then."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from glmserve.observe.readings import Readings
from glmserve.tools.doctor.finding import NotApplicableError
from glmserve.tools.doctor.reply import Reply
from glmserve.tools.doctor.trials import LONG, SHORT, Trials

POLL_SECONDS = 0.05
START_SECONDS = 5.0


@dataclass
class Abandoned:
    """One answer that was given up.  `noticed_seconds` is None where the server went on; `expected_seconds` would have been left."""

    evidence: str
    noticed_seconds: float | None
    expected_seconds: float


async def by_metrics(trials: Trials, stream: bool) -> Abandoned:
    """Leave a long answer and see in /metrics whether it still runs.

    Raises NotApplicableError where the server does not report it, others use it meanwhile, or its longest answer is too short.
    """
    limit = trials.sizes.hang_up_seconds
    if await _running(trials):
        raise NotApplicableError("others use the server at this moment")
    rate = await trials.seconds_per_token()
    tokens = trials.within_context(int(4 * limit / rate))
    if (expected := tokens * rate) < 1.5 * limit:
        raise NotApplicableError(f"its longest answer takes {expected:.1f} s, too short to see it")
    writing = asyncio.create_task(trials.speaker.say(LONG, tokens, stream=stream))
    try:
        await _until_running(trials, writing)
    finally:
        await _leave(writing)
    seen = await _until_gone(trials, limit, max(limit / 4, 5 * rate))
    return Abandoned("num_requests_running" + ("" if stream else ", not streamed"), seen, expected)


async def by_latency(trials: Trials) -> Abandoned:
    """On a server that answers one at a time: leave a long answer and see how long the next message waits.

    Raises NotApplicableError for a server that answers the next one beside the long one, since then nothing can be seen.
    """
    beside = await trials.beside_long()
    if not beside.shorts or beside.shorts[0].ended < beside.long.ended:
        raise NotApplicableError("it has no num_requests_running in /metrics, and answers others meanwhile, so nothing shows it")
    tokens = trials.within_context(await trials.short_tokens() * trials.sizes.long_factor)
    begun, reply = time.monotonic(), Reply()
    writing = asyncio.create_task(trials.speaker.say(LONG, tokens, reply=reply))
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2 * beside.long.seconds):
            await reply.began.wait()
    await _leave(writing)
    expected = max(0.0, beside.long.seconds - (time.monotonic() - begun))
    waited = (await trials.speaker.say(SHORT, 2)).seconds
    went_on = waited > 0.5 * expected and waited > 3 * await _short_seconds(trials)
    return Abandoned("the wait of the next message", None if went_on else waited, expected)


async def _short_seconds(trials: Trials) -> float:
    return 2 * await trials.seconds_per_token()


async def _leave(writing: asyncio.Task[Reply]) -> None:
    writing.cancel()
    with suppress(asyncio.CancelledError):
        await writing


async def _metrics(trials: Trials) -> Readings:
    readings = await trials.service.metrics(trials.http)
    if readings is None or readings.total("num_requests_running") is None:
        raise NotApplicableError("it reports no num_requests_running")
    return readings


async def _running(trials: Trials) -> float:
    return (await _metrics(trials)).total("num_requests_running") or 0.0


async def _until_running(trials: Trials, writing: asyncio.Task[Reply]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not await _running(trials):
        if writing.done() or time.monotonic() > deadline:
            raise NotApplicableError("its /metrics never showed the answer that ran")
        await asyncio.sleep(POLL_SECONDS)


async def _until_gone(trials: Trials, limit: float, still: float) -> float | None:
    """Seconds until nothing runs any more, or until no token came for `still` seconds: gauges of idle engines may be stale."""
    left = grew = time.monotonic()
    num_tokens = -1.0
    while (now := time.monotonic()) - left < limit:
        readings = await _metrics(trials)
        if not readings.total("num_requests_running"):
            return now - left
        if (count := readings.total("generation_tokens_total")) != num_tokens:
            num_tokens, grew = count or 0.0, now
        elif count is not None and now - grew > still:
            return grew - left
        await asyncio.sleep(POLL_SECONDS)
    return None
