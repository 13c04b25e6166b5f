"""All settings, frozen, read once: flags over environment (GLMSERVE_*) over a YAML file over the defaults here.

A setting is spelled once, as a field: its name makes the flag (`max_num_seqs` -> `--max-num-seqs`), the variable
(`GLMSERVE_MAX_NUM_SEQS`) and the YAML key; its type and limits check the value; its description is the help text; the class
that declares it is its group in `--help`.  Flag names are vLLM's where vLLM has the flag.
Nothing else in the project reads the environment or a settings file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from inspect import get_annotations
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from glmserve.protocol.errors import SettingsError

ENV_PREFIX = "GLMSERVE_"


class Settings(BaseModel):
    """Some settings, frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSettings(Settings):
    """Model"""

    model: str = Field("demo", description="Model folder, or a built-in model: `demo` writes Chinese poems, `demo-en` talks English.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the whole model lies; never split.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Numbers of weights and activations. auto: the checkpoint's own on a GPU, float32 on a CPU."
    )
    quantization: Literal["auto", "none", "fp8", "int8", "int4"] = Field(
        "auto", description="Format of the weights; a plain checkpoint is rounded as it loads. auto: what the checkpoint is."
    )
    ptuning_checkpoint: str | None = Field(None, description="Folder with P-Tuning weights (prefix_encoder) for this ChatGLM model.")
    kv_cache_dtype: Literal["auto", "fp8"] = Field("auto", description="Numbers of the K/V cache. auto: the model's dtype; fp8: e4m3.")
    max_model_len: int | None = Field(None, ge=2, description="Longest prompt plus answer in tokens. Default: the model's.")
    load_format: Literal["auto", "dummy"] = Field("auto", description="dummy: random weights of the config's shape.")
    skip_tokenizer_init: bool = Field(False, description="Serve token ids only; needs no tokenizer files.")
    seed: int = Field(0, description="Seed of dummy weights and of requests that give none.")


class BatchSettings(Settings):
    """Batching and memory"""

    batching: Literal["serial", "async", "window", "continuous"] = Field(
        "continuous",
        description="Who runs together: one request end to end, one after the other, those of a window, or whoever fits (docs/ladder.md).",
    )
    batching_window: float = Field(0.05, ge=0, le=60, description="How many seconds --batching window gathers requests.")
    max_num_seqs: int = Field(256, ge=1, le=4096, description="Most sequences in one step.")
    max_num_batched_tokens: int | None = Field(
        None, ge=16, description="Most prompt tokens in one step. Default: 8192 on a GPU (offline 16384 from 70 GiB on), 2048 on a CPU."
    )
    gpu_memory_utilization: float = Field(0.90, gt=0.0, le=1.0, description="Share of the GPU's memory to use.")
    kv_cache_memory_bytes: int | None = Field(
        None, ge=1, description="Size of the K/V pool. Default: what the GPU has left; on a CPU 1 GiB or 32 full contexts."
    )
    block_size: int = Field(16, ge=1, le=256, description="Tokens in one K/V block.")
    num_kv_blocks: int | None = Field(None, ge=2, description="Exact number of K/V blocks, for tests.")
    enable_prefix_caching: bool = Field(True, description="Reuse K/V of identical contexts and shared prefixes.")
    enforce_eager: bool = Field(False, description="No CUDA graphs.")
    kernels: Literal["fused", "plain"] = Field(
        "fused", description="plain: torch's own operations on a GPU too, but for attention, to see what the fused kernels bring."
    )
    aging_seconds: float = Field(
        5.0, gt=0, allow_inf_nan=False, description="A waiting request gains one priority class each time this long passes."
    )
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads of the engine. Default: torch's, but one for a model below 100 million numbers."
    )


class EngineConfig(BatchSettings, ModelSettings):  # the last base's fields come first
    """What the GPU wing needs to know."""


