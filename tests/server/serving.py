"""A real server in a thread of the test: uvicorn on a free port, the fake engine as a process behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import httpx

from glmserve.client.engine_client import EngineClient
from glmserve.config import EngineConfig, ServerConfig
from glmserve.engine.fake import FakeOptions
from glmserve.models.catalog import read_spec
from glmserve.observe.request_log import RequestLog
from glmserve.server.app import create_app
from glmserve.server.run import DrainingServer, bind, uvicorn_config
from glmserve.text.tokenizer import load_tokenizer

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tokenizer"
MODEL = "tiny-glm"


def eventually(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """What `condition` gives once it is true; fails where it never is."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"never became true: {condition}"
        time.sleep(0.01)
    return result


class ServerInThread:
    """Starts on construction; `stop` ends it."""

    def __init__(
        self,
        options: FakeOptions,
        *,
        folder: Path = FIXTURE,
        wait: bool = True,
        engine: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
    ) -> None:
        engine_config = EngineConfig(model=str(folder), **(engine or {}))
        self.config = ServerConfig(**({"host": "127.0.0.1", "port": 0, "served_model_name": MODEL, "shutdown_timeout": 5} | (server or {})))
        self.spec = read_spec(folder)
        self.tokenizer = None if engine_config.skip_tokenizer_init else load_tokenizer(folder, self.spec)
        self.client = EngineClient(
            engine_config, self.config, engine_module="glmserve.engine.fake", engine_args=options.as_arguments(), first_backoff=0.01
        )
        self.log = StringIO()
        app = create_app(
            self.config, self.client, self.tokenizer, self.spec, model_name="folder", request_log=RequestLog(self.log),
            one_at_a_time=engine_config.batching == "serial",
        )  # fmt: skip
        self.services = app.state.services
        listener = bind(self.config.host, self.config.port)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = DrainingServer(uvicorn_config(app, self.config), self.services)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=30)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Until /ready says 200."""
        eventually(lambda: self.server.started)
        eventually(lambda: self.http.get("/ready").status_code == 200)

    def stop(self) -> None:
        """As a finished drain would."""
        self.http.close()
        self.server.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that have these labels."""
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith((name + "{", name + " ")) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def idle(self) -> bool:
        """Nothing is accepted, waiting or running any more, here or in the engine."""
        stats = self.client.stats
        return self.services.admission.num_requests == 0 and self.client.num_open_requests == 0 and not stats.num_requests_running

    def count_texts(self, texts: Sequence[str]) -> int:
        """Tokens of prompts."""
        assert self.tokenizer is not None
        return sum(len(self.tokenizer.encode(text)) for text in texts)


def chat_body(content: str = "你好", **more: Any) -> dict[str, Any]:
    """The smallest chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **more}
