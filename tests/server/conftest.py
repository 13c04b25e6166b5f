"""Servers shared by the tests of this folder: each is started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from glmserve.engine.fake import FakeOptions
from glmserve.models.catalog import read_spec
from glmserve.text.tokenizer import load_tokenizer
from tests.server.serving import FIXTURE, ServerInThread

ANSWER = "你好! 我是人工智能助手, 很高兴见到你."


@pytest.fixture(scope="session")
def answer_ids() -> tuple[int, ...]:
    """Token ids of ANSWER, ended by the end token."""
    spec = read_spec(FIXTURE)
    tokenizer = load_tokenizer(FIXTURE, spec)
    return (*tokenizer.encode(ANSWER, add_special_tokens=False), spec.eos_token_ids[0])


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., ServerInThread]]:
    """ServerInThread, stopped at the end whatever happens."""
    servers: list[ServerInThread] = []

    def start(*args: object, **kwargs: object) -> ServerInThread:
        server = ServerInThread(*args, **kwargs)  # type: ignore[arg-type]
        servers.append(server)
        return server

    yield start
    for server in servers:  # all at once, then each is waited for
        server.server.should_exit = True
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def fast(start_server: Callable[..., ServerInThread], answer_ids: tuple[int, ...]) -> ServerInThread:
    """Answers ANSWER at once to whatever it is asked."""
    return start_server(FakeOptions(alphabet=answer_ids))


@pytest.fixture(scope="session")
def slow(start_server: Callable[..., ServerInThread], answer_ids: tuple[int, ...]) -> ServerInThread:
    """Takes its time, one request after the other, and has little room."""
    return start_server(
        FakeOptions(alphabet=answer_ids[:-1], step_seconds=0.02),
        engine={"max_num_seqs": 1},
        server={"max_num_queued_reqs": 3, "max_num_queued_tokens": 600, "first_token_timeout": 1.0, "request_timeout": 2.5},
    )