class HttpSettings(Settings):
    """Server"""

    host: str = Field("0.0.0.0", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    served_model_name: str | None = Field(None, description="Name clients use. Default: the model folder's name.")
    api_key: tuple[str, ...] = Field((), description="Key that clients must send as a Bearer token; may be repeated. Default: open.")
    api_key_file: Path | None = Field(None, description="File with such keys, one a line, so that they show in no list of processes.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Level of the log.")
    web: bool = Field(True, description="Serve the web page at /: chat and dashboard.")
    otlp_traces_endpoint: str | None = Field(
        None, description="Collector of OpenTelemetry traces, as http://localhost:4318/v1/traces. Needs the extra `otel`."
    )

    @field_validator("otlp_traces_endpoint")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value

    @field_validator("api_key", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        """A variable holds several keys with commas between them."""
        keys = tuple(filter(None, value.split(","))) if isinstance(value, str) else value
        if isinstance(keys, list | tuple) and not all(isinstance(key, str) and key.strip() for key in keys):
            raise ValueError("a key must not be empty: it would let everybody in")
        return keys


class LimitSettings(Settings):
    """Limits and deadlines"""

    max_num_queued_reqs: int = Field(512, ge=1, description="Requests accepted at a time; more get 503.")
    max_num_queued_tokens: int = Field(1_000_000, ge=1, description="Prompt tokens accepted at a time; more get 503.")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Largest request body.")
    first_token_timeout: float = Field(30.0, gt=0, description="Longest wait for the first token, in seconds; then 504.")
    request_timeout: float = Field(600.0, gt=0, description="Longest time for a whole request, in seconds; then 504.")
    shutdown_timeout: float = Field(30.0, ge=0, description="How many seconds SIGTERM lets running requests finish.")
    resume_seconds: float = Field(60.0, ge=0, description="How long an answer waits for a WebSocket client to come back.")
    stream_interval: float = Field(0.0, ge=0, le=0.02, description="Longest wait, in seconds, to send tokens of a stream together.")
    engine_start_timeout: float = Field(1800.0, gt=0, description="Longest start of the engine, in seconds.")
    engine_hang_timeout: float = Field(60.0, gt=0, description="An engine silent for this many seconds is restarted.")
    max_engine_restarts: int = Field(5, ge=0, description="Restarts within ten minutes before the server gives up.")


class RequestDefaults(Settings):
    """Defaults of chat requests"""

    default_max_length: int = Field(2048, ge=2, description="ChatGLM protocol: prompt plus answer in tokens.")
    default_top_p: float = Field(0.7, gt=0, le=1, description="Default top_p of chat requests.")
    default_temperature: float = Field(0.95, ge=0, description="Default temperature of chat requests.")
    default_top_k: int = Field(50, ge=-1, description="Default top_k of chat requests; the released code applies 50.")
    allow_special_tokens: bool = Field(
        False, description="Let text from users become special tokens, as the released code does (a <sop> moves the context border)."
    )


class WatchSettings(Settings):
    """Alerts and scaling"""

    alert_rules: Path | None = Field(None, description="YAML file of alert rules; `glmserve monitor --show alert-rules` prints one.")
    scale_ttft: float = Field(2.0, gt=0, description="GET /scale: seconds within which 90% of first tokens should come.")
    scale_waiting: int = Field(4, ge=1, description="GET /scale: requests that may wait in a replica.")
    scale_kv_usage: float = Field(0.85, gt=0, le=1, description="GET /scale: share of K/V memory a replica may fill.")
    scale_window: float = Field(60.0, ge=10, description="GET /scale: seconds that the load is averaged over.")
    scale_hold: float = Field(300.0, ge=0, description="GET /scale: seconds until a load that fell counts as lower.")


class ServerConfig(WatchSettings, RequestDefaults, LimitSettings, HttpSettings):
    """What the HTTP wing needs to know.  Times are seconds, sizes are bytes."""


class ChatConfig(Settings):
    """Chat"""

    url: str = Field("http://localhost:8000", description="Server to talk to.")
    api_key: str | None = Field(None, description="Key, for a server that asks for one.")
    system: str | None = Field(None, description="System message at the head of each conversation.")
    temperature: float | None = Field(None, ge=0, le=100, description="0 always takes the likeliest token. Default: the server's.")
    top_p: float | None = Field(None, gt=0, le=1, description="Share of probability to sample from. Default: the server's.")
    max_tokens: int | None = Field(None, ge=1, description="Longest answer in tokens. Default: what the model has room for.")
    start_timeout: float = Field(1800.0, gt=0, description="How many seconds a model may take to load.")

    @field_validator("api_key")
    @classmethod
    def _first_key(cls, value: str | None) -> str | None:
        """The server's variable of the same name may hold several."""
        return value.split(",")[0] if value else None


S = TypeVar("S", bound=Settings)


class Given:
    """Values that a user gave, and where each came from."""

    def __init__(
        self,
        flags: Mapping[str, Any],
        kinds: tuple[type[Settings], ...],
        config_file: Path | None,
        variables: Mapping[str, str],
    ) -> None:
        """`flags` by field name; None stands for a flag not given.  Raises SettingsError for a file that cannot be used."""
        self.fields = [name for kind in kinds for name in kind.model_fields]
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        if config_file is not None:
            for key, value in _read_yaml(config_file, self.fields).items():
                self._take(key, value, f"the key {key} in {config_file}")
        for name in self.fields:
            if variables.get(variable := ENV_PREFIX + name.upper()):  # an empty variable is one not set
                self._take(name, variables[variable], f"the environment variable {variable}")
        for name, value in flags.items():
            if value is not None:
                self._take(name, value, "the command line" if name == "model" else f"the flag {flag_name(name)}")

    def _take(self, name: str, value: Any, origin: str) -> None:
        self.values[name], self.origin[name] = value, origin

    def read(self, kind: type[S]) -> S:
        """The settings of one kind.  Raises SettingsError that tells of every bad value."""
        try:
            return kind(**{name: value for name, value in self.values.items() if name in kind.model_fields})
        except ValidationError as error:
            names = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors())
            raise SettingsError("\n".join(self._complaint(kind, name) for name in names)) from error

    def _complaint(self, kind: type[Settings], name: str) -> str:
        value, origin = self.values[name], self.origin[name]
        shown = "an empty key" if name == "api_key" else repr(value)  # the other keys are nobody's business
        lines = [
            f"{name} cannot be {shown}: it takes {allowed_values(kind, name)}.",
            f"  It came from {origin}.  Meaning: {kind.model_fields[name].description}",
        ]
        if origin.endswith(f"{ENV_PREFIX}PORT") and "://" in str(value):
            lines.append("  Kubernetes sets it for a Service named glmserve: rename the Service or set enableServiceLinks: false.")
        return "\n".join(lines)


def load_serve_settings(
    flags: Mapping[str, Any], config_file: Path | None = None, environ: Mapping[str, str] | None = None
) -> tuple[EngineConfig, ServerConfig]:
    """Settings of `glmserve serve`.  Raises SettingsError that names key, value, what is allowed and where it came from."""
    variables = os.environ if environ is None else environ
    if config_file is None and variables.get("GLMSERVE_CONFIG"):
        config_file = Path(variables["GLMSERVE_CONFIG"])
    given = Given(flags, (EngineConfig, ServerConfig), config_file, variables)
    return given.read(EngineConfig), _with_keys_of_file(given.read(ServerConfig))


def _with_keys_of_file(config: ServerConfig) -> ServerConfig:
    """Raises SettingsError for a file of keys that cannot be read or holds none: the server would be open to all."""
    if config.api_key_file is None:
        return config
    try:
        lines = config.api_key_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the keys in {config.api_key_file} cannot be read: {error}. Name another file with --api-key-file.") from error
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    if not keys:
        raise SettingsError(f"{config.api_key_file} holds no key: write one a line, or leave --api-key-file out to serve everybody.")
    return config.model_copy(update={"api_key": config.api_key + keys})


def load_chat_settings(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> ChatConfig:
    """Settings of `glmserve chat`.  Raises SettingsError."""
    return Given(flags, (ChatConfig,), None, os.environ if environ is None else environ).read(ChatConfig)


def wants_traces(environ: Mapping[str, str] | None = None) -> bool:
    """Whether GLMSERVE_DEBUG asks for the whole trace of an unforeseen error."""
    return bool((os.environ if environ is None else environ).get("GLMSERVE_DEBUG"))


def misspelled_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """A line for each GLMSERVE_ variable that is no setting but looks like one, since it would silently do nothing."""
    variables = os.environ if environ is None else environ
    known = [ENV_PREFIX + name.upper() for kind in (EngineConfig, ServerConfig, ChatConfig) for name in kind.model_fields]
    strangers = [name for name in variables if name.startswith(ENV_PREFIX) and name not in known]
    return [f"{name} is no setting and does nothing{hint}" for name in strangers if (hint := _did_you_mean(name, known))]


def flag_name(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def group_of(kind: type[Settings], name: str) -> str:
    """Title of the group that a field belongs to: the first line of the class that declares it."""
    home = next(cls for cls in kind.__mro__ if name in get_annotations(cls))
    return (home.__doc__ or "").splitlines()[0]


def allowed_values(kind: type[Settings], name: str) -> str:
    """What a field takes, in words: "a whole number from 1 to 4096"."""
    schema = _schema(kind)["properties"][name]
    schema = next(part for part in schema.get("anyOf", [schema]) if part.get("type") != "null")
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text", "array": "a list of texts"}
    limits = [
        f"{word} {schema[key]}"
        for key, word in [("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below")]
        if key in schema
    ]
    return " ".join([words[schema["type"]], *limits])


@cache  # asked for once a field, and one schema takes milliseconds
def _schema(kind: type[Settings]) -> dict[str, Any]:
    return kind.model_json_schema()


class _NoKeyTwice(yaml.SafeLoader):
    """YAML's own loader takes the last of two values, without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Raises yaml.YAMLError that names the line of a key that is there already."""
        seen = set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path, fields: list[str]) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_NoKeyTwice)
    except OSError as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error.strerror}. Name another one with --config.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} is not YAML: {error}") from error
    if content is None:  # an empty file
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"the settings file {path} should hold lines like `max_num_seqs: 256`, not a {type(content).__name__}.")
    values = {str(key).replace("-", "_"): value for key, value in content.items()}  # vLLM's files write max-num-seqs
    if strangers := [key for key in values if key not in fields]:
        complaints = [f"{key} in {path} is no setting{_did_you_mean(key, fields)}" for key in strangers]
        raise SettingsError("\n".join([*complaints, "`glmserve serve --help` lists all settings; a key is a flag without its dashes."]))
    return values


def _did_you_mean(name: str, known: list[str]) -> str:
    matches = get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; did you mean {matches[0]}?" if matches else ""
