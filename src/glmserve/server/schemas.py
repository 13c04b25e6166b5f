"""What clients may send.  Field names are OpenAI's, with vLLM's additions; ChatGLM-6B's own protocol stands at the end.

Bodies are parsed strictly (no "1" for 1, no NaN) straight from bytes; fields that are not here are ignored, as clients
send many that change nothing.  Fields that would change the answer and are not served are refused by `_refuse`.
Answers have no schema here: they are written as plain dicts where they arise, since checking them costs time on each token.
"""

from __future__ import annotations

from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from glmserve.config import ServerConfig
from glmserve.protocol.errors import InvalidRequestError
from glmserve.protocol.sampling_params import SamplingParams

COMPLETION_MAX_TOKENS = 16  # OpenAI's default of the older protocol
MAX_PROMPTS = 256
NOT_SERVED = (
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "use_beam_search", "prompt_logprobs",
)  # fmt: skip
SAMPLING_FIELDS = (
    "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop",
    "stop_token_ids", "ignore_eos", "min_tokens", "skip_special_tokens", "include_stop_str_in_output",
)  # fmt: skip
Model = TypeVar("Model", bound=BaseModel)


class Body(BaseModel):
    """A JSON body."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", protected_namespaces=())


class StreamOptions(Body):
    """How a stream is sent."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: usage with every chunk


class SamplingBody(Body):
    """The sampling fields that both OpenAI protocols share; None is the default."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    # vLLM's additions
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    priority: int | None = None
    return_token_ids: bool | None = None
    # known, and refused where they would change the answer
    best_of: int | None = None
    use_beam_search: bool | None = None
    response_format: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
    prompt_logprobs: int | None = None

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        for name in NOT_SERVED:
            if getattr(self, name):
                raise InvalidRequestError(f"{name} is not served here: leave it out", name)
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequestError("best_of is not served here: leave it out, or ask for n answers", "best_of")
        if self.response_format is not None and self.response_format.get("type") != "text":
            raise InvalidRequestError("only the response_format {'type': 'text'} is served here: leave it out", "response_format")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options needs stream: true", "stream_options")
        if self.priority is not None and not -(2**31) <= self.priority < 2**31:
            raise InvalidRequestError("priority must fit in 32 bits", "priority")
        return self

    def _params(self, defaults: dict[str, Any], **more: Any) -> SamplingParams:
        """Sampling parameters: what was sent, over `defaults`, over SamplingParams' own."""
        sent = {name: value for name in SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        if self.logit_bias:
            sent["logit_bias"] = _logit_bias(self.logit_bias)
        return SamplingParams(**(defaults | more | sent))


class ChatCompletionRequest(SamplingBody):
    """POST /v1/chat/completions."""

    messages: list[Any]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if (self.tools and self.tool_choice != "none") or self.functions:
            raise InvalidRequestError("tools are not served here: leave them out", "tools" if self.tools else "functions")
        if self.modalities and self.modalities != ["text"]:
            raise InvalidRequestError("this model writes text only: leave modalities out", "modalities")
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs: true", "top_logprobs")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= 20:
            raise InvalidRequestError(f"top_logprobs must be from 0 to 20, got {self.top_logprobs}", "top_logprobs")
        return self

    def sampling_params(self, config: ServerConfig) -> SamplingParams:
        """Sampling parameters, over the server's defaults of chat."""
        max_tokens = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._params(chat_defaults(config), max_tokens=max_tokens, logprobs=logprobs)


class CompletionRequest(SamplingBody):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = None

    @model_validator(mode="after")
    def _check_completion(self) -> Self:
        if self.suffix:
            raise InvalidRequestError("suffix is not served here: this model continues a text, it fills no gaps", "suffix")
        if self.echo and self.logprobs is not None:
            raise InvalidRequestError("echo together with logprobs is not served here: ask for one of them", "echo")
        if not self.prompt:
            raise InvalidRequestError("prompt must not be empty", "prompt")
        if len(self.prompts) > MAX_PROMPTS:
            raise InvalidRequestError(f"prompt takes at most {MAX_PROMPTS} prompts, got {len(self.prompts)}", "prompt")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or many, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)  # type: ignore[arg-type]

    def sampling_params(self) -> SamplingParams:
        """Sampling parameters, over OpenAI's defaults."""
        max_tokens = COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        return self._params({}, max_tokens=max_tokens, logprobs=self.logprobs)


