"""What is tried on a service: each trial is made once, when the first check asks for it, and its result serves every check.

The load is bounded: `Sizes` says how many messages of each kind there are, and messages are made shorter where the server is slow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import httpx

from glmserve.observe.readings import Window
from glmserve.tools.doctor.finding import NotApplicableError
from glmserve.tools.doctor.gpu import Gpu, GpuReader, GpuSample, GpuWatch
from glmserve.tools.doctor.reply import Reply
from glmserve.tools.doctor.results import Alone, BesideLong, Busy, PageLoad, Together
from glmserve.tools.doctor.service import Service
from glmserve.tools.doctor.speaker import Speaker

SHORT = "你好，请介绍一下你自己。"
LONG = "请写一个很长的故事，讲一位老工程师怎样一步一步地让一台慢机器变快，把每一步都写详细，不要停下来。"
WARM_TOKENS = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """How much is sent.  Tokens are of a short message on a quick server; times are seconds."""

    num_short: int = 5
    short_tokens: int = 16
    min_seconds: float = 0.2  # on a quick server a short message gets up to four times those tokens, to be worth a measurement
    short_seconds: float = 1.5  # on a slow one it is made shorter until it takes no longer
    long_factor: int = 8  # a long answer has so many times the tokens of a short one
    pause: float = 0.2
    num_pages: int = 100
    num_one_token: int = 20
    concurrency: int = 10
    busy_seconds: float = 3.0
    hang_up_seconds: float = 2.0  # a server has so long to notice that a client left

    @property
    def num_small(self) -> int:
        """Pages and short messages in all, at most, but for those of the busy spell."""
        return 3 * self.num_short + self.num_pages + self.num_one_token + 20

    def in_words(self) -> str:
        """For the user, before anything is sent."""
        return (
            f"sending at most {self.num_small} small requests and 5 long ones, up to {self.concurrency} at a time, "
            f"and {self.num_short} at a time for {self.busy_seconds:g} s"
        )


QUICK = Sizes(num_short=3, short_seconds=0.5, long_factor=5, pause=0.1, num_pages=30, num_one_token=10, busy_seconds=1.5)


class Trials:
    """All trials on one service.  `note` is told what is going on, for people who wait."""

    def __init__(
        self,
        service: Service,
        speaker: Speaker,
        http: httpx.AsyncClient,
        sizes: Sizes,
        watch: tuple[GpuReader, Gpu] | None,
        note: Callable[[str], None],
    ) -> None:
        self.service = service
        self.speaker = speaker
        self.http = http
        self.sizes = sizes
        self._watch = watch
        self._note = note
        self._done: dict[str, Any] = {}

    async def _once(self, name: str, words: str, make: Callable[[], Awaitable[T]]) -> T:
        if name not in self._done:
            self._note(words)
            try:
                self._done[name] = await make()
            except NotApplicableError as error:
                self._done[name] = error
        if isinstance(self._done[name], NotApplicableError):
            raise self._done[name]
        result: T = self._done[name]
        return result

    async def first(self) -> Reply:
        """The first message, which may be slow for reasons of its own, and may have failed."""
        return await self._once("first", "a first message", lambda: self.speaker.say(SHORT, WARM_TOKENS))

    async def need_answers(self) -> None:
        """Raises NotApplicableError for a server that answers no message."""
        if (await self.first()).error:
            raise NotApplicableError("it answers no message (see the check `answers`)")

    async def seconds_per_token(self) -> float:
        """About, from the second message."""
        reply = await self._once("second", "a second message", self._second)
        return max(reply.seconds / WARM_TOKENS, 1e-5)

    async def _second(self) -> Reply:
        await self.need_answers()
        return _whole(await self.speaker.say(SHORT, WARM_TOKENS))

    async def short_tokens(self) -> int:
        """Tokens of a short message on this server."""
        rate, usual = await self.seconds_per_token(), self.sizes.short_tokens
        wanted = max(usual, min(4 * usual, int(self.sizes.min_seconds / rate)))
        return max(2, min(wanted, int(self.sizes.short_seconds / rate)))

    async def tokens_per_second(self) -> float:
        """Of one answer, the first token not counted where the answer is streamed."""
        tokens = await self.short_tokens()
        return median(_rate(reply, tokens) for reply in (await self.alone()).replies)

    async def alone(self) -> Alone:
        """Short messages one after the other, with pauses, the GPU watched."""
        return await self._once("alone", f"{self.sizes.num_short} short messages, one after the other", self._alone)

    async def _alone(self) -> Alone:
        tokens, replies = await self.short_tokens(), []
        async with self._watched() as samples:
            for _ in range(self.sizes.num_short):
                replies.append(_whole(await self.speaker.say(SHORT, tokens)))
                await asyncio.sleep(self.sizes.pause)
        return Alone(replies, samples)

    async def together(self) -> Together:
        """As many at once."""
        return await self._once("together", f"{self.sizes.num_short} short messages at once", self._together)

    async def _together(self) -> Together:
        tokens, started = await self.short_tokens(), time.monotonic()
        replies = await asyncio.gather(*(self.speaker.say(SHORT, tokens) for _ in range(self.sizes.num_short)))
        ends = sorted(_whole(reply).ended - started for reply in replies)
        return Together(list(replies), ends[-1], ends)

    async def beside_long(self) -> BesideLong:
        """A long answer, and beside it short messages and pages, until it ends or three were answered."""
        return await self._once("beside_long", "a long answer, and short messages beside it", self._beside_long)

    async def _beside_long(self) -> BesideLong:
        tokens = self.within_context(await self.short_tokens() * self.sizes.long_factor)
        reply = Reply()
        seen = BesideLong(reply)
        writing = asyncio.create_task(self.speaker.say(LONG, tokens, reply=reply))
        try:
            await self._until_begun(reply, writing, tokens)
            pages = asyncio.create_task(self._pages_beside(seen, writing))
            while not writing.done() and len(seen.shorts) < 3:
                seen.shorts.append(_whole(await self.speaker.say(SHORT, 2)))
            await writing
            await pages
        finally:
            writing.cancel()
        _whole(reply)
        return seen

    async def _until_begun(self, reply: Reply, writing: asyncio.Task[Reply], tokens: int) -> None:
        """Until the answer is on its way: its first piece, or where it comes whole a fifth of the time it should take."""
        patience = self._timeout if self.speaker.can_stream else 0.2 * tokens * await self.seconds_per_token()
        began = asyncio.create_task(reply.began.wait())
        await asyncio.wait({began, writing}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        began.cancel()

    @property
    def _timeout(self) -> float:
        return self.http.timeout.read or 30.0

    async def _pages_beside(self, seen: BesideLong, writing: asyncio.Task[Reply]) -> None:
        while not writing.done() and len(seen.pages) < 10:
            asked = time.monotonic()
            with suppress(httpx.HTTPError):
                await self.http.get(self.service.page)
                seen.pages.append((asked, time.monotonic() - asked))
            await asyncio.sleep(0.05)

    async def pages(self) -> PageLoad:
        """The cheap page, many times."""
        sizes = self.sizes
        words = f"{sizes.num_pages} times the page {self.service.page}, {sizes.concurrency} at a time"
        return await self._once("pages", words, lambda: _load(self._page, sizes.num_pages, sizes.concurrency))

    async def _page(self) -> str:
        try:
            code = (await self.http.get(self.service.page)).status_code
        except httpx.HTTPError as error:
            return type(error).__name__
        return f"HTTP {code}" if code >= 500 or code == 429 else ""

    async def one_token(self) -> PageLoad:
        """Messages of one token."""
        sizes = self.sizes
        words = f"{sizes.num_one_token} messages of one token, {sizes.concurrency} at a time"
        return await self._once("one_token", words, self._one_token)

    async def _one_token(self) -> PageLoad:
        await self.need_answers()
        return await _load(self._say_one_token, self.sizes.num_one_token, self.sizes.concurrency)

    async def _say_one_token(self) -> str:
        reply = await self.speaker.say(SHORT, 1, stream=False)
        return reply.error

    async def busy(self) -> Busy:
        """Short messages without a pause, several at a time, the GPU and /metrics watched."""
        return await self._once("busy", f"{self.sizes.busy_seconds:g} s of messages without a pause", self._busy)

    async def _busy(self) -> Busy:
        tokens, started = 4 * await self.short_tokens(), time.monotonic()
        num_done = 0

        async def keep_asking() -> None:
            nonlocal num_done
            while time.monotonic() - started < self.sizes.busy_seconds:
                num_done += not (await self.speaker.say(SHORT, tokens)).error

        before = await self.service.metrics(self.http)
        async with self._watched() as samples:
            await asyncio.gather(*(keep_asking() for _ in range(self.sizes.num_short)))
        after = await self.service.metrics(self.http)
        settled = samples[len(samples) // 3 :]  # NVML's figure is a mean of up to the last second
        return Busy(time.monotonic() - started, num_done, settled, Window(before, after) if before and after else None)

    def within_context(self, tokens: int) -> int:
        """No more than the model has room for beside the long prompt."""
        room = (self.service.max_model_len or 2048) - 256
        return max(16, min(tokens, room))

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[list[GpuSample]]:
        if self._watch is None:
            yield []
            return
        with GpuWatch(*self._watch) as watch:
            yield watch.samples


async def _load(ask: Callable[[], Awaitable[str]], num: int, concurrency: int) -> PageLoad:
    """`ask` gives what went wrong, or nothing."""
    asked = time.monotonic()
    await ask()
    seconds, errors, left, started = [], [], num, time.monotonic()

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            begun = time.monotonic()
            if error := await ask():
                errors.append(error)
            seconds.append(time.monotonic() - begun)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return PageLoad(started - asked, num, concurrency, sum(seconds) / num, max(seconds), errors, num / (time.monotonic() - started))


def _rate(reply: Reply, tokens: int) -> float:
    if reply.num_moments < 3:
        return tokens / max(reply.seconds, 1e-5)
    return (tokens - 1) / (reply.arrivals[-1] - reply.arrivals[0])


def _whole(reply: Reply) -> Reply:
    if reply.error:
        raise NotApplicableError(f"a message failed on the way: {reply.error}")
    return reply
