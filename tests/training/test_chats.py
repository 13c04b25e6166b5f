"""Conversations made of poems are what the server would render, and their answers have the form that is asked for."""

from __future__ import annotations

import random

from glmserve.text.chat_format import ChatMessage, render_chatglm
from training.chats import draw_chat, render_rounds
from training.fixed_requests import shape_of
from training.poems import FIXED_FORMS, Library, Poem


def test_rounds_are_rendered_as_the_server_renders_them() -> None:
    history = [("写一首诗", "春眠不觉晓。"), ("再写一首", "处处闻啼鸟。")]
    for rounds in ([], history[:1], history):
        messages = [ChatMessage(role, text) for turn in rounds for role, text in zip(("user", "assistant"), turn, strict=True)]
        assert render_rounds(rounds, "换成七言") == render_chatglm([*messages, ChatMessage("user", "换成七言")])


def test_answers_have_the_form_that_the_request_names(poems: list[Poem]) -> None:
    library, rng = Library(poems), random.Random(0)
    chats = [draw_chat(rng, poem, library) for poem in poems * 60]
    named = [chat for chat in chats if chat.form in FIXED_FORMS]
    assert {chat.form for chat in named} == set(FIXED_FORMS)
    for chat in named:
        couplets, width = FIXED_FORMS[chat.form]
        assert shape_of(chat.answer) == ((width, width),) * couplets, chat
    assert any("[Round 1]" in chat.prompt for chat in chats) and all(chat.answer for chat in chats)


def test_the_same_seed_draws_the_same(poems: list[Poem]) -> None:
    first, second = ([draw_chat(rng, poem, Library(poems)) for poem in poems] for rng in (random.Random(3), random.Random(3)))
    assert first == second