class TokenizeRequest(Body):
    """POST /tokenize: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("send either prompt or messages", "prompt")
        return self


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class ChatGLMRequest(Body):
    """POST / and POST /stream: the body of ChatGLM-6B's api.py.  What is missing, null or 0 takes the server's default."""

    prompt: str | None = None
    history: list[Any] | None = None
    max_length: int | None = None
    top_p: float | None = None
    temperature: float | None = None

    def sampling_params(self, config: ServerConfig) -> SamplingParams:
        """Sampling parameters; `max_length` is no part of them, since it counts the prompt too."""
        defaults = chat_defaults(config)
        sent = {name: value for name in ("top_p", "temperature") if (value := getattr(self, name))}
        return SamplingParams(**(defaults | sent), max_tokens=None)

    def length(self, config: ServerConfig) -> int:
        """Longest prompt plus answer in tokens."""
        if self.max_length is not None and self.max_length < 0:
            raise InvalidRequestError(f"max_length must be positive, got {self.max_length}", "max_length")
        return self.max_length or config.default_max_length


class GenerateMessage(ChatGLMRequest):
    """WebSocket {"type": "generate"}: a prompt with history, or messages; and sampling parameters."""

    messages: list[Any] | None = None
    id: str | None = None
    max_tokens: int | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    priority: int | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.prompt and self.messages is None:
            raise InvalidRequestError("prompt required: send prompt (with history) or messages", "prompt")
        if self.id is not None and not 0 < len(self.id) <= 128:
            raise InvalidRequestError("id must have 1 to 128 characters", "id")
        return self

    def sampling_params(self, config: ServerConfig) -> SamplingParams:
        """Sampling parameters; here temperature 0 is greedy, as in OpenAI's protocol."""
        sent = {name: value for name in SAMPLING_FIELDS if (value := getattr(self, name, None)) is not None}
        return SamplingParams(**(chat_defaults(config) | sent), max_tokens=self.max_tokens)


def chat_defaults(config: ServerConfig) -> dict[str, Any]:
    """The server's own sampling defaults of chat."""
    return {"temperature": config.default_temperature, "top_p": config.default_top_p, "top_k": config.default_top_k}


def parse_body(kind: type[Model], body: bytes) -> Model:
    """`body` as `kind`.  Raises InvalidRequestError that names the field at fault and what is wrong with it."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is not valid UTF-8 (byte {error.start}): send JSON in UTF-8") from None
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_input=False)) from None


def _invalid(problems: list[ErrorDetails]) -> InvalidRequestError:
    first = problems[0]
    if first["type"] == "json_invalid":
        return InvalidRequestError(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if not first["loc"]:
        return InvalidRequestError("the body must be a JSON object")
    param = str(first["loc"][0])
    if first["type"] == "missing":
        return InvalidRequestError(f"{param} is missing", param)
    wanted = dict.fromkeys(_wanted(problem) for problem in problems if problem["loc"][:1] == first["loc"][:1])
    return InvalidRequestError(f"{param} is not valid: {' or '.join(wanted)}", param)


def _wanted(problem: ErrorDetails) -> str:
    return problem["msg"].removeprefix("Input ").replace("Value error, ", "")


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token_id): value for token_id, value in bias.items()}
    except ValueError:
        raise InvalidRequestError('logit_bias must map token ids to numbers, as in {"50256": -100}', "logit_bias") from None
