"""A running server: the app on a port, what it prints at its start, and its end.

SIGTERM and Ctrl-C drain: /ready turns to 503 and new requests get 503 at once, those that run may finish for
ServerConfig.shutdown_timeout, then they are cut off.  A second signal ends it now.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from rich.console import Console
from rich.table import Table

from glmserve.client.engine_client import EngineClient
from glmserve.client.supervisor import EngineState
from glmserve.config import EngineConfig, ServerConfig
from glmserve.models.catalog import read_spec
from glmserve.models.demo import BUILT_IN, resolve_model
from glmserve.protocol.errors import AddressError, EngineUnavailableError, GlmserveError, SettingsError
from glmserve.protocol.messages import EngineReady
from glmserve.server.app import create_app
from glmserve.server.services import Services
from glmserve.text.tokenizer import load_tokenizer

ENGINE_MODULE = "glmserve.engine.main"
WS_PING_SECONDS = 20.0
CLOSE_SECONDS = 3  # what is left of connections after the drain gets this long to notice
OPEN_FILES = 65536  # each client is one; the usual limit of 1024 is that of programs from before epoll
EVERY_ADDRESS = ("0.0.0.0", "::")


def serve(
    engine_config: EngineConfig, server_config: ServerConfig, *, engine_module: str = ENGINE_MODULE, engine_args: Sequence[str] = ()
) -> None:
    """Serve until a signal ends it.

    Raises SettingsError where the port cannot be had, ModelLoadError where the folder cannot be served, and
    EngineUnavailableError where the engine cannot be started; each says what to do.
    """
    _set_up_log(server_config.log_level)
    allow_many_clients()
    listener = bind(server_config.host, server_config.port)
    with contextlib.closing(listener):
        name = engine_config.model
        folder = resolve_model(name)
        spec = read_spec(folder)
        tokenizer = None
        if not engine_config.skip_tokenizer_init:
            tokenizer = load_tokenizer(folder, spec, server_config.allow_special_tokens)
        engine_config = engine_config.model_copy(update={"model": str(folder)})
        client = EngineClient(engine_config, server_config, engine_module=engine_module, engine_args=engine_args)
        one_at_a_time = engine_config.batching == "serial"
        app = create_app(server_config, client, tokenizer, spec, model_name=_model_name(name, folder), one_at_a_time=one_at_a_time)
        server = DrainingServer(uvicorn_config(app, server_config), app.state.services)
        with garbage_collected_seldom():
            server.run(sockets=[listener])
        if server.failure is not None:
            raise server.failure


def _set_up_log(level: str) -> None:
    """Lines of our own modules go to stderr, as uvicorn's do, and so do a lost collector's; other libraries keep their quiet defaults."""
    logging.getLogger("glmserve").setLevel(level.upper())
    for name in ("glmserve", "opentelemetry"):
        if not (log := logging.getLogger(name)).handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            log.addHandler(handler)


@contextlib.contextmanager
def garbage_collected_seldom() -> Iterator[None]:
    """Leave what is there already to itself, and look at the rest a fourteenth as often as Python would.

    With 256 streams a look at everything took an eighth of a second every two, in which no token left the server.
    """
    usual = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def allow_many_clients() -> None:
    """Raise this process's own limit of open files as far as the system lets it; a service manager's lower hard limit stands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _model_name(name: str, folder: Path) -> str:
    """What clients call the model: the folder's own name, but a built-in model keeps its name wherever it lies."""
    return name if name in BUILT_IN else folder.resolve().name


def uvicorn_config(app: object, config: ServerConfig) -> uvicorn.Config:
    """uvicorn as this server wants it: the fast parts, no access log (the request log says more)."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        lifespan="on",
        access_log=False,
        log_level=config.log_level if config.log_level != "info" else "warning",
        ws_max_size=config.max_body_bytes,
        ws_ping_interval=WS_PING_SECONDS,
        ws_ping_timeout=WS_PING_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        server_header=False,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises AddressError that says what to do where the address is taken or not there, SettingsError where it can never be had.
    """
    family, sort, protocol, _, address = _resolve(host, port)
    listener = socket.socket(family, sort, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        kind = AddressError if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL) else SettingsError
        raise kind(_bind_advice(host, port, error)) from error
    listener.setblocking(False)
    return listener


