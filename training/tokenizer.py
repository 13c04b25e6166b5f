"""Trains the tokenizer of the small model with sentencepiece and gives its file the layout of the released `ice_text.model`.

One piece a character: poems are counted in characters, and the model should not have to know how many a piece holds.
What the trainer decides is which characters have a piece: the most frequent ones.  The rest, and with them all Latin letters, is
spelled in bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_format

ROWS = 8192  # of the embedding; as many pieces
BEFORE = ("<unk>", "<s>", "</s>", "<pad>", "<n>")
AFTER = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
SPELLED = ("<|tab|>", *(f"<|blank_{count}|>" for count in range(2, 81)))
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # SentencePiece.Type in sentencepiece_model.proto


def train_tokenizer(texts: Iterable[str], rows: int = ROWS) -> bytes:
    """A sentencepiece model of `rows` pieces, as bytes; fewer where the texts have fewer characters."""
    num_characters = rows - len(BEFORE) - len(AFTER) - len(SPELLED) - len(BYTES)
    model = model_format.ModelProto()
    model.ParseFromString(_train_characters(texts, num_characters))
    characters = [(piece.piece, piece.score) for piece in model.pieces if piece.type == 1]
    del model.pieces[:]
    for piece, score, kind in _layout(characters[:num_characters]):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.Clear()
    model.trainer_spec.model_prefix = "ice_text"
    model.trainer_spec.model_type = model_format.TrainerSpec.UNIGRAM
    model.trainer_spec.vocab_size = rows
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.pad_id = 3
    return model.SerializeToString(deterministic=True)


def pieces_of(model: bytes) -> list[str]:
    """The pieces of a sentencepiece model, by id."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]


def _train_characters(texts: Iterable[str], num_characters: int) -> bytes:
    """The trainer's own model: frequent characters, most frequent first."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        model_type="char",
        vocab_size=num_characters + 3,  # <unk>, <s> and </s> are counted too
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def _layout(characters: list[tuple[str, float]]) -> Iterator[tuple[str, float, int]]:
    """(piece, score, type) in the released order: U+2581 first of the text pieces, special tokens and bytes after them."""
    yield BEFORE[0], 0.0, _UNKNOWN
    yield from ((piece, 0.0, _CONTROL) for piece in BEFORE[1:4])
    yield BEFORE[4], 0.0, _USER_DEFINED
    ordered = sorted(characters, key=lambda entry: (entry[0] != "\u2581", -entry[1], entry[0]))
    yield from ((piece, score, 1) for piece, score in ordered)
    yield from ((piece, 0.0, _CONTROL) for piece in AFTER)
    yield from ((piece, 0.0, _USER_DEFINED) for piece in SPELLED)
    yield from ((piece, 0.0, _BYTE) for piece in BYTES)
