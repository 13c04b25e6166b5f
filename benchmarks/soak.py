"""Does anything grow?  Many requests of mixed lengths through the engine, memory read after every tenth of them.

    python benchmarks/soak.py [--requests 10000] [--model FOLDER] [--in-flight 512] [any flag of the engine, such as --dtype float16]

Prompts of 4 to 300 random tokens, answers of 1 to 48, a tenth of them aborted on the way.  Memory of the device is what the allocator
holds (torch.cuda.memory_reserved), of the host the resident set.  Ends with 1 if the device's grew after the first tenth, if K/V blocks
are still held at the end, or if a request got no end or two.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

from glmserve.config import load_serve_settings
from glmserve.engine.core import EngineCore
from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Print a row a tenth; 0 where nothing grew."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--model", default=str(HERE / "chatglm-6b"))
    own, rest = parser.parse_known_args()
    dummy = "auto" if own.model != str(HERE / "chatglm-6b") else "dummy"
    flags: dict[str, Any] = {"model": own.model, "load_format": dummy}
    flags |= {name.removeprefix("--").replace("-", "_"): value for name, value in zip(rest[::2], rest[1::2], strict=True)}
    config, _ = load_serve_settings(flags, environ={})
    core = EngineCore(config)
    while core.prepare_ahead():  # as a server does until its first request
        pass
    print("| requests | seconds | device MiB | host MiB |\n|---|---|---|---|")
    device_memory = run(core, own.requests, own.in_flight)
    held = core.scheduler.kv_cache.pool.usage
    grew = max(device_memory) > device_memory[0]
    print(f"\ndevice memory {'grew' if grew else 'flat'} after the first tenth; {held:.1%} of K/V blocks held at the end")
    return int(grew or held > 0)


def run(core: EngineCore, count: int, in_flight: int) -> list[int]:
    """All requests to their ends; the device's memory after each tenth, in bytes."""
    rng = random.Random(0)
    waiting, open_ids, ended, device_memory = list(range(count)), set[str](), 0, list[int]()
    started, next_report = time.monotonic(), count // 10
    while waiting or open_ids:
        while waiting and len(open_ids) < in_flight:
            open_ids.add(request_id := f"soak-{waiting.pop()}")
            core.add_request(_request(rng, request_id, core))
        for output in core.step():
            if output.finish_reason is not None:
                open_ids.remove(output.request_id)  # KeyError: it ended twice
                ended += 1
        if open_ids and rng.random() < 0.1 * in_flight / 100:
            core.abort_requests([gone := rng.choice(sorted(open_ids))])
            open_ids.remove(gone)
            ended += 1
        if ended >= next_report:
            device_memory.append(_device_memory())
            seconds, mebibytes = time.monotonic() - started, [size / 2**20 for size in (device_memory[-1], _resident())]
            print(f"| {ended} | {seconds:.0f} | {mebibytes[0]:.0f} | {mebibytes[1]:.0f} |", flush=True)
            next_report += count // 10
    while core.has_unfinished_requests():
        core.step()  # a GPU's last step is read one late
    return device_memory


def _request(rng: random.Random, request_id: str, core: EngineCore) -> EngineRequest:
    spec = core.spec
    prompt = [rng.randrange(10, spec.vocab_size // 2) for _ in range(rng.randint(4, 300))]
    if spec.attention == "prefix":
        prompt += [int(spec.gmask_token_id or 0), int(spec.bos_token_id or 0)]
    params = SamplingParams(temperature=rng.choice((0.0, 0.9)), top_k=50, max_tokens=rng.randint(1, 48), seed=rng.getrandbits(30))
    return EngineRequest(request_id, prompt, params, time.monotonic())


def _device_memory() -> int:
    return torch.cuda.memory_reserved() if torch.cuda.is_available() else 0


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
