"""OpenAI's protocol: chat and text completions, models; and vLLM's /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from glmserve.protocol.errors import InvalidRequestError, ModelNotFoundError
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.server.bodies import body_schema, collect, json_response
from glmserve.server.openai_chunks import AnswerFrame, ChatStream, CompletionStream, whole_chat, whole_completion
from glmserve.server.schemas import ChatCompletionRequest, CompletionRequest, DetokenizeRequest, SamplingBody, TokenizeRequest
from glmserve.server.services import Services, request_id_of, services_of
from glmserve.server.sse import EventStream
from glmserve.text.chat_format import parse_messages
from glmserve.text.generator import ChatPrompt, GenerationRequest

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=body_schema(ChatCompletionRequest))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    services = services_of(request)
    with services.reserve() as place:
        body = await services.read(ChatCompletionRequest, request, place)
        services.check_model(body.model)
        params = body.sampling_params(services.config)
        generation = GenerationRequest(
            request_id=f"chatcmpl-{request_id_of(request)}",
            prompts=[ChatPrompt(parse_messages(body.messages))],
            sampling_params=params,
            priority=body.priority or 0,
        )
        answer = await services.start(generation, place)
        frame = _frame(services, generation.request_id, body, params)
        if body.stream:
            return EventStream(answer, ChatStream(frame, answer), services.config.stream_interval)
        return json_response(whole_chat(frame, await collect(answer, request), answer))


@router.post("/v1/completions", openapi_extra=body_schema(CompletionRequest))
async def completions(request: Request) -> Response:
    """Continue a text, or several."""
    services = services_of(request)
    with services.reserve() as place:
        body = await services.read(CompletionRequest, request, place)
        services.check_model(body.model)
        params = body.sampling_params()
        prompts = body.prompts
        echoes = await _echoes(services, prompts, params.n) if body.echo else []
        generation = GenerationRequest(
            request_id=f"cmpl-{request_id_of(request)}", prompts=list(prompts), sampling_params=params, priority=body.priority or 0
        )
        answer = await services.start(generation, place)
        frame = _frame(services, generation.request_id, body, params)
        if body.stream:
            return EventStream(answer, CompletionStream(frame, answer, echoes), services.config.stream_interval)
        return json_response(whole_completion(frame, await collect(answer, request), answer, echoes))


def _frame(services: Services, answer_id: str, body: SamplingBody, params: SamplingParams) -> AnswerFrame:
    tokenizer = services.generator.tokenizer
    options = body.stream_options
    return AnswerFrame(
        id=answer_id,
        created=services.now(),
        model=services.model_name,
        system_fingerprint=services.system_fingerprint,
        tokenizer=tokenizer,
        num_top=params.logprobs,
        with_token_ids=bool(body.return_token_ids) or tokenizer is None,
        with_usage=options is not None and bool(options.include_usage),
        with_running_usage=options is not None and bool(options.include_usage and options.continuous_usage_stats),
    )


async def _echoes(services: Services, prompts: list[str | list[int]], n: int) -> list[str]:
    texts = [prompt if isinstance(prompt, str) else await _text_of(services, prompt) for prompt in prompts]
    return [text for text in texts for _ in range(n)]


async def _text_of(services: Services, token_ids: list[int]) -> str:
    tokenizer = services.tokenizer
    return await services.generator.tokenizing(len(token_ids), lambda: tokenizer.decode(token_ids))


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The model that is served."""
    return json_response({"object": "list", "data": [_model_card(services_of(request))]})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    """One model by name."""
    services = services_of(request)
    if name != services.model_name:
        raise ModelNotFoundError(f"the model {name!r} is not served here: use {services.model_name!r}")
    return json_response(_model_card(services))


def _model_card(services: Services) -> dict[str, Any]:
    return {
        "id": services.model_name,
        "object": "model",
        "created": services.created,
        "owned_by": "glmserve",
        "root": services.model_name,
        "parent": None,
        "max_model_len": services.generator.max_model_len,
    }


@router.post("/tokenize", openapi_extra=body_schema(TokenizeRequest))
async def tokenize(request: Request) -> Response:
    """Token ids of a prompt or of a conversation."""
    services = services_of(request)
    body = await services.read(TokenizeRequest, request)
    services.check_model(body.model)
    tokenizer, tokenizing = services.tokenizer, services.generator.tokenizing
    if body.messages is not None:
        token_ids = await services.generator.encode(ChatPrompt(parse_messages(body.messages)))
    elif body.add_special_tokens:
        token_ids = await services.generator.encode(body.prompt or "")
    else:
        text = body.prompt or ""
        token_ids = await tokenizing(len(text), lambda: tokenizer.encode(text, add_special_tokens=False))
    names = None
    if body.return_token_strs:
        names = await tokenizing(len(token_ids), lambda: [tokenizer.token_text(token_id) for token_id in token_ids])
    length = services.generator.max_model_len
    return json_response({"count": len(token_ids), "max_model_len": length, "tokens": token_ids, "token_strs": names})


@router.post("/detokenize", openapi_extra=body_schema(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """Text of token ids."""
    services = services_of(request)
    body = await services.read(DetokenizeRequest, request)
    services.check_model(body.model)
    if any(not 0 <= token_id < services.spec.vocab_size for token_id in body.tokens):
        raise InvalidRequestError(f"tokens must be from 0 to {services.spec.vocab_size - 1}", "tokens")
    return json_response({"prompt": await _text_of(services, body.tokens)})
