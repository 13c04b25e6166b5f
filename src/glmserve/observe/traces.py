"""One OpenTelemetry span a request, with the names of the GenAI conventions, and one inside it for each part of its time.

Spans are made from the finished record, so that tracing costs nothing while an answer runs; a thread of the SDK sends them.  This file
needs the extra `otel`: it is imported where --otlp-traces-endpoint is given, and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from glmserve.observe.request_record import RequestRecord, line_of
from glmserve.observe.slow import reason_of
from glmserve.version import __version__

SERVICE = "glmserve"
NANOSECONDS = 1_000_000_000
SEND_SECONDS = 5.0  # also how long a collector that is gone may hold up the server's end


class RequestTraces:
    """Sends spans to an OTLP/HTTP collector, e.g. http://localhost:4318/v1/traces, or to `exporter` where one is given."""

    def __init__(self, endpoint: str, model_name: str, exporter: SpanExporter | None = None) -> None:
        self._model_name = model_name
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE, "service.version": __version__}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint, timeout=SEND_SECONDS)))
        self._tracer = self._provider.get_tracer(SERVICE, __version__)

    def add(self, record: RequestRecord, end: int | None = None) -> None:
        """The spans of a request that ended at `end`, nanoseconds since 1970; now by default."""
        end = time.time_ns() if end is None else end
        start = end - int(record.e2e_seconds * NANOSECONDS)
        span = self._tracer.start_span(
            f"{record.operation} {self._model_name}",
            context=TraceContextTextMapPropagator().extract({"traceparent": record.traceparent} if record.traceparent else {}),
            kind=SpanKind.SERVER,
            attributes=self._attributes(record),
            start_time=start,
        )
        if record.status >= 400:
            span.set_status(Status(StatusCode.ERROR, record.error))
        inside = set_span_in_context(span)
        for name, seconds in parts_of(record):
            begin, start = start, start + int(seconds * NANOSECONDS)
            self._tracer.start_span(name, context=inside, start_time=begin).end(start)
        span.end(end)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()

    def _attributes(self, record: RequestRecord) -> dict[str, AttributeValue]:
        reason = reason_of(line_of(record, ""))
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": record.operation,
            "gen_ai.provider.name": SERVICE,
            "gen_ai.request.model": self._model_name,
            "gen_ai.response.model": self._model_name,
            "gen_ai.response.id": record.request_id,
            "gen_ai.response.finish_reasons": [choice.finish_reason.value for choice in record.choices],
            "gen_ai.usage.input_tokens": record.num_prompt_tokens,
            "gen_ai.usage.output_tokens": sum(choice.num_tokens for choice in record.choices),
            "gen_ai.latency.e2e": record.e2e_seconds,
            "http.response.status_code": record.status,
            "glmserve.cause": reason.cause,
            "glmserve.why": reason.why,
        }
        if len(record.choices) > 1:
            attributes["gen_ai.request.choice.count"] = len(record.choices)
        if record.first_token_seconds is not None:
            attributes["gen_ai.latency.time_to_first_token"] = record.first_token_seconds
        if record.choices and record.choices[0].queue_seconds is not None:
            attributes["gen_ai.latency.time_in_queue"] = record.choices[0].queue_seconds
        if record.status >= 400:
            attributes["error.type"] = str(record.status)
        return attributes


def parts_of(record: RequestRecord) -> Iterator[tuple[str, float]]:
    """(name, seconds) of what came one after the other; in the engine, of the first choice."""
    yield "admission", record.admission_seconds
    if record.turn_seconds:
        yield "turn", record.turn_seconds
    yield "tokenize", record.tokenize_seconds
    if record.choices and (first := record.choices[0]).queue_seconds is not None:
        yield "queue", first.queue_seconds
        yield "prefill", first.prefill_seconds or 0.0
        yield "decode", first.decode_seconds or 0.0
