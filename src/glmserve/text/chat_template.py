"""A model's own chat format, written as a Jinja template the way `transformers` stores and runs it.

A template comes with a model from elsewhere, so it runs in Jinja's sandbox.  It renders text; the tokenizer makes ids of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from glmserve.protocol.errors import InvalidRequestError, ModelLoadError
from glmserve.text.chat_format import ChatMessage


class ChatTemplate:
    """Renders conversations.  Raises ModelLoadError for a template that is no Jinja."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)  # bos_token, eos_token, ...
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise ModelLoadError(f"the model's chat template does not compile, line {error.lineno}: {error.message}") from error

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as text up to where the answer begins.  Raises InvalidRequestError where the template refuses it."""
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=plain, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens)
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidRequestError(f"the model's chat template refuses these messages: {error}", "messages") from error


class _GenerationBlock(Extension):
    """`{% generation %}` marks what a model is trained on; in serving it is its body and nothing else."""

    tags = {"generation"}  # noqa: RUF012 - the name and type are Jinja's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # Jinja's own would escape HTML


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
