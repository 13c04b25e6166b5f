"""The exception tree.  A user's mistake is one of these, and its message says what to do next.

GlmserveError
├── InvalidRequestError      the request cannot be served as it is written        HTTP 400
│   └── ContextLengthError   prompt, or prompt + answer, longer than the model    HTTP 400
├── ModelNotFoundError       no model of that name is served here                 HTTP 404
├── OverloadedError          the queue is full; `retry_after` seconds             HTTP 503
├── EngineUnavailableError   the engine is starting, draining, dead or hung       HTTP 503
├── DeadlineExceededError    the request's own time limit passed                  HTTP 504
├── AddressError             the address to listen on is taken, or not there yet  at start
├── SettingsError            a flag, variable or settings file that cannot be     at start
└── ModelLoadError           a model folder that cannot be served                 at start
    └── NotEnoughMemoryError how many bytes are missing                           at start
"""

from __future__ import annotations


class GlmserveError(Exception):
    """Root of all errors that a user can cause or can act on."""

    http_status = 500
    error_type = "internal_server_error"
    code: str | None = None
    in_request_log = False  # set where the request that it ended has its line already


class InvalidRequestError(GlmserveError):
    """The request cannot be served as written; `param` names the offending field where one is to blame."""

    http_status = 400
    error_type = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """Prompt, or prompt plus requested answer, exceeds the model's context."""

    code = "context_length_exceeded"


class ModelNotFoundError(GlmserveError):
    """No model of that name is served here."""

    http_status = 404
    error_type = "invalid_request_error"
    code = "model_not_found"


class OverloadedError(GlmserveError):
    """The queue is full.  `retry_after` is in seconds."""

    http_status = 503  # 429 is for a caller's own quota; a full server is capacity, as OpenAI and vLLM have it
    error_type = "service_unavailable_error"
    code = "server_is_overloaded"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineUnavailableError(GlmserveError):
    """The engine is starting, draining, dead or hung.  `retry_after` is in seconds."""

    http_status = 503
    error_type = "service_unavailable_error"
    code = "engine_unavailable"

    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceededError(GlmserveError):
    """The request's own time limit, to the first token or in total, passed before it was done."""

    http_status = 504
    error_type = "timeout_error"
    code = "deadline_exceeded"


class AddressError(GlmserveError):
    """The address to listen on is taken or not there yet, which may pass; the message says what to do."""


class SettingsError(GlmserveError):
    """A flag, variable or settings file that cannot be used; the message names it, its value and what is allowed."""


class ModelLoadError(GlmserveError):
    """A model folder that cannot be served; the message names the file and what to do."""


class NotEnoughMemoryError(ModelLoadError):
    """The model, or the smallest useful K/V pool, does not fit.  `missing_bytes` says by how much."""

    def __init__(self, message: str, missing_bytes: int) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes
