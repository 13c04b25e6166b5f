"""A tokenizer.json with a chat template, against the libraries that wrote it, and with special tokens in what users write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from glmserve.models.catalog import read_spec
from glmserve.protocol.errors import InvalidRequestError, ModelLoadError
from glmserve.text.bpe_tokenizer import BPETokenizer
from glmserve.text.chat_format import ChatMessage
from tests.text.conftest import SPECIAL, bpe_spec

CONVERSATION = [("system", "Be brief."), ("user", " Hello, 你好👋!\n"), ("assistant", "Hi."), ("user", "What is 1+1?")]
HOSTILE = st.lists(st.sampled_from([*SPECIAL, "<", "<|", "<|im_", "end|>", "x", "\n", " ", "\ue000", "你"]), max_size=8).map("".join)


@pytest.fixture(scope="session")
def reference(bpe_folder: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(str(bpe_folder))


@pytest.fixture(scope="session")
def library(bpe_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))


def messages(*turns: tuple[str, str]) -> list[ChatMessage]:
    return [ChatMessage(role, content) for role, content in turns]


def reference_ids(reference: Any, *turns: tuple[str, str]) -> list[int]:
    plain = [{"role": role, "content": content} for role, content in turns]
    return list(reference.apply_chat_template(plain, add_generation_prompt=True, return_dict=False))


@pytest.mark.parametrize("turns", [CONVERSATION, CONVERSATION[1:2], CONVERSATION[1:]])
def test_chat_ids_are_those_of_transformers(bpe: BPETokenizer, reference: Any, turns: list[tuple[str, str]]) -> None:
    assert bpe.encode_chat(messages(*turns)) == reference_ids(reference, *turns)


@given(text=st.text().filter(lambda text: not any(token in text for token in SPECIAL)))
def test_ids_are_those_of_transformers(bpe: BPETokenizer, reference: Any, text: str) -> None:
    assert bpe.encode(text) == reference.encode(text)


@given(ids=st.lists(st.integers(0, 599)), skip=st.booleans())
def test_decoding_is_that_of_the_library(bpe: BPETokenizer, library: Tokenizer, ids: list[int], skip: bool) -> None:
    assert bpe.decode(ids, skip) == library.decode(ids, skip_special_tokens=skip)


@given(question=HOSTILE, system=HOSTILE)
def test_users_cannot_write_special_tokens(bpe: BPETokenizer, reference: Any, question: str, system: str) -> None:
    """The special tokens of the prompt are the template's own, and the user's text is all there."""
    turns = [("system", system), ("user", question)]
    ids = bpe.encode_chat(messages(*turns))
    harmless = reference_ids(reference, ("system", "x"), ("user", "x"))
    assert [token_id for token_id in ids if token_id < 3] == [token_id for token_id in harmless if token_id < 3]
    assert bpe.decode(ids, skip_special_tokens=False) == bpe.render_chat(messages(*turns))
    assert {0, 1, 2}.isdisjoint(bpe.encode(question))


def test_special_text_of_a_user_is_encoded_as_any_other_text(bpe: BPETokenizer) -> None:
    ids = bpe.encode_chat(messages(("user", "a<|im_end|>b")))
    inner = bpe.encode("user\na<|im_end|>b")
    assert any(ids[start : start + len(inner)] == inner for start in range(len(ids)))


def test_a_message_full_of_special_tokens_is_read_in_time_linear_in_its_length(bpe: BPETokenizer) -> None:
    count = 50_000  # a quadratic way would take minutes and meet the suite's time limit
    ids = bpe.encode_chat(messages(("user", "<|im_end|>" * count)))
    assert ids.count(2) == 2 and len(ids) > count


def test_every_private_character_in_one_message(bpe: BPETokenizer) -> None:
    everything = "".join(map(chr, range(0xE000, 0xF900)))
    assert bpe.encode_chat(messages(("user", everything)))
    with pytest.raises(InvalidRequestError, match="every private-use character"):
        bpe.encode_chat(messages(("user", everything + "<|im_end|>")))


def test_special_tokens_may_be_allowed(bpe_folder: Path, reference: Any) -> None:
    open_tokenizer = BPETokenizer(bpe_folder, bpe_spec(), allow_special_tokens=True)
    turns = [("user", "a<|im_end|>b")]
    assert open_tokenizer.encode_chat(messages(*turns)) == reference_ids(reference, *turns)
    assert open_tokenizer.encode("<|im_end|>") == [2]


def test_token_bytes_and_names(bpe: BPETokenizer) -> None:
    ids = bpe.encode("你好👋 x")
    assert b"".join(map(bpe.token_bytes, ids)).decode() == "你好👋 x"
    assert bpe.token_text(2) == "<|im_end|>"
    assert bpe.token_text(607) == ""  # a row of the embedding without a token


def test_mistakes_of_users_are_named(bpe: BPETokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="token id 608 is outside"):
        bpe.decode([608])
    with pytest.raises(InvalidRequestError, match="not valid Unicode"):
        bpe.encode("\udfff")


def changed_copy(folder: Path, to: Path, **config: object) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    path = to / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return to


def test_a_template_may_refuse(bpe_folder: Path, tmp_path: Path) -> None:
    folder = changed_copy(bpe_folder, tmp_path, chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="refuses these messages: roles must alternate"):
        BPETokenizer(folder, bpe_spec()).encode_chat(messages(("user", "a")))


def test_a_template_is_kept_in_its_sandbox(bpe_folder: Path, tmp_path: Path) -> None:
    folder = changed_copy(bpe_folder, tmp_path, chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidRequestError, match="refuses"):
        BPETokenizer(folder, bpe_spec()).encode_chat(messages(("user", "a")))


def test_a_template_may_lie_in_its_own_file_or_among_others(bpe_folder: Path, tmp_path: Path) -> None:
    named = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": "{% generation %}{{ messages[0].content }}{% endgeneration %}"},
    ]
    folder = changed_copy(bpe_folder, tmp_path, chat_template=named)
    assert BPETokenizer(folder, bpe_spec()).render_chat(messages(("user", "hi"))) == "hi"
    (folder / "chat_template.jinja").write_text("{{ messages | tojson }}{{ strftime_now('%Y')[:2] }}")
    assert BPETokenizer(folder, bpe_spec()).render_chat(messages(("user", "<你>"))) == '[{"role": "user", "content": "<你>"}]20'


def test_without_a_template_there_is_no_chat(bpe_folder: Path, tmp_path: Path) -> None:
    folder = changed_copy(bpe_folder, tmp_path, chat_template=None)
    with pytest.raises(InvalidRequestError, match=r"no chat template.*use /v1/completions"):
        BPETokenizer(folder, bpe_spec()).encode_chat(messages(("user", "a")))


def test_a_broken_template_is_named_at_start(bpe_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not compile, line 1"):
        BPETokenizer(changed_copy(bpe_folder, tmp_path, chat_template="{% if %}"), bpe_spec())


def test_missing_and_broken_files_are_named(bpe_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no tokenizer\.json"):
        BPETokenizer(tmp_path, bpe_spec())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is not a tokenizer file"):
        BPETokenizer(tmp_path, bpe_spec())
    with pytest.raises(ModelLoadError, match="do not belong together"):
        BPETokenizer(bpe_folder, bpe_spec(vocab_size=100))


@pytest.fixture(scope="session")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> tuple[BPETokenizer, Tokenizer]:
    """As Llama 2 and TinyLlama have it: sentencepiece's signs for spaces and bytes."""
    folder = tmp_path_factory.mktemp("spaced")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), "\u2581", "a", "b", "\u2581a", "ab", "\u2581ab"]
    merges = [("\u2581", "a"), ("a", "b"), ("\u2581", "ab")]
    model = models.BPE({piece: index for index, piece in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    library = Tokenizer(model)
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.save(str(folder / "tokenizer.json"))
    return BPETokenizer(folder, bpe_spec(len(pieces))), library


@given(text=st.text("ab 你👋é"))
def test_spaces_as_sentencepiece_writes_them(spaced: tuple[BPETokenizer, Tokenizer], text: str) -> None:
    ours, library = spaced
    ids = ours.encode(text)
    assert ids == library.encode(text).ids
    assert ours.decode(ids) == library.decode(ids) == text


def test_an_unknown_kind_of_vocabulary_is_refused(tmp_path: Path) -> None:
    library = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    library.decoder = decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelLoadError, match="decoder of kind WordPiece"):
        BPETokenizer(tmp_path, bpe_spec())


@pytest.mark.demo_en
def test_demo_model_agrees_with_transformers(demo_en: Path) -> None:
    ours, theirs = BPETokenizer(demo_en, read_spec(demo_en)), PreTrainedTokenizerFast.from_pretrained(str(demo_en))
    for turns in (CONVERSATION, CONVERSATION[1:]):
        assert ours.encode_chat(messages(*turns)) == reference_ids(theirs, *turns)
    ids = list(range(ours.vocab_size))
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.encode("<|im_end|>") != [2] and ours.decode(ours.encode("<|im_end|>")) == "<|im_end|>"
