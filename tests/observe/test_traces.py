"""Spans of finished requests, held in memory, and over the wire to a collector."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from glmserve.observe.request_record import ChoiceRecord, RequestRecord
from glmserve.observe.traces import RequestTraces, parts_of
from glmserve.protocol.messages import FinishReason

SECOND = 1_000_000_000
END = 1_800_000_000 * SECOND
RECORD = RequestRecord(
    "chatcmpl-1", 200, 11, 0, 4.0, 1.5, [ChoiceRecord(FinishReason.STOP, 7, 1.0, 0.25, 2.5)],
    admission_seconds=0.125, tokenize_seconds=0.125, operation="chat",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)  # fmt: skip


def spans_of(record: RequestRecord) -> dict[str, ReadableSpan]:
    exporter = InMemorySpanExporter()
    traces = RequestTraces("unused", "chatglm-6b", exporter)
    traces.add(record, END)
    traces.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_is_a_span_with_the_genai_names() -> None:
    span = spans_of(RECORD)["chat chatglm-6b"]
    assert span.kind is SpanKind.SERVER and (span.start_time, span.end_time) == (END - 4 * SECOND, END)
    assert span.attributes is not None
    wanted = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "chatglm-6b", "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",), "gen_ai.usage.input_tokens": 11, "gen_ai.usage.output_tokens": 7,
        "gen_ai.latency.time_to_first_token": 1.5, "gen_ai.latency.time_in_queue": 1.0, "gen_ai.latency.e2e": 4.0,
        "http.response.status_code": 200, "glmserve.cause": "queue",
    }  # fmt: skip
    assert {name: span.attributes.get(name) for name in wanted} == wanted
    assert "error.type" not in span.attributes


def test_it_is_part_of_the_client_s_trace() -> None:
    span = spans_of(RECORD)["chat chatglm-6b"]
    assert span.context is not None and f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent is not None and f"{span.parent.span_id:016x}" == "b7ad6b7169203331"


def test_its_parts_follow_each_other() -> None:
    spans = spans_of(RECORD)
    seconds = {name: ((span.start_time or 0) - END) / SECOND for name, span in spans.items()}
    assert seconds == {"chat chatglm-6b": -4, "admission": -4, "tokenize": -3.875, "queue": -3.75, "prefill": -2.75, "decode": -2.5}
    whole = spans["chat chatglm-6b"].context
    assert whole is not None and all(span.parent == whole for name, span in spans.items() if name != "chat chatglm-6b")


def test_a_turn_that_was_waited_for_is_a_part() -> None:
    waited = msgspec.structs.replace(RECORD, e2e_seconds=6.0, turn_seconds=2.0)
    assert [name for name, _ in parts_of(waited)][:3] == ["admission", "turn", "tokenize"]
    assert "turn" not in dict(parts_of(RECORD))


@pytest.mark.parametrize("traceparent", [None, "nonsense"])
def test_a_failed_request_without_a_trace_of_the_client(traceparent: str | None) -> None:
    choices = [ChoiceRecord(FinishReason.ERROR, 0), ChoiceRecord(FinishReason.ERROR, 0)]
    record = RequestRecord("r", 503, 1, 0, 0.1, None, choices, "the engine was lost", traceparent=traceparent)
    span = spans_of(record)["text_completion chatglm-6b"]
    assert span.parent is None and span.status.status_code is StatusCode.ERROR and span.status.description == "the engine was lost"
    assert span.attributes is not None and span.attributes["error.type"] == "503"
    assert span.attributes["gen_ai.request.choice.count"] == 2


def test_a_collector_gets_them_over_http() -> None:
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    traces = RequestTraces(f"http://127.0.0.1:{collector.server_address[1]}/v1/traces", "m")
    traces.add(RECORD)
    traces.close()
    collector.shutdown()
    thread.join()
    collector.server_close()
    names = [span.name for request in received for part in request.resource_spans for scope in part.scope_spans for span in scope.spans]
    assert "chat m" in names
