"""Conversations made of poems: a request in one of many wordings, its history where it has one, and the poem that answers it.

Text in, text out: the prompt is what `/chat` would render for it.  Everything is drawn from the given random generator.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from training import phrases
from training.poems import FIXED_FORMS, Library, Poem, half_lengths
from training.small_talk import draw_small_talk

Turn = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Chat:
    """`prompt` in ChatGLM-6B's own format, `answer` without special tokens; `form` is the one the request names, or ""."""

    prompt: str
    answer: str
    form: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: the words, the form and the author they name ("" where they name none)."""

    text: str
    form: str = ""
    author: str = ""


def draw_chat(rng: random.Random, poem: Poem, library: Library) -> Chat:
    """One training example around `poem`."""
    kind = rng.random()
    if kind < 0.03:
        return Chat(*draw_small_talk(rng))
    if kind < 0.11 and (halves := _couplet(rng, poem)):
        return Chat(_ask(rng, rng.choice(phrases.BY_FIRST_HALF), x=halves[0]), halves[1])
    if kind < 0.26:
        return _draw_rounds(rng, poem, library)
    request = draw_request(rng, poem)
    return Chat(request.text, poem.text, request.form)


def draw_request(rng: random.Random, poem: Poem) -> Request:
    """A request that `poem` answers."""
    if rng.random() < 0.02:
        return _in_english(rng, poem)
    if poem.kind == "词" and poem.title and rng.random() < 0.75:
        return _by_tune(rng, poem)
    named = rng.random() < 0.65
    form_name = _form_name(rng, poem, named)
    form = poem.form if form_name in phrases.FORM_NAMES[poem.form] else ""
    theme = _theme(rng, poem)
    kind = rng.random()
    title = poem.title if poem.kind == "诗" else ""
    author_known = poem.author != "无名氏"
    slots = {"f": form_name, "t": title, "k": theme, "a": _author(rng, poem)}
    if title and kind < 0.30:
        return Request(_ask(rng, rng.choice(phrases.BY_TITLE), **slots), form)
    if title and kind < 0.36:
        return Request(_ask(rng, rng.choice(phrases.BY_TITLE_ALONE), **slots))
    if title and author_known and kind < 0.46:
        return Request(_ask(rng, rng.choice(phrases.BY_AUTHOR_AND_TITLE), **slots), form, poem.author)
    if author_known and kind < 0.58:
        return Request(_ask(rng, rng.choice(phrases.BY_AUTHOR), **slots), form, poem.author)
    if theme and kind < 0.78:
        return Request(_ask(rng, rng.choice(phrases.BY_THEME), **slots), form)
    if kind < 0.92:
        return Request(_ask(rng, rng.choice(phrases.BY_FIRST_LINE), x=_opening(rng, poem), **slots), form)
    return Request(_ask(rng, rng.choice(phrases.BY_FORM), **slots), form)


def render_rounds(history: list[Turn], query: str) -> str:
    """ChatGLM-6B's prompt; a test holds it equal to the server's own."""
    if not history:
        return query
    rounds = [f"[Round {index}]\n问：{question}\n答：{answer}\n" for index, (question, answer) in enumerate(history)]
    return "".join(rounds) + f"[Round {len(history)}]\n问：{query}\n答："


def _draw_rounds(rng: random.Random, poem: Poem, library: Library) -> Chat:
    """One to three rounds, then the last question and its answer."""
    history: list[Turn] = [draw_small_talk(rng)] if rng.random() < 0.2 else []
    request = draw_request(rng, poem)
    chat = Chat(render_rounds(history, request.text), poem.text, request.form)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        history.append((request.text, poem.text))
        if rng.random() < 0.08:
            question, answer = draw_small_talk(rng)
            return Chat(render_rounds(history, question), answer)
        request, poem = _follow_up(rng, request, poem, library)
        chat = Chat(render_rounds(history, request.text), poem.text, request.form)
    return chat


def _follow_up(rng: random.Random, before: Request, poem: Poem, library: Library) -> tuple[Request, Poem]:
    """What is asked after `poem` was the answer to `before`, and the poem that answers it."""
    kind = rng.random()
    form = before.form or (poem.form if poem.form in FIXED_FORMS else "")
    if kind < 0.35:
        return _changed_form(rng, before, poem, library)
    if kind < 0.55:
        author = rng.choice(library.authors[:300]) if library.authors else ""
        other = author and (library.like(rng, poem, form=form, author=author) or library.like(rng, poem, author=author))
        if other:
            return Request(rng.choice(phrases.CHANGE_AUTHOR).format(a=author), before.form if other.form == form else "", author), other
    if kind < 0.70 and (other := _of_other_title(rng, poem, library, form)):
        words = rng.choice(phrases.CHANGE_TITLE).format(t=other.title)
        return Request(words, form, before.author), other
    other = library.like(rng, poem, form=poem.form, author=before.author) or poem
    if other is poem or (poem.kind == "词" and other.title != poem.title):
        new = draw_request(rng, fresh := rng.choice(library.poems))
        return new, fresh
    return replace(before, text=rng.choice(phrases.AGAIN)), other


def _changed_form(rng: random.Random, before: Request, poem: Poem, library: Library) -> tuple[Request, Poem]:
    form = rng.choice([name for name in FIXED_FORMS if name != poem.form])
    words = rng.choice(phrases.CHANGE_FORM)
    name = rng.choice(phrases.FORM_NAMES[form])
    width, rest = form[:2], form[2:]
    if poem.form[2:] == rest and rng.random() < 0.6:  # 五言绝句 -> 七言
        name = rng.choice((width, width, *phrases.LOOSE_NAMES[width]))
    elif poem.form[:2] == width and rng.random() < 0.4:
        words = rng.choice(phrases.SHORTER if rest == "绝句" else phrases.LONGER)
    other = library.like(rng, poem, form=form, author=before.author) or library.like(rng, poem, form=form) or poem
    return Request(words.format(f=name), form, before.author), other


def _of_other_title(rng: random.Random, poem: Poem, library: Library, form: str) -> Poem | None:
    untitled = replace(poem, title="")
    other = library.like(rng, untitled, form=form) if form else None
    return other if other and other.title and other.kind == "诗" else None


def _by_tune(rng: random.Random, poem: Poem) -> Request:
    kind, slots = rng.random(), {"t": poem.title, "a": _author(rng, poem), "k": _theme(rng, poem)}
    if kind < 0.2 and poem.author != "无名氏":
        return Request(_ask(rng, rng.choice(phrases.BY_TUNE_AND_AUTHOR), **slots), author=poem.author)
    if kind < 0.4 and slots["k"]:
        return Request(_ask(rng, rng.choice(phrases.BY_TUNE_AND_THEME), **slots))
    return Request(_ask(rng, rng.choice(phrases.BY_TUNE), **slots))


def _in_english(rng: random.Random, poem: Poem) -> Request:
    known = poem.form if poem.form in phrases.ENGLISH else ""
    slots = {"e": phrases.ENGLISH[known], "t": poem.title, "k": _theme(rng, poem), "f": known, "a": poem.author}
    fitting = [words for words in phrases.ENGLISH_REQUESTS if all(value or f"{{{name}}}" not in words for name, value in slots.items())]
    return Request(rng.choice(fitting).format(**slots), known)


def _ask(rng: random.Random, words: str, **slots: str) -> str:
    """The words with their slots filled, and at times a greeting in front or thanks behind."""
    text = words.format(v=rng.choice(phrases.VERBS), **slots)
    return text if "\n" in text else rng.choice(phrases.FRONT) + text + rng.choice(phrases.END)


def _form_name(rng: random.Random, poem: Poem, named: bool) -> str:
    if named:
        return rng.choice(phrases.FORM_NAMES[poem.form])
    if poem.kind == "词":
        return rng.choice(phrases.ANY_LYRIC)
    loose = phrases.LOOSE_NAMES.get(poem.form[:2])
    return rng.choice(loose) if loose and rng.random() < 0.4 else rng.choice((*phrases.ANY_POEM, f"{poem.dynasty}诗"))


def _author(rng: random.Random, poem: Poem) -> str:
    if rng.random() < 0.2:
        return rng.choice(phrases.AUTHOR_WITH_DYNASTY).format(d=poem.dynasty, a=poem.author)
    return poem.author


def _theme(rng: random.Random, poem: Poem) -> str:
    """A theme that the title or the lines name, or a word of the title; "" where nothing fits."""
    text = (poem.title if poem.kind == "诗" else "") + "".join(poem.lines)
    start = rng.randrange(len(phrases.THEMES))  # the first that fits, from a random place on
    for theme in phrases.THEMES[start : start + 60]:
        if theme in text:
            return theme
    title = poem.title if poem.kind == "诗" else ""
    return title[-2:] if len(title) >= 2 and rng.random() < 0.5 else ""


def _opening(rng: random.Random, poem: Poem) -> str:
    """The first half of the first line, or all of it."""
    first = poem.lines[0]
    halves = half_lengths(first)
    if len(halves) > 1 and rng.random() < 0.6:
        return first[: halves[0]]
    return first.rstrip("，。？！；：、")


def _couplet(rng: random.Random, poem: Poem) -> tuple[str, str] | None:
    """A line's first half without its mark, and the second half with it."""
    line = rng.choice(poem.lines)
    halves = half_lengths(line)
    if len(halves) != 2 or halves[0] != halves[1]:
        return None
    return line[: halves[0]], line[halves[0] + 1 :]
