"""Each seeded fault of a running server is found, by its own check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from glmserve.protocol.errors import EngineUnavailableError, SettingsError
from glmserve.tools.doctor.checks import http
from glmserve.tools.doctor.finding import Verdict
from tests.tools.doctor.examining import finding, look
from tests.tools.doctor.fake_gpu import GIB, FakeGpu
from tests.tools.doctor.faulty_server import FaultyServer

Start = Callable[..., FaultyServer]
QUICK = 0.002  # seconds a token, where a check does not look at times


def test_an_api_py_with_all_its_faults(start: Start) -> None:
    """One message at a time, on the event loop, not streamed, and it never looks whether the client is still there."""
    server = start(is_chatglm=True, one_at_a_time=True, blocks_pages=True, notices_leaving=False)
    examined = look(server.url, "pulses,head_of_line,responsive,streaming,cancel,keep_alive", reader=FakeGpu(utilization=0.19))
    by_name = {check.name: found for check, found in examined.findings}
    assert [name for name, found in by_name.items() if found.verdict is not Verdict.FAIL] == ["keep_alive"]
    assert "one request at a time" in by_name["pulses"].summary
    assert "GPU: mean 19%" in by_name["pulses"].summary
    assert by_name["pulses"].evidence["ratio"] > 2.5
    assert "glmserve serve MODEL --port" in by_name["pulses"].mend[0]
    assert "waits for its end" in by_name["head_of_line"].summary
    assert "event loop" in by_name["responsive"].mend[0]
    assert "/chat/stream" in by_name["streaming"].mend[0]
    assert "wait of the next message" in by_name["cancel"].summary


def test_our_own_server_told_to_be_serial(start: Start) -> None:
    found = finding(start(one_at_a_time=True).url, "pulses")
    assert found.verdict is Verdict.FAIL
    assert "--batching continuous" in found.mend[0]


@pytest.mark.parametrize(("faults", "words"), [({"page_seconds": 0.6}, "web layer"), ({"page_status": 500}, "100% failed (HTTP 500)")])
def test_a_web_layer_that_is_the_ceiling(start: Start, faults: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert http.MAX_MEAN_SECONDS == 1.5
    monkeypatch.setattr(http, "MAX_MEAN_SECONDS", 0.3)
    server = start(is_chatglm=True)
    examined = _after_recognition(server, faults, "web_layer")
    assert examined.verdict is Verdict.FAIL
    assert "web layer is the ceiling" in examined.summary
    assert words in examined.summary


def _after_recognition(server: FaultyServer, faults: dict[str, Any], check: str) -> Any:
    """The fault begins when the doctor knows whom it talks to: a page of a dead server is no /v1/models."""

    class Later(FakeGpu):
        def gpus(self) -> Any:
            vars(server).update(faults)
            return super().gpus()

    return finding(server.url, check, reader=Later())


def test_messages_that_are_lost_on_the_way_to_the_model(start: Start) -> None:
    found = finding(start(max_running=1).url, "web_layer")
    assert found.verdict is Verdict.WARN
    assert "pages are quick" in found.summary
    assert "failed (HTTP 429" in found.summary


def test_answers_that_say_nothing(start: Start) -> None:
    by_name = {check.name: found for check, found in look(start(word="").url, "answers,pulses").findings}
    assert by_name["answers"].verdict is Verdict.WARN
    assert by_name["pulses"].verdict is Verdict.OK  # a token that is a part of a character is an answer too


def test_a_server_that_stops_for_streams_only(start: Start) -> None:
    server = start(notices_leaving_whole=False)
    found = finding(server.url, "cancel")
    assert found.verdict is Verdict.FAIL
    assert "not streamed" in found.summary


def test_connections_that_are_not_kept(start: Start) -> None:
    found = finding(start(keeps_connections=False).url, "keep_alive")
    assert (found.verdict, found.evidence["answered"]) == (Verdict.FAIL, 1)


def test_a_server_that_does_not_stream(start: Start) -> None:
    found = finding(start(streams=False).url, "streaming")
    assert found.verdict is Verdict.FAIL
    assert "answered whole" in found.summary


def test_a_proxy_that_holds_the_stream_back(start: Start) -> None:
    found = finding(start(holds_stream_back=True).url, "streaming")
    assert found.verdict is Verdict.FAIL
    assert "proxy_buffering off" in found.mend[0]


def test_a_server_that_writes_on_for_clients_that_left(start: Start) -> None:
    found = finding(start(notices_leaving=False).url, "cancel")
    assert found.verdict is Verdict.FAIL
    assert "num_requests_running" in found.summary


def test_a_serial_server_that_stops_when_a_client_leaves(start: Start) -> None:
    assert finding(start(is_chatglm=True, one_at_a_time=True).url, "cancel").verdict is Verdict.OK


def test_nothing_shows_whether_a_batching_server_without_metrics_stops(start: Start) -> None:
    found = finding(start(has_metrics=False, notices_leaving=False).url, "cancel")
    assert found.verdict is Verdict.SKIPPED
    assert "num_requests_running" in found.summary


def test_a_server_that_is_dead_is_told_and_not_measured(start: Start) -> None:
    examined = look(start(refuses=503).url)
    by_name = {check.name: found for check, found in examined.findings}
    assert by_name["answers"].verdict is Verdict.FAIL
    assert "HTTP 503: the engine is dead" in by_name["answers"].summary
    assert by_name["pulses"].summary == "it answers no message (see the check `answers`)"
    assert by_name["keep_alive"].verdict is Verdict.OK
    assert not examined.is_healthy


def test_a_model_without_chat_format_is_asked_for_completions(start: Start) -> None:
    server = start(refuses_chat=True)
    assert finding(server.url, "answers").verdict is Verdict.OK
    assert [list(body)[-1] for body in server.bodies] == ["messages", "prompt"]


class CountingServer(FaultyServer):
    """Every look at its metrics finds the counters a step further."""

    counters: Mapping[str, float] = {}
    num_looks = 0

    def metrics(self) -> str:
        self.num_looks += 1
        lines = [f"glmserve:{name} {step * self.num_looks}" for name, step in self.counters.items()]
        return super().metrics() + "\n".join([*lines, ""])


def count_by_steps(server: FaultyServer, **counters: float) -> FaultyServer:
    """`server`, whose counters grow by so much from look to look; an activity is a name of gpu_time_seconds_total."""
    server.__class__ = CountingServer
    assert isinstance(server, CountingServer)
    server.counters = {
        name if "_total" in name else f'gpu_time_seconds_total{{activity="{name}"}}': step for name, step in counters.items()
    }
    return server


def test_an_engine_that_waits_for_its_host(start: Start) -> None:
    server = count_by_steps(start(token_seconds=QUICK), decode=1, idle_scheduling=3, idle_no_work=50)
    found = finding(server.url, "host_bound")
    assert found.verdict is Verdict.FAIL
    assert "75%" in found.summary
    assert "scheduling" in found.summary


def test_an_engine_whose_steps_have_holes(start: Start) -> None:
    server = count_by_steps(start(token_seconds=QUICK), decode=8, prefill=2, idle_no_work=5, launch_bound_seconds_total=9)
    found = finding(server.url, "host_bound")
    assert found.verdict is Verdict.WARN and "90%" in found.summary and "--enforce-eager" in found.mend[0]


def test_an_engine_that_waits_for_work_alone(start: Start) -> None:
    server = count_by_steps(start(token_seconds=QUICK), decode=9, idle_http=0.5, idle_no_work=50)
    assert finding(server.url, "host_bound", reader=FakeGpu(utilization=0.3)).verdict is Verdict.OK  # its own count goes before NVML's


def test_a_gpu_that_idles_while_messages_never_end(start: Start) -> None:
    server = start(is_chatglm=True, token_seconds=QUICK)
    assert finding(server.url, "host_bound", reader=FakeGpu(utilization=0.37)).verdict is Verdict.FAIL
    assert finding(server.url, "host_bound", reader=FakeGpu(utilization=0.6)).verdict is Verdict.WARN
    assert finding(server.url, "host_bound", reader=FakeGpu()).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"utilization": 0.12, "memory_used": 15 * GIB}, "memory full, compute idle"),
        ({"utilization": 0.3, "pcie_received": 11e9}, "11.0 GB/s over PCIe"),
        ({"utilization": 0.0, "memory_used": GIB // 2}, "not on the GPU"),
    ],
)
def test_layers_that_are_not_on_the_gpu(start: Start, changes: dict[str, Any], words: str) -> None:
    found = finding(start(is_chatglm=True, token_seconds=QUICK).url, "offload", reader=FakeGpu(**changes))
    assert found.verdict is Verdict.FAIL
    assert words in found.summary
    assert "device_map" in found.mend[0]


@pytest.mark.parametrize(
    ("changes", "check", "verdict", "words"),
    [
        ({"throttle": frozenset({"sw_thermal"})}, "throttling", Verdict.FAIL, "sw_thermal in 100% of the samples, 61 °C"),
        ({"throttle": frozenset({"sw_power_cap"}), "sm_clock": 900}, "throttling", Verdict.WARN, "900 of 1710 MHz"),
        ({"throttle": frozenset({"sw_power_cap"}), "sm_clock": 1650}, "throttling", Verdict.OK, "1650 MHz"),
        ({"pcie_width": 4}, "pcie", Verdict.WARN, "PCIe x4, the card could x16"),
        ({"pcie_generation": 1}, "pcie", Verdict.WARN, "generation 1, the card could 4"),
    ],
)
def test_a_gpu_that_is_held_back(start: Start, changes: dict[str, Any], check: str, verdict: Verdict, words: str) -> None:
    found = finding(start(token_seconds=QUICK).url, check, reader=FakeGpu(**changes))
    assert found.verdict is verdict
    assert words in found.summary


def test_slow_steps_are_seen_beside_the_speed_of_the_memory(start: Start) -> None:
    gpu = FakeGpu()
    gpu.gpu = replace(gpu.gpu, peak_bytes_per_second=1e15)  # 15 GB at 500 tokens/s are a hundredth of it
    found = finding(start(is_chatglm=True, token_seconds=QUICK).url, "decode_speed", reader=gpu)
    assert found.verdict is Verdict.WARN
    assert "slow steps" in found.summary
    gpu.gpu = replace(gpu.gpu, peak_bytes_per_second=600e9)
    assert finding(start(is_chatglm=True, token_seconds=QUICK).url, "decode_speed", reader=gpu).verdict is Verdict.OK


@pytest.mark.parametrize(("bytes_read", "verdict"), [(1e15, Verdict.OK), (1.0, Verdict.WARN)])
def test_the_bytes_that_a_server_counts_go_before_an_estimate(start: Start, bytes_read: float, verdict: Verdict) -> None:
    server = start(token_seconds=QUICK, more_metrics="glmserve:device_peak_bytes_per_second 1e12")
    count_by_steps(server, estimated_read_bytes_per_gpu_total=bytes_read)
    assert finding(server.url, "decode_speed", reader=FakeGpu()).verdict is verdict


def test_float32_on_a_gpu(start: Start) -> None:
    server = start(token_seconds=QUICK, more_metrics='glmserve:cache_config_info{dtype="float32"} 1')
    assert finding(server.url, "served_dtype", reader=FakeGpu()).verdict is Verdict.FAIL
    assert finding(server.url, "served_dtype").verdict is Verdict.OK


def test_a_server_elsewhere_reports_its_gpu_itself(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmserve.tools.doctor.machine.Machine.has_address", lambda self, host: False)
    reported = """glmserve:nvml_memory_total_bytes{gpu="GPU-9"} 16e9
