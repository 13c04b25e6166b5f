"""The way between client and model: pages, connections, streams, and what happens when a client leaves."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from contextlib import suppress
from urllib.parse import urlsplit

from glmserve.tools.doctor import abandon
from glmserve.tools.doctor.finding import Finding, NotApplicableError, fail, ok, warn
from glmserve.tools.doctor.patient import Patient
from glmserve.tools.doctor.results import PageLoad
from glmserve.tools.doctor.service import Service

MAX_MEAN_SECONDS = 1.5
MAX_ERROR_SHARE = 0.05
QUICK_STREAM = 0.25  # seconds: a whole answer so quick may well come in one piece


async def web_layer(patient: Patient) -> Finding:
    """A page that costs nothing, 100 times and ten at a time; then messages of one token, ten at a time."""
    page = await patient.tried.pages()
    evidence = {"page": patient.service.page} | _figures("page", page)
    if _is_ceiling(page):
        return fail(
            f"the web layer is the ceiling: GET {patient.service.page}, {page.concurrency} at a time: {_words(page)}",
            *_leaner(patient.service),
            **evidence,
        )
    try:
        message = await patient.tried.one_token()
    except NotApplicableError:
        return ok(f"GET {patient.service.page}: {_words(page)}", **evidence)
    evidence |= _figures("one_token", message)
    in_line = message.alone_seconds * message.concurrency  # how long they take where each waits for all others
    if message.error_share > MAX_ERROR_SHARE or (message.mean_seconds > MAX_MEAN_SECONDS and message.mean_seconds > 2 * in_line):
        return warn(
            f"pages are quick ({page.mean_seconds * 1e3:.0f} ms) but {message.num} messages of one token are not: {_words(message)}",
            "More is lost on the way than the model takes: limits on requests, a pool of threads, a proxy. The server's log may say.",
            **evidence,
        )
    return ok(f"a page {page.mean_seconds * 1e3:.0f} ms, a message of one token {message.mean_seconds * 1e3:.0f} ms", **evidence)


def _is_ceiling(load: PageLoad) -> bool:
    return load.mean_seconds > MAX_MEAN_SECONDS or load.error_share > MAX_ERROR_SHARE


def _figures(name: str, load: PageLoad) -> dict[str, object]:
    return {
        f"{name}_requests": load.num,
        f"{name}_alone_seconds": load.alone_seconds,
        f"{name}_mean_seconds": load.mean_seconds,
        f"{name}_worst_seconds": load.worst_seconds,
        f"{name}_per_second": load.per_second,
        f"{name}_error_share": load.error_share,
        f"{name}_errors": dict(Counter(load.errors)),
    }


def _words(load: PageLoad) -> str:
    failed = f", {load.error_share:.0%} failed ({Counter(load.errors).most_common(1)[0][0]})" if load.errors else ""
    return f"mean {load.mean_seconds * 1e3:.0f} ms, {load.per_second:.0f}/s{failed}"


def _leaner(service: Service) -> tuple[str, ...]:
    if service.is_ours:
        return ("Has it cores to run on (top)? Is a proxy between, or --max-num-queued-reqs too small? GET /metrics: requests_rejected.",)
    return ("Leave the demo page: glmserve serve MODEL serves an async API, and a page of its own.", "Look for a proxy between, too.")


async def keep_alive(patient: Patient) -> Finding:
    """Two requests over one connection."""
    service = patient.service
    try:
        async with asyncio.timeout(10):
            answered, connect_seconds = await _answers_on_one_connection(service)
    except (TimeoutError, OSError, ValueError) as error:
        raise NotApplicableError(f"the connection failed: {error or type(error).__name__}") from error
    if answered == 2:
        return ok("two requests over one connection", answered=answered)
    return fail(
        "every request needs a new connection: the server closes it after one answer",
        "Let the server, and a proxy before it, keep connections (nginx: proxy_http_version 1.1 and an empty Connection header).",
        *(() if service.is_ours else ("glmserve serve keeps them.",)),
        answered=answered,
        connect_seconds=connect_seconds,
    )


async def _answers_on_one_connection(service: Service) -> tuple[int, float]:
    """(how many of two requests were answered, seconds that connecting took)."""
    url, begun = urlsplit(service.url), time.monotonic()
    context = ssl.create_default_context() if url.scheme == "https" else None
    reader, writer = await asyncio.open_connection(service.host, service.port, ssl=context)
    seconds = time.monotonic() - begun
    lines = {"Host": url.netloc.rpartition("@")[2], "Connection": "keep-alive", **service.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    request = f"GET {url.path.rstrip('/')}{service.page} HTTP/1.1\r\n{head}\r\n".encode()
    answered = 0
    try:
        for _ in range(2):
            writer.write(request)
            answered += await _read_answer(reader)
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return answered, seconds


async def _read_answer(reader: asyncio.StreamReader) -> bool:
    """Read one whole answer.  False where the connection was closed before it, or ends it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if (at := head.find(b"content-length:")) >= 0:
        await reader.readexactly(int(head[at + 15 :].split(b"\r\n", 1)[0]))
    elif b"transfer-encoding: chunked" in head:
        while size := int((await reader.readline()).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        await reader.read()  # a body without a length ends with its connection
    return True


async def streaming(patient: Patient) -> Finding:
    """A long answer arrives while it is written, not at its end."""
    await patient.tried.need_answers()
    if not patient.tried.speaker.can_stream:
        return fail(
            "answers come whole: this protocol has no stream, so people look at an empty page until the last word",
            "glmserve serve MODEL has the same POST /, and streams at /stream, /chat/stream and /v1/chat/completions.",
        )
    reply = (await patient.tried.beside_long()).long
    if not reply.arrivals:
        raise NotApplicableError("the long answer had no text")
    first = reply.arrivals[0] - reply.started
    evidence = {"moments": reply.num_moments, "first_seconds": first, "seconds": reply.seconds}
    if reply.num_moments > 2 and (first < 0.8 * reply.seconds or reply.seconds < QUICK_STREAM):
        return ok(f"the first word came after {first:.2f} s of {reply.seconds:.2f} s", **evidence)
    if reply.num_moments == 1 and len(reply.arrivals) == 1:
        return fail(
            f"it was asked to stream and answered whole, after {reply.seconds:.2f} s",
            "Serve it with a server that streams: glmserve serve MODEL.",
            **evidence,
        )
    return fail(
        f"the stream arrives at its end: first word after {first:.2f} s of {reply.seconds:.2f} s, {reply.num_moments} pieces",
        "Something between holds it back: nginx wants `proxy_buffering off;`, and no gzip on text/event-stream.",
        **evidence,
    )


async def cancel(patient: Patient) -> Finding:
    """Hang up in the middle of an answer: does the server stop, or write on for nobody?"""
    tries = await _tries(patient)
    evidence = {f"try_{number}": vars(one) for number, one in enumerate(tries, 1)}
    if went_on := next((one for one in tries if one.noticed_seconds is None), None):
        mend = "Each such answer holds a place and computes for nobody; users who reload make a queue of ghosts."
        if not patient.service.is_ours:
            mend += " glmserve serve stops within a step."
        words = f"it writes on when the client has left, {went_on.expected_seconds:.1f} s for nobody ({went_on.evidence})"
        return fail(words, mend, **evidence)
    worst = max(one.noticed_seconds or 0.0 for one in tries)
    return ok(f"it stopped {worst:.2f} s after the client had left ({tries[0].evidence})", **evidence)


async def _tries(patient: Patient) -> list[abandon.Abandoned]:
    trials = patient.tried
    readings = await patient.service.metrics(trials.http)
    if readings is not None and readings.total("num_requests_running") is not None:
        streamed = await abandon.by_metrics(trials, stream=True)
        if streamed.noticed_seconds is None:  # its ghost would disturb a second try
            return [streamed]
        return [streamed, await abandon.by_metrics(trials, stream=False)]
    return [await abandon.by_latency(trials)]
