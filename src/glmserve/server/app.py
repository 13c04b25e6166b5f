"""The FastAPI application: routes, error bodies, and the parts behind them.  `run` puts it on a port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from glmserve.client.engine_client import EngineClient
from glmserve.client.supervisor import EngineState
from glmserve.config import ServerConfig
from glmserve.models.spec import ModelSpec
from glmserve.observe.alert_file import load_alert_rules
from glmserve.observe.gpu import GpuSampler
from glmserve.observe.metrics import EngineView, Metrics
from glmserve.observe.request_log import RequestLog, Traces
from glmserve.observe.request_record import CLIENT_GONE_STATUS
from glmserve.observe.scale import ScaleSignal, ScaleTargets
from glmserve.observe.self_watch import SelfWatch
from glmserve.protocol.errors import GlmserveError, InvalidRequestError, SettingsError
from glmserve.server.admission import Admission
from glmserve.server.client_watch import ClientGoneError
from glmserve.server.errors import RouteError, error_response
from glmserve.server.kept_answers import KeptAnswers
from glmserve.server.middleware import RequestGate
from glmserve.server.routes import chatglm, openai, operations, scale, web, websocket
from glmserve.server.services import Services, services_of
from glmserve.text.generator import TextGenerator
from glmserve.text.tokenizer import Tokenizer
from glmserve.version import __version__


def create_app(
    server_config: ServerConfig,
    engine_client: EngineClient,
    tokenizer: Tokenizer | None,
    spec: ModelSpec,
    *,
    model_name: str,
    request_log: RequestLog | None = None,
    one_at_a_time: bool = False,
) -> FastAPI:
    """The application.  Its lifespan starts the engine, without waiting for it, and stops it.

    `tokenizer` is None where only token ids are served.  `app.state.services` holds the parts.
    `one_at_a_time`: a request is begun when the one before it has been answered.
    """
    name = server_config.served_model_name or model_name
    admission = Admission(server_config.max_num_queued_reqs, server_config.max_num_queued_tokens, one_at_a_time, engine_client.http_work)
    scale_signal = ScaleSignal(_scale_targets(server_config))
    gpu = GpuSampler(lambda: None if (ready := engine_client.ready) is None else ready.device_uuid)
    metrics = Metrics(name, _engine_view(engine_client, admission, scale_signal, gpu))
    watch = _self_watch(server_config, engine_client, metrics, scale_signal)
    log = request_log or RequestLog(level=server_config.log_level)
    log.traces = _traces(server_config.otlp_traces_endpoint, name)
    generator = TextGenerator(
        engine_client, tokenizer, spec, metrics, log, server_config.first_token_timeout, server_config.request_timeout
    )
    kept_answers = KeptAnswers(server_config.resume_seconds)
    services = Services(server_config, engine_client, spec, name, generator, admission, metrics, kept_answers, watch, log)
    app = FastAPI(title="glmserve", version=__version__, lifespan=_lifespan(services, gpu))
    app.state.services = services
    routers = [module.router for module in (openai, chatglm, operations, scale, websocket, *((web,) if server_config.web else ()))]
    for router in routers:
        app.include_router(router)
    _add_error_handlers(app)
    paths = frozenset(route.path for router in routers for route in router.routes if isinstance(route, Route))
    app.add_middleware(
        RequestGate,
        api_keys=server_config.api_key,
        max_body_bytes=server_config.max_body_bytes,
        count=metrics.count_http,
        label=lambda path: _path_label(path, paths),
        refused=services.log_refusal,
    )
    return app


def _engine_view(client: EngineClient, admission: Admission, scale_signal: ScaleSignal, gpu: GpuSampler) -> EngineView:
    return EngineView(
        stats=lambda: client.stats,
        ready=lambda: client.ready,
        num_restarts=lambda: client.num_engine_restarts,
        num_accepted=lambda: (admission.num_requests, admission.num_tokens),
        num_rejected=lambda: admission.num_rejected,
        desired_replicas=lambda: scale_signal.load,
        gpu=gpu,
    )


def _self_watch(config: ServerConfig, client: EngineClient, metrics: Metrics, scale_signal: ScaleSignal) -> SelfWatch:
    """Raises SettingsError for alert rules that cannot be used."""

    def num_places() -> int | None:
        return client.ready.max_num_seqs if client.ready is not None and client.state is EngineState.READY else None

    rules = load_alert_rules(config.alert_rules) if config.alert_rules is not None else None
    return SelfWatch(
        metrics.registry.collect, num_places, scale_signal, config.scale_window, rules, f"{socket.gethostname()}:{config.port}"
    )


def _traces(endpoint: str | None, model_name: str) -> Traces | None:
    """Raises SettingsError where the extra is missing."""
    if endpoint is None:
        return None
    try:
        from glmserve.observe.traces import RequestTraces  # here, since it needs an extra and half a second
    except ImportError as error:
        raise SettingsError(f"--otlp-traces-endpoint needs OpenTelemetry ({error}): pip install 'glmserve[otel]'.") from error
    return RequestTraces(endpoint, model_name)


def _scale_targets(config: ServerConfig) -> ScaleTargets:
    return ScaleTargets(config.scale_ttft, config.scale_waiting, config.scale_kv_usage, config.scale_window, config.scale_hold)


def _lifespan(services: Services, gpu: GpuSampler) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await services.client.start()
        gpu.start()
        watching = asyncio.create_task(services.watch.run())
        try:
            yield
        finally:
            services.admission.close()
            gpu.stop()
            watching.cancel()
            await asyncio.to_thread(services.watch.close)
            await services.kept_answers.close()
            await services.client.stop()
            if services.request_log.traces is not None:
                await asyncio.to_thread(services.request_log.traces.close)
            services.generator.close()

    return lifespan


def _path_label(path: str, known: frozenset[str]) -> str:
    if path in known:
        return path
    for prefix, label in (("/v1/models/", "/v1/models/{name:path}"), ("/web/", "/web/{path:path}")):
        if path.startswith(prefix) and label in known:
            return label
    return "other"


def _add_error_handlers(app: FastAPI) -> None:
    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, GlmserveError)
        services_of(request).log_refusal(request.scope, error)
        return error_response(error, request.url.path)

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(_route_error(request, error), request.url.path)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        name, wrong = str(error.errors()[0]["loc"][-1]), error.errors()[0]["msg"]
        return error_response(InvalidRequestError(f"{name}: {wrong[:1].lower()}{wrong[1:]}", name), request.url.path)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE_STATUS)  # nobody is there to read it; it is for the count

    app.add_exception_handler(GlmserveError, known)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(ClientDisconnect, gone)


def _route_error(request: Request, error: HTTPException) -> RouteError:
    path, method = request.url.path, request.method
    if error.status_code == 404:
        return RouteError(f"there is nothing at {path}: /docs lists what there is", 404)
    if error.status_code == 405:
        return RouteError(f"{path} does not take {method}: /docs lists what it takes", 405)
    return RouteError(str(error.detail), error.status_code)
