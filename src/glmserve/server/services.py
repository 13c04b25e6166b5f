"""What every route needs, in one place: built once by `create_app`, found again through the request's app."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection, Request
from starlette.types import Scope

from glmserve.client.engine_client import EngineClient
from glmserve.client.supervisor import EngineState
from glmserve.config import ServerConfig
from glmserve.models.spec import ModelSpec
from glmserve.observe.metrics import Metrics
from glmserve.observe.request_log import RequestLog
from glmserve.observe.self_watch import SelfWatch
from glmserve.protocol.errors import EngineUnavailableError, GlmserveError, InvalidRequestError, ModelNotFoundError
from glmserve.server.admission import Admission, Place
from glmserve.server.kept_answers import KeptAnswers
from glmserve.server.schemas import Model, parse_body
from glmserve.text.answer import TextAnswer
from glmserve.text.generator import GenerationRequest, TextGenerator
from glmserve.text.tokenizer import Tokenizer
from glmserve.version import __version__

REQUEST_ID = "glmserve.request_id"  # key of the ASGI scope


@dataclass(frozen=True)
class Services:
    """The parts of a running server."""

    config: ServerConfig
    client: EngineClient
    spec: ModelSpec
    model_name: str
    generator: TextGenerator
    admission: Admission
    metrics: Metrics
    kept_answers: KeptAnswers
    watch: SelfWatch
    request_log: RequestLog
    created: int = field(default_factory=lambda: int(time.time()))
    system_fingerprint: str = f"glmserve-{__version__}"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.  Raises InvalidRequestError where the server was started without one."""
        if self.generator.tokenizer is None:
            raise InvalidRequestError("this server was started without a tokenizer: send token ids to /v1/completions")
        return self.generator.tokenizer

    @staticmethod
    def now() -> int:
        """Seconds since 1970, as answers carry them."""
        return int(time.time())

    def not_ready_because(self) -> str | None:
        """Why requests cannot be served now; None where they can."""
        client = self.client
        if self.admission.draining:
            return "the server is shutting down"
        if client.state is not EngineState.READY:
            details = client.loading or client.failure
            return f"the engine is {client.state}" + (f" ({details})" if details else "")
        if (age := client.heartbeat_age()) > self.config.engine_hang_timeout:
            return f"the engine has been silent for {age:.0f} s"
        return None

    def reserve(self, num_bytes: int = 0) -> Place:
        """A place for a request, before any work; `num_bytes` are those of its body as far as it is there.

        Raises EngineUnavailableError and OverloadedError.
        """
        if (reason := self.not_ready_because()) is not None:
            raise EngineUnavailableError(f"{reason}: try again shortly")
        return self.admission.reserve(num_bytes)

    async def read(self, kind: type[Model], request: Request, place: Place | None = None) -> Model:
        """The request's body as `kind`; its size is counted in its place.

        Raises InvalidRequestError, PayloadTooLargeError, and what `Admission.arrival` and `Place.expect` do.
        """
        async with self.admission.arrival(self.config.first_token_timeout):
            body = await request.body()
        if place is not None:
            place.expect(len(body))
        return parse_body(kind, body)

    async def start(self, generation: GenerationRequest, place: Place) -> TextAnswer:
        """Start an answer, which keeps the place until it has ended; where one is served at a time, when its turn has come.

        Raises what TextGenerator.start does, and DeadlineExceededError.
        """
        await place.wait_turn(self.config.first_token_timeout)
        answer = await self.generator.start(generation, place.correct, place.release, place.since, place.turn_seconds)
        place.keep()
        return answer

    def log_refusal(self, scope: Scope, error: GlmserveError) -> None:
        """A line about a request that was turned away, unless it has one; looking at the server (GET) is not worth one."""
        if not error.in_request_log and scope.get("method", "POST") == "POST":
            self.request_log.refuse(str(scope.get(REQUEST_ID, "")), scope["path"], error.http_status, error.code, str(error))

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFoundError for a name that is not served; no name is the served model's."""
        if name and name != self.model_name:
            raise ModelNotFoundError(f"the model {name!r} is not served here: use {self.model_name!r}")


def services_of(connection: HTTPConnection) -> Services:
    """The services of the app that a request or a WebSocket belongs to."""
    services: Services = connection.app.state.services
    return services


def request_id_of(connection: HTTPConnection) -> str:
    """The id that the middleware gave to the request, or the client's own."""
    return str(connection.scope[REQUEST_ID])