def _resolve(host: str, port: int) -> tuple[int, int, int, str, tuple[object, ...]]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise SettingsError(f"{host} is no address to listen on ({error.strerror}): give another one with --host") from error


def _bind_advice(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken by another program: stop that one, or choose another port with --port (0 takes a free one)"
    if error.errno == errno.EACCES:
        return f"port {port} is not allowed for this user: choose one above 1023 with --port"
    return f"{host}:{port} cannot be listened on ({error.strerror}): choose another --host or --port"


class DrainingServer(uvicorn.Server):
    """uvicorn, which goes on listening while running requests finish, and which ends where the engine cannot be started."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hurry = False
        self.failure: GlmserveError | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn; the engine loads on while the port is open already."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._tasks.append(asyncio.create_task(self._tell_of_start(sockets or [])))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn, after the drain."""
        for task in self._tasks:
            task.cancel()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one cuts off what still runs.  Called between two bytecodes: it only leaves word."""
        self._hurry = self._services.admission.draining
        self._services.admission.close()
        if self._loop is None:
            self.should_exit = True
        elif not self._hurry:
            self._loop.call_soon_threadsafe(self._start_drain, signal.Signals(sig).name)

    def _start_drain(self, why: str) -> None:
        self._tasks.append(asyncio.create_task(self._drain(why)))

    async def _drain(self, why: str) -> None:
        admission, limit = self._services.admission, self._services.config.shutdown_timeout
        if admission.num_requests:
            self._say(f"{why}: finishing {admission.num_requests} requests, for at most {limit:g} s")
        admission.cut_arriving()
        deadline = time.monotonic() + limit
        while admission.num_requests and time.monotonic() < deadline and not self._hurry:
            await asyncio.sleep(0.05)
        if admission.num_requests:
            self._say(f"{admission.num_requests} requests are not done and are cut off")
            await self._services.client.stop()  # their streams end with an error that says so
        self.should_exit = True

    async def _tell_of_start(self, sockets: list[socket.socket]) -> None:
        client = self._services.client
        said = None
        waiting = asyncio.create_task(client.wait_ready())
        try:
            while not (await asyncio.wait([waiting], timeout=0.2))[0]:
                if client.loading and client.loading != said:
                    said = client.loading
                    self._say(f"engine: {said}")
            waiting.result()
        except EngineUnavailableError as error:
            if client.state is EngineState.FAILED:
                self.failure = error
                self.should_exit = True
            return
        finally:
            waiting.cancel()
        if client.ready is not None:
            self._show(client.ready, sockets)
        await self._end_with_the_engine()

    async def _end_with_the_engine(self) -> None:
        """A server whose engine is given up ends, so that whoever runs it can see that and start it anew."""
        while self._services.client.state is not EngineState.FAILED:
            await asyncio.sleep(0.5)
        self.failure = EngineUnavailableError(f"the engine failed for good: {self._services.client.failure}")
        self.should_exit = True

    def _show(self, ready: EngineReady, sockets: list[socket.socket]) -> None:
        table = Table(title=f"{self._services.model_name} on {ready.device_name} ({ready.dtype})", title_justify="left")
        for column in ("part", "where", "size"):
            table.add_column(column)
        for row in ready.placement:
            table.add_row(*row)
        self._console.print(table)
        self._say(
            f"room for {ready.num_kv_tokens} K/V tokens, {ready.max_model_len} a request, {ready.max_num_seqs} requests at a time; "
            f"loaded in {ready.load_seconds.get('total', sum(ready.load_seconds.values())):.1f} s"
        )
        for listener in sockets:
            url = _url(listener)
            self._say(f"serving {self._services.model_name} at {url}/v1 (OpenAI), {url}/ (ChatGLM-6B), docs at {url}/docs")
            if self._services.config.web:
                self._say(f"chat and dashboard: open {url}/ in a browser")

    def _say(self, line: str) -> None:
        self._console.print(f"glmserve: {line}", markup=False)
        sys.stderr.flush()


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in EVERY_ADDRESS:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
