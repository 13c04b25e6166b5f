"""Asks a server, before the clock starts, what a plan must know of it."""

from __future__ import annotations

from typing import Any

import httpx

from glmserve.protocol.errors import EngineUnavailableError, SettingsError
from glmserve.tools.bench.plan import WORDS, ServerFacts
from glmserve.tools.bench.settings import ServeBenchConfig


def ask_facts(config: ServeBenchConfig) -> ServerFacts:
    """Raises EngineUnavailableError where nothing answers, SettingsError where a flag must tell what the server does not."""
    headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    with httpx.Client(base_url=config.base_url, headers=headers, timeout=30.0) as http:
        try:
            model = config.model or ("" if config.backend == "chatglm" else _first_model(http))
            return _facts(http, config, model)
        except httpx.HTTPError as error:
            raise EngineUnavailableError(
                f"no server answers at {config.base_url} ({error}). Start one, or name it with --base-url."
            ) from error


def _facts(http: httpx.Client, config: ServeBenchConfig, model: str) -> ServerFacts:
    if config.backend != "openai":
        ids = _tokenize(http, model, " ".join(WORDS))
        return ServerFacts(model, tokens_per_word=len(ids) / len(WORDS) if ids else 1.0)
    if config.prompt_suffix_ids is not None:  # so nothing is asked that a server without a tokenizer cannot tell
        return ServerFacts(model, suffix_ids=[int(part) for part in config.prompt_suffix_ids.split(",") if part.strip()])
    facts = _with_special_ids(ServerFacts(model), _tokenize(http, model, ""), _tokenize(http, model, "a"))
    special = {*facts.prefix_ids, *facts.suffix_ids}
    facts.word_ids = sorted(set(_tokenize(http, model, " ".join(WORDS)) or ()) - special)
    return facts


def _with_special_ids(facts: ServerFacts, of_nothing: list[int] | None, of_something: list[int] | None) -> ServerFacts:
    """What is put round every prompt stands alone where the prompt is empty; a second prompt shows on which side it stands."""
    if not of_nothing or not of_something:
        return facts
    if of_something[-len(of_nothing) :] == of_nothing:
        facts.suffix_ids = of_nothing
    elif of_something[: len(of_nothing)] == of_nothing:
        facts.prefix_ids = of_nothing
    return facts


def _tokenize(http: httpx.Client, model: str, prompt: str) -> list[int] | None:
    """None where the server has no tokenizer or no such path."""
    body = {"prompt": prompt} | ({"model": model} if model else {})
    try:
        return [int(token_id) for token_id in http.post("/tokenize", json=body).raise_for_status().json()["tokens"]]
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
        return None


def _first_model(http: httpx.Client) -> str:
    response = http.get("/v1/models")
    if response.status_code == 401:
        raise SettingsError("the server wants a key: give it with --api-key or GLMSERVE_API_KEY.")
    try:
        body: Any = response.raise_for_status().json()
        return str(body["data"][0]["id"])
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError) as error:
        raise SettingsError(f"{http.base_url}v1/models names no model ({error}): name it with --model.") from error
