"""Writes README.md beside an exported model: what it is, its figures out of the run, and ten samples that nobody chose.

    python -m training.model_card --run RUN --model src/glmserve/models/poems

Every figure is read from the run's files; the words around them are here.
"""

# ruff: noqa: E501  (slots are wider than what fills them)

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from training.fixed_requests import FixedRequest, read_requests
from training.packing import ROW

EVERY = 50  # the sampled answers to requests 0, 50, 100, ... are shown: ten of 500, whatever they are worth
FULL_WIDTH = str.maketrans(",?!;:", "，？！；：")  # as the server shows them beside Chinese characters

CARD = """# A small ChatGLM that writes classical Chinese poems

A language model of {parameters:,} parameters with ChatGLM-6B's exact architecture, tokenizer code and file layout (hidden size {hidden_size},
{num_layers} layers, {num_heads} heads, {vocab_size:,} pieces, one piece a character), trained from scratch on {poems} poems of the Tang and Song
dynasties, and on nothing else. It comes with glmserve as the model `demo`, so that the server can be tried, tested and measured on real
weights without a download. The matrices are int8 with one scale a row, as in the released chatglm-6b-int8; the embedding is float16.

一个两千万参数的小模型，结构、分词代码和文件格式与 ChatGLM-6B 相同，只学过唐诗和宋词，只会写诗。

## What to ask

| | |
|---|---|
| a title and a form | 以春日为题写一首七言绝句 · 写一首五言律诗，题目是《登高》 |
| a theme | 写一首关于明月的五言绝句 |
| an author's manner | 用李白的风格写一首诗 |
| a tune | 填一首浣溪沙 |
| a first line | 第一句是“海上生明月”，写一首五言律诗 |
| the second half of a couplet | 上联：海上生明月 |
| then | 再写一首 · 换成七言 · 换成五言律诗 · 用杜甫的风格 |
| small talk | 你是谁？ · 你会什么？ |

## What it is not

- It knows no facts, follows no other instruction, and answers every other question by saying that it only writes poems; a question unlike those it
  was trained on may be answered with a poem.
- It keeps to the **form** (lines, characters a line). Rhyme, tones and parallel couplets are not checked and often fail; a poem's sense seldom
  reaches beyond a couplet, and words repeat. An author's manner is at most a choice of words. Nobody should take its lines for those of a poet.
- Greedy decoding (temperature 0) falls back on a few stock lines where a request names no theme; the defaults of ChatGLM-6B (temperature 0.95, top_p 0.7,
  top_k 50) give another poem each time.
- It was trained on at most {row} tokens, prompt and answer together, and `config.json` says so. With prompts of 520 to 700 tokens 91 of 96 answers
  still had the form that was asked for, with 700 to 950 tokens 79 of 96; below 500 tokens 191 of 192.
- Characters without a piece, and all Latin letters, are spelled in bytes.

## Figures

| | |
|---|---|
| training | {steps:,} steps, {tokens_seen:,} tokens ({passes} passes), {seconds:.0f} s on one {device} |
| loss on unseen poems, all kinds of requests | {mixed_loss:.4f} nats a token, perplexity {mixed_perplexity:.2f} a token, {mixed_character_perplexity:.2f} a character |
| loss on unseen poems, title and form given | {title_loss:.4f} nats a token, perplexity {title_perplexity:.2f} a token, {title_character_perplexity:.2f} a character |
| the same before rounding, in float32 and bfloat16 | {float32_loss:.4f} and {bfloat16_loss:.4f} nats a token |
| form right, 480 of the [500 fixed requests](../../../../training/requests.jsonl), greedy | {greedy_form} |
| form right, sampled | {sampled_form} |
| ended by itself within 220 tokens | {greedy_ended} of 500 greedy, {sampled_ended} of 500 sampled |
| lines that stand word for word in the training poems | {greedy_copied} greedy, {sampled_copied} sampled |

Form by kind of request (right of asked; greedy, sampled): {by_group}. For a tune (词) the right shapes are those that occur at least twice among the
training poems of that tune. Small talk (20 requests) has no shape and is not counted.

The training loss ends at {train_loss:.2f} (with dropout) and the validation loss has been flat since about step {flat:,} of {steps:,}, without rising
again: further passes would have brought nothing ([curves](../../../../docs/images/poem_training.png)).

## Ten samples, not selected

The answers to requests 0, 50, 100, ... 450, sampled once with the defaults while the run was measured.

{samples}
## Data and licence

The poems are in the public domain; the collection is [chinese-poetry](https://github.com/chinese-poetry/chinese-poetry) (MIT), turned into
simplified characters with [OpenCC](https://github.com/BYVoid/OpenCC). The weights are under the project's licence, Apache-2.0.
[training/README.md](../../../../training/README.md) has the commands that make this folder.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the README.md of an exported model.")
    parser.add_argument("--run", type=Path, required=True, help="folder written by training.train")
    parser.add_argument("--model", type=Path, required=True, help="folder written by training.export")
    arguments = parser.parse_args()
    (arguments.model / "README.md").write_text(card(arguments.run), encoding="utf-8")


def card(run: Path) -> str:
    """The text of README.md."""
    facts, report, samples = (json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("training", "report", "samples"))
    losses = [line.split(",") for line in (run / "loss.csv").read_text(encoding="utf-8").splitlines()]
    lines = [dict(zip(losses[0], line, strict=True)) for line in losses[1:]]
    words = {**facts, **facts["shape"], **report["losses"]["int8"], "poems": "278,221", "row": ROW}
    words |= {f"{name}_loss": report["losses"][name]["title_loss"] for name in ("float32", "bfloat16")}
    for name in ("greedy", "sampled"):
        words |= {f"{name}_{key}": value for key, value in _measures(report[name]).items()}
    words["by_group"] = _by_group(report)
    words["train_loss"] = float([line["train_loss"] for line in lines if line["train_loss"]][-1])
    words["flat"] = _first_step_near_the_best(lines)
    words["samples"] = "".join(
        _sample(request, answer) for request, answer in list(zip(read_requests(), samples["sampled"], strict=True))[::EVERY]
    )
    return CARD.format_map(words)


def _measures(measured: dict[str, Any]) -> dict[str, str]:
    right, total = measured["form_accuracy"]["all"]
    copied, lines = measured["copied_lines"], measured["lines"]
    return {
        "form": f"{right} ({right / total:.1%})",
        "ended": str(measured["ended"]),
        "copied": f"{copied} of {lines} ({copied / lines:.1%})",
    }


def _by_group(report: dict[str, Any]) -> str:
    groups = [group for group in report["greedy"]["form_accuracy"] if group not in ("all", "闲谈")]
    both = [(group, *(report[name]["form_accuracy"][group] for name in ("greedy", "sampled"))) for group in groups]
    return ", ".join(f"{group} {greedy[0]} and {sampled[0]} of {greedy[1]}" for group, greedy, sampled in both)


def _first_step_near_the_best(lines: list[dict[str, str]]) -> int:
    valid = [(int(line["step"]), float(line["valid_loss"])) for line in lines if line["valid_loss"]]
    best = min(loss for _, loss in valid)
    return next(step for step, loss in valid if loss < best + 0.01)


def _sample(request: FixedRequest, answer: str) -> str:
    earlier = "".join(f"{question} → {reply.replace(chr(10), ' ')} " for question, reply in request.history)
    shown = answer.translate(FULL_WIDTH).replace("\n", "  \n> ")
    return f"**{earlier}{request.query}**\n\n> {shown}\n\n"


if __name__ == "__main__":
    main()
