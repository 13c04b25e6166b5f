"""Does it answer, and does one request wait for another?"""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean, median

from glmserve.tools.doctor.finding import Finding, NotApplicableError, fail, ok, warn
from glmserve.tools.doctor.gpu import utilizations
from glmserve.tools.doctor.patient import Patient
from glmserve.tools.doctor.service import Kind, Service

QUICK_ENOUGH = 0.25  # seconds: below it nobody waits, and times say nothing


async def answers(patient: Patient) -> Finding:
    """The first message is answered with text."""
    reply = await patient.tried.first()
    if reply.arrivals and not reply.error:
        return ok(f"a short message took {reply.seconds:.2f} s", seconds=reply.seconds)
    if not reply.error:
        return warn("a short message is answered without a word", "Does it end at once? Ask it something with `glmserve chat URL`.")
    mend = ["See its log. `curl` the same: is it the model, a proxy before it, or a key (--api-key) that is missing?"]
    if patient.service.is_ours and "no tokenizer" in reply.error:
        mend = ["It serves token ids only (--skip-tokenizer-init). To be examined it needs the tokenizer's file in its model folder."]
    elif patient.service.is_ours:
        mend = [f"GET {patient.service.url}/ready says what the engine lacks; the log says why."]
    return fail(f"a short message fails: {reply.error}", *mend, error=reply.error, seconds=reply.seconds)


async def pulses(patient: Patient) -> Finding:
    """Five short messages one after the other, then five at once: do they share the GPU's work, or stand in line?"""
    alone, together = await patient.tried.alone(), await patient.tried.together()
    num, ratio = len(together.ends), together.seconds / alone.seconds
    gpu = _busy_pulses(utilizations(alone.samples))
    evidence = {
        "alone_seconds": alone.seconds,
        "together_seconds": together.seconds,
        "together_ends_seconds": together.ends,
        "ratio": ratio,
        **gpu,
    }
    times = f"{num} at once took {together.seconds:.2f} s, one alone {alone.seconds:.2f} s"
    gap = median(later - earlier for earlier, later in pairwise(together.ends))
    long = ratio >= 0.5 * num
    in_line = long and gap >= 0.4 * alone.seconds  # those that share the work end together
    if not in_line or together.seconds < QUICK_ENOUGH / 2:
        return ok(f"{times} ({ratio:.1f} times{', but they ended together' if long and not in_line else ''})", **evidence)
    line = ", ".join(f"{end:.1f}" for end in together.ends)
    return fail(f"one request at a time: {times}; they ended after {line} s.{_pulse_words(gpu)}", *_batching(patient.service), **evidence)


def _busy_pulses(told: list[float]) -> dict[str, float]:
    if not told:
        return {}
    valleys = sum(share < 0.2 for share in told) / len(told)
    return {"gpu_utilization_mean": fmean(told), "gpu_utilization_peak": max(told), "gpu_below_20_percent_share": valleys}


def _pulse_words(gpu: dict[str, float]) -> str:
    if not gpu:
        return ""
    mean, peak, valleys = gpu.values()
    return f" GPU: mean {mean:.0%}, peak {peak:.0%}, below 20% for {valleys:.0%} of the time."


def _batching(service: Service) -> tuple[str, ...]:
    if service.is_ours:
        return ("Start it with --batching continuous (the default) and --max-num-seqs above 1.",)
    same = {
        Kind.CHATGLM: "Its POST / is api.py's, so clients need no change.",
        Kind.GRADIO: "It has a page for people at the same address, and an API for programs.",
    }.get(service.kind, "It speaks the same /v1, so clients need no change.")
    return (f"Serve the model with continuous batching: glmserve serve MODEL --port {service.port}. {same}",)


async def head_of_line(patient: Patient) -> Finding:
    """A long answer is written, and short messages come: do they have to wait until it is done?"""
    beside, alone = await patient.tried.beside_long(), await patient.tried.alone()
    if not beside.shorts:
        return _too_quick(beside.long.seconds)
    waits = [reply.seconds for reply in beside.shorts]
    evidence = {"long_seconds": beside.long.seconds, "short_beside_seconds": waits, "short_alone_seconds": alone.seconds}
    if beside.long.seconds < QUICK_ENOUGH:
        return _too_quick(beside.long.seconds)
    if beside.shorts[0].ended > beside.long.ended and waits[0] > 2 * alone.seconds:
        summary = f"a short message behind a long one waits for its end: {waits[0]:.2f} s, alone {alone.seconds:.2f} s"
        return fail(summary, *_batching(patient.service), **evidence)
    if (middle := median(waits)) > max(1.0, 5 * alone.seconds):
        mend = "Long prompts hold the others up: lower --max-num-batched-tokens, or give urgent requests a `priority`."
        if patient.service.is_ours:
            mend += f" `glmserve slow {patient.service.url}` says who waited for whom."
        return warn(f"a short message beside a long one takes {middle:.2f} s, alone {alone.seconds:.2f} s", mend, **evidence)
    return ok(f"a short message beside a long one ({beside.long.seconds:.1f} s) takes {middle:.2f} s", **evidence)


def _too_quick(seconds: float) -> Finding:
    return ok(f"a long answer takes {seconds:.2f} s: nobody waits long for it", long_seconds=seconds)


async def responsive(patient: Patient) -> Finding:
    """While an answer is written, other requests (a health probe, the page) must not wait for its end."""
    beside = await patient.tried.beside_long()
    if not beside.pages:
        raise NotApplicableError("no page was answered while an answer was written")
    asked, worst = max(beside.pages, key=lambda page: page[1])
    evidence = {"worst_page_seconds": worst, "long_seconds": beside.long.seconds, "page": patient.service.page}
    if worst > QUICK_ENOUGH and asked + worst > beside.long.ended and worst > 0.5 * beside.long.seconds:
        return fail(
            f"nothing else is answered while it writes: GET {patient.service.page} took {worst:.2f} s, until the answer was done",
            "The model runs on the event loop (an `async def` that calls model.chat). Health probes will fail and the process be killed.",
            *_batching(patient.service),
            **evidence,
        )
    return ok(f"GET {patient.service.page} takes at most {worst * 1e3:.0f} ms while an answer is written", **evidence)
