"""Answers that outlive the connection that asked for them, so that a WebSocket client may come back and pick one up.

An answer is kept as the texts of its deltas, numbered from 1.  While somebody follows it, it stays; once nobody does, it is
dropped after a while, which also cancels it where it still runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from glmserve.protocol.errors import GlmserveError, InvalidRequestError
from glmserve.server.bodies import usage_body
from glmserve.server.errors import openai_body
from glmserve.text.answer import TextAnswer

MAX_FINISHED = 1000  # finished answers that nobody follows; the oldest go first


class KeptAnswer:
    """One answer with all that was said so far; any number of followers read along at their own speed."""

    def __init__(self, answer_id: str, owner: str | None, answer: TextAnswer, on_followed: Callable[[KeptAnswer, bool], None]) -> None:
        """`on_followed` is told when the first follower comes, and when the last one has gone."""
        self.id = answer_id
        self.owner = owner
        self.end: dict[str, Any] | None = None  # the last message, once there is one
        self.num_followers = 0
        self._texts: list[str] = []
        self._changed = asyncio.Event()
        self._on_followed = on_followed
        self._answer = answer
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """End it now; what was said stays."""
        if self.end is None:
            self._task.cancel()
            self._finish({"type": "end", "id": self.id, "finish_reason": "abort", "usage": usage_body(self._answer.usage)})

    async def _run(self) -> None:
        reason = "stop"
        try:
            async with self._answer as answer:
                async for deltas in answer:
                    for delta in deltas:
                        if delta.text:
                            self._texts.append(delta.text)
                            self._wake()
                        reason = delta.finish_reason.value if delta.finish_reason else reason
        except GlmserveError as error:
            self._finish({"type": "error", "id": self.id, **openai_body(error)})
        except asyncio.CancelledError:
            self._answer.close()  # also where it was cancelled before it began
        else:
            self._finish({"type": "end", "id": self.id, "finish_reason": reason, "usage": usage_body(self._answer.usage)})

    def _finish(self, end: dict[str, Any]) -> None:
        if self.end is None:
            self.end = end | {"seq": len(self._texts)}
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, after_seq: int = 0) -> AsyncGenerator[dict[str, Any]]:
        """Messages after number `after_seq`, to the last one.  A follower that is behind gets what it missed in one."""
        self.num_followers += 1
        self._on_followed(self, True)
        try:
            while True:
                changed = self._changed
                if (num_texts := len(self._texts)) > after_seq:
                    text = "".join(self._texts[after_seq:])
                    after_seq = num_texts
                    yield {"type": "delta", "id": self.id, "seq": after_seq, "text": text}
                elif self.end is not None:
                    yield self.end
                    return
                else:
                    await changed.wait()
        finally:
            self.num_followers -= 1
            if self.num_followers == 0:
                self._on_followed(self, False)


class KeptAnswers:
    """All kept answers by id.  An answer belongs to the key that asked for it."""

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._answers: dict[str, KeptAnswer] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def check_new(self, answer_id: str) -> None:
        """Raises InvalidRequestError where the id is taken."""
        if answer_id in self._answers:
            raise InvalidRequestError(f"an answer with the id {answer_id!r} exists already: choose another id, or resume it", "id")

    def keep(self, answer_id: str, owner: str | None, answer: TextAnswer) -> KeptAnswer:
        """Run `answer` and keep what it says, for a while if nobody ever follows it.

        Raises InvalidRequestError, and ends `answer`, where the id was taken meanwhile.
        """
        try:
            self.check_new(answer_id)
        except InvalidRequestError as error:
            answer.close(error)
            raise
        kept = self._answers[answer_id] = KeptAnswer(answer_id, owner, answer, self._followed)
        self._followed(kept, False)
        return kept

    def find(self, answer_id: str, owner: str | None) -> KeptAnswer:
        """The answer of that id.  Raises InvalidRequestError where there is none, or not any more, or not of this owner."""
        kept = self._answers.get(answer_id)
        if kept is None or kept.owner != owner:
            raise InvalidRequestError(f"there is no answer with the id {answer_id!r}, or no longer: send generate again", "id")
        return kept

    async def close(self) -> None:
        """Stop all of them."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for kept in self._answers.values():
            kept.stop()
        self._answers.clear()

    def _followed(self, kept: KeptAnswer, is_followed: bool) -> None:
        if self._answers.get(kept.id) is not kept:
            return
        if (timer := self._timers.pop(kept.id, None)) is not None:
            timer.cancel()
        if is_followed:
            return
        self._timers[kept.id] = asyncio.get_running_loop().call_later(self._keep_seconds, self._drop, kept)
        while len(self._timers) > MAX_FINISHED:
            oldest = next(iter(self._timers))
            self._timers[oldest].cancel()
            self._drop(self._answers[oldest])

    def _drop(self, kept: KeptAnswer) -> None:
        self._timers.pop(kept.id, None)
        self._answers.pop(kept.id, None)
        kept.stop()