glmserve:nvml_memory_used_bytes{gpu="GPU-9"} 15e9
glmserve:nvml_utilization_perc{gpu="GPU-9"} 0.1
glmserve:nvml_throttle{gpu="GPU-9",reason="hw_thermal"} 1
glmserve:nvml_throttle{gpu="GPU-9",reason="sw_power_cap"} 0"""
    by_name = {
        check.name: found
        for check, found in look(start(token_seconds=QUICK, more_metrics=reported).url, "offload,throttling,driver,limits").findings
    }
    assert by_name["offload"].verdict is Verdict.FAIL
    assert "hw_thermal" in by_name["throttling"].summary
    assert "sw_power_cap" not in by_name["throttling"].summary
    assert by_name["driver"].summary == by_name["limits"].summary == "the server is on another machine; run the doctor there"


def test_a_key_that_is_missing_and_one_that_fits(start: Start) -> None:
    server = start(key="k", token_seconds=QUICK)
    with pytest.raises(SettingsError, match="--api-key"):
        look(server.url, "answers")
    assert finding(server.url, "answers", api_key="k").verdict is Verdict.OK


def test_nothing_answers() -> None:
    with pytest.raises(EngineUnavailableError, match="nothing answers at"):
        look("http://127.0.0.1:9")


def test_an_http_server_of_another_kind_is_examined_as_far_as_it_goes(start: Start) -> None:
    by_name = {check.name: found for check, found in look(start(page_status=404, has_metrics=False).url).findings}
    assert "neither OpenAI's protocol" in by_name["answers"].summary
    assert by_name["streaming"].verdict is by_name["cancel"].verdict is Verdict.SKIPPED
    assert by_name["keep_alive"].verdict is by_name["web_layer"].verdict is Verdict.OK
