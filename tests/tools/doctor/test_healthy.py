"""On a healthy server the doctor finds nothing, whatever it looks at; and it says how much it sends before it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from glmserve.engine.fake import FakeOptions
from glmserve.tools.doctor.examine import examine
from glmserve.tools.doctor.finding import Verdict
from glmserve.tools.doctor.machine import Machine
from glmserve.tools.doctor.settings import DoctorConfig
from glmserve.tools.doctor.trials import Sizes
from tests.server.serving import ServerInThread
from tests.tools.doctor.examining import SMALL, look
from tests.tools.doctor.fake_gpu import FakeGpu
from tests.tools.doctor.faulty_server import FaultyServer

WORDS = tuple(range(300, 340))  # what the fake engine says: plain pieces of text


@pytest.fixture(scope="module")
def server() -> Iterator[ServerInThread]:
    server = ServerInThread(FakeOptions(alphabet=WORDS, step_seconds=0.04), server={"api_key": ("k",)})
    yield server
    server.stop()


def test_a_server_of_token_ids_says_what_it_lacks() -> None:
    server = ServerInThread(FakeOptions(alphabet=WORDS), engine={"skip_tokenizer_init": True})
    try:
        examined = look(server.url, "answers")
    finally:
        server.stop()
    found = examined.findings[0][1]
    assert found.verdict is Verdict.FAIL and "no tokenizer" in found.summary and "--skip-tokenizer-init" in found.mend[0]


def test_our_own_server(server: ServerInThread, cuda_machine: Machine) -> None:
    server.http.headers["Authorization"] = "Bearer k"
    for_it = Sizes(
        short_tokens=6, min_seconds=0, short_seconds=60, long_factor=6, pause=0, num_pages=30, num_one_token=10, busy_seconds=0.5
    )
    examined = look(server.url, reader=FakeGpu(), machine=cuda_machine, api_key="k", sizes=for_it)
    assert examined.is_healthy, [(check.name, found) for check, found in examined.findings if found.verdict is not Verdict.OK]
    assert examined.about == f"glmserve with tiny-glm at {server.url}, on this machine"
    skipped = {check.name for check, found in examined.findings if found.verdict is Verdict.SKIPPED}
    assert skipped <= {"decode_speed"}  # the fake engine reads no weights
    assert server.idle()


def test_somebody_elses_healthy_server_without_a_gpu(start: Callable[..., FaultyServer]) -> None:
    examined = look(start(has_metrics=False).url)
    assert examined.is_healthy, [(check.name, found) for check, found in examined.findings if found.verdict is not Verdict.OK]
    reasons = {check.name: found.summary for check, found in examined.findings if found.verdict is Verdict.SKIPPED}
    assert reasons["offload"] == reasons["driver"] == "no NVIDIA GPU on this machine"
    assert "pulses" not in reasons


def test_the_load_is_said_before_it_is_sent(start: Callable[..., FaultyServer]) -> None:
    server, said = start(), []
    config = DoctorConfig()
    asyncio.run(
        examine(server.url, config, lambda words: None, announce=lambda words: said.append((words, len(server.bodies))), sizes=SMALL)
    )
    ((words, num_sent),) = said
    assert f"at most {SMALL.num_small} small requests" in words
    assert num_sent == 0
    assert 0 < len(server.bodies) <= SMALL.num_small
