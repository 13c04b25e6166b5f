"""Trains the small model for a given number of minutes, and writes weights, the loss log, samples and measures.

    python -m training.train --data .golden/poems --out FOLDER --minutes 5.5

Needs torch and numpy alone.  On a GPU it computes in bfloat16 and compiles each block; on a CPU it runs uncompiled in float32, for tests.
A run that is stopped goes on from FOLDER/checkpoint.pt with --resume.  What a fresh checkout needs first: training/README.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from training.evaluate import answer_loss, mixed_chats, rows_of
from training.feed import Feed
from training.model import ChatGLM, Shape
from training.packing import to_batch
from training.poems import TRAIN, VALID, read_poems
from training.report import ReportLimits, write_report
from training.schedule import learning_rate
from training.vocabulary import PIECES, Vocabulary


@dataclass
class Settings:
    """Every field is a flag of the same name."""

    minutes: float = 5.5
    batch_rows: int = 128  # of 512 tokens
    peak: float = 1.5e-3  # learning rate
    weight_decay: float = 0.1
    dropout: float = 0.1
    clip: float = 1.0
    valid_every: int = 250  # steps
    checkpoint_every: int = 2000  # steps
    workers: int = 12  # processes that draw conversations
    max_poems: int = 0  # 0: all; small numbers are for tests
    max_steps: int = 0  # 0: as many as the time allows
    hidden_size: int = Shape.hidden_size
    num_heads: int = Shape.num_heads
    num_layers: int = Shape.num_layers
    seed: int = 0
    max_requests: int = 0  # of the fixed ones that are answered at the end; 0: all
    max_answer: int = 220  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small ChatGLM for a number of minutes.")
    parser.add_argument("--data", type=Path, required=True, help="folder made by training.prepare")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    arguments = vars(parser.parse_args())
    data, out, resume = arguments.pop("data"), arguments.pop("out"), arguments.pop("resume")
    out.mkdir(parents=True, exist_ok=True)
    Run(Settings(**arguments), data, out, resume).go()


class Run:
    """One training run: model, optimizer, data and log."""

    def __init__(self, settings: Settings, data: Path, out: Path, resume: bool) -> None:
        self.settings, self.out = settings, out
        self.vocabulary = Vocabulary.read(data / PIECES)
        self.valid = read_poems(data / VALID)
        poems = read_poems(data / TRAIN)
        self.poems = poems[: settings.max_poems] if settings.max_poems else poems
        self.feed = Feed(self.poems, self.vocabulary, settings.workers, settings.seed)  # forks, so it comes before CUDA
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(settings.seed)
        sizes = {"hidden_size": settings.hidden_size, "inner_size": 4 * settings.hidden_size, "num_heads": settings.num_heads}
        shape = Shape(len(self.vocabulary.pieces), **sizes, num_layers=settings.num_layers, dropout=settings.dropout)
        self.model = ChatGLM(shape).to(self.device)
        self.optimizer = self._optimizer()
        self.valid_rows = rows_of(mixed_chats(self.valid), self.vocabulary)
        self.step, self.tokens, self.elapsed, self.epoch = 0, 0, 0.0, 0
        self.log: list[dict[str, float]] = []
        if resume:
            self._load(out / "checkpoint.pt")
        self._compile()

    def go(self) -> None:
        """Train until the time is over, then write everything."""
        print(f"{self.model.num_parameters():,} parameters on {self.device}, {len(self.poems):,} poems", flush=True)
        began = None
        while not self._is_over():
            tensors = self.feed.rows(self.epoch).tensors(self.device)
            generator = torch.Generator().manual_seed(self.settings.seed * 1000 + self.epoch)
            order = torch.randperm(len(tensors[0]), generator=generator).to(self.device)
            if began is None:
                self._warm_up(tensors)
                began = time.monotonic() - self.elapsed
            self._pass(tensors, order, began)
            self.epoch += 1
        self._validate()
        self.feed.close()
        self._write()

    def _pass(self, tensors: tuple[torch.Tensor, ...], order: torch.Tensor, began: float) -> None:
        """All rows once, or as many as the time allows."""
        size = self.settings.batch_rows
        recent: list[torch.Tensor] = []
        for at in range(0, max(1, len(order) - size + 1), size):
            chosen = order[at : at + size]
            rate = learning_rate(self.settings.peak, self.elapsed / (60 * self.settings.minutes))
            recent.append(self._train_step(tuple(tensor[chosen] for tensor in tensors), rate))
            self.step += 1
            self.tokens += chosen.numel() * tensors[0].shape[1]
            if self.step % 50 == 0:
                self._record(torch.stack(recent).mean().item(), rate, time.monotonic() - began)  # .item() waits for the device
                recent.clear()
            self.elapsed = time.monotonic() - began
            if self.step % self.settings.valid_every == 0:
                self._validate()
            if self.step % self.settings.checkpoint_every == 0:
                self._save(self.out / "checkpoint.pt")
            if self._is_over():
                return

    def _train_step(self, rows: tuple[torch.Tensor, ...], rate: float) -> torch.Tensor:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _loss(self, rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Mean over the answer tokens of the batch."""
        batch = to_batch(*rows)
        with self._autocast():
            # additive in the compute dtype: made once here, not in every layer
            mask = torch.zeros_like(batch.mask, dtype=self._dtype).masked_fill_(~batch.mask, -math.inf)
            hidden = self.model(batch.ids, batch.positions, mask)
            return self._cross_entropy(hidden, self.model.transformer.word_embeddings.weight, batch.targets)

    def _warm_up(self, tensors: tuple[torch.Tensor, ...]) -> None:
        """Compile before the clock starts: one step with a rate of zero, and its state forgotten."""
        began = time.monotonic()
        self._loss(tuple(tensor[: self.settings.batch_rows] for tensor in tensors)).backward()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        print(f"compiled in {time.monotonic() - began:.1f} s", flush=True)

    def _validate(self) -> None:
        with self._autocast(), torch.compiler.set_stance("force_eager"):  # other shapes than in training are not worth compiling for
            nats, count = answer_loss(self.model, self.valid_rows, self.settings.batch_rows, self.device)
        self.log.append(self._line() | {"valid_loss": nats / count})
        print(f"step {self.step}  {self.elapsed:.0f} s  valid {nats / count:.4f}", flush=True)

    def _record(self, loss: float, rate: float, elapsed: float) -> None:
        self.elapsed = elapsed
        self.log.append(self._line() | {"train_loss": loss, "rate": rate})
        if self.step % 500 == 0:
            print(f"step {self.step}  {elapsed:.0f} s  train {loss:.4f}  {self.tokens / elapsed:,.0f} tokens/s", flush=True)

    def _line(self) -> dict[str, float]:
        return {"step": self.step, "seconds": round(self.elapsed, 1), "tokens": self.tokens, "epoch": self.epoch}

    def _is_over(self) -> bool:
        return self.elapsed >= 60 * self.settings.minutes or 0 < self.settings.max_steps <= self.step

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _optimizer(self) -> torch.optim.AdamW:
        matrices = [parameter for name, parameter in self.model.named_parameters() if parameter.dim() == 2 and "embed" not in name]
        others = [parameter for name, parameter in self.model.named_parameters() if parameter.dim() < 2 or "embed" in name]
        groups = [{"params": matrices, "weight_decay": self.settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.settings.peak, betas=(0.9, 0.95), fused=self.device.type == "cuda")

    def _compile(self) -> None:
        """Blocks one by one: they share one compilation, which takes seconds instead of a minute."""
        self._cross_entropy = cross_entropy
        if self.device.type == "cuda":
            self._cross_entropy = torch.compile(cross_entropy)
            for layer in self.model.transformer.layers:
                layer.compile()

    def _save(self, path: Path) -> None:
        counters = {"step": self.step, "tokens": self.tokens, "elapsed": self.elapsed, "epoch": self.epoch + 1, "log": self.log}
        partial = path.with_suffix(".partial")
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "counters": counters}, partial)
        partial.replace(path)

    def _load(self, path: Path) -> None:
        """The rest of the pass in which it was saved is skipped."""
        saved = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for name, value in saved["counters"].items():
            setattr(self, name, value)

    def _write(self) -> None:
        names = sorted({name for line in self.log for name in line})
        with (self.out / "loss.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.log)
        facts = {"settings": asdict(self.settings), "shape": self.model.shape.as_dict(), "parameters": self.model.num_parameters()}
        facts |= {"steps": self.step, "tokens_seen": self.tokens, "passes": self.epoch, "seconds": self.elapsed, "torch": torch.__version__}
        if self.device.type == "cuda":
            facts["device"] = torch.cuda.get_device_name()
        save_weights(self.model.state_dict(), self.out)
        (self.out / "checkpoint.pt").unlink(missing_ok=True)  # the run is over
        (self.out / "training.json").write_text(json.dumps(facts, indent=1))
        limits = ReportLimits(self.settings.batch_rows, self.settings.max_requests, self.settings.max_answer)
        write_report(self.model, self.vocabulary, self.poems, self.valid, self.out, limits)


def cross_entropy(hidden: torch.Tensor, embedding: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over targets >= 0 of hidden [B, T, H] against embedding [V, H]."""
    logits = F.linear(hidden, embedding).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def save_weights(state: dict[str, torch.Tensor], out: Path, part_bytes: int = 14 * 2**20) -> None:
    """float16 in numpy files of at most `part_bytes` each, weights-0.npz and so on: small files travel more easily."""
    parts: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in state.items():
        array = tensor.detach().half().cpu().numpy()
        if size + array.nbytes > part_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = array
        size += array.nbytes
    for index, part in enumerate(parts):
        np.savez(out / f"weights-{index}.npz", **part)


if __name__ == "__main__":
    main()
