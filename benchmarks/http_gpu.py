"""The same workloads offline and then over HTTP, streamed, on one GPU with random weights of ChatGLM-6B's real shape.

    python benchmarks/http_gpu.py [--concurrency 32,256] [--steady] [--serve-flags "--enforce-eager"] [--output-json FILE]

First `glmserve bench throughput` in a process of its own, which ends and so gives the memory back; then `glmserve serve` and against
it `glmserve bench serve`: N clients at once, each asking for one answer with token ids over /v1/completions, `--repeats` times, and
the best run counts on both sides.  --steady adds the largest N once more with four times as many requests, so that the clients do not
all start together.  At last 20 requests one by one: what a lone user waits for the first token.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from served import Served, where_and_when

HERE = Path(__file__).resolve().parent
SUFFIX_IDS = "130001,130004"  # [gMASK] <sop>
NUM_LONE = 20


def main() -> None:
    """Offline, then HTTP, then the table."""
    options = parse_options()
    head = where_and_when()
    workloads = [
        {"name": f"{clients} clients", "num_prompts": clients, "clients": clients, "repeats": options.repeats}
        for clients in map(int, options.concurrency.split(","))
    ]
    if options.steady:
        most = max(workload["clients"] for workload in workloads)
        workloads.append({"name": f"{most} clients, steady", "num_prompts": 4 * most, "clients": most, "repeats": 1})
    offline = {} if options.skip_offline else run_offline(workloads, options)
    with Served([sys.executable, "-m", "glmserve", "serve", *engine_flags(options, "serve")]) as server:
        print(f"server ready {server.start_seconds:.1f} s after its start", flush=True)
        rows = [run_http(server, workload, options) for workload in workloads]
        lone = bench(server, options, num_prompts=NUM_LONE, clients=1, output_len=16, seed=1000, num_warmups=3)
    print(table(head, rows, offline, lone, options))
    if options.output_json:
        Path(options.output_json).write_text(json.dumps({"offline": offline, "http": rows, "lone": lone}, indent=1))


def engine_flags(options: argparse.Namespace, command: str) -> list[str]:
    model = [options.model] if command == "serve" else ["--model", options.model]
    flags = ["--load-format", "dummy", "--skip-tokenizer-init", "--dtype", options.dtype, "--device", options.device]
    return [*model, *flags, *options.engine_flags.split()] + (options.serve_flags.split() if command == "serve" else [])


def run_offline(workloads: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Figures by workload.  `bench throughput` prints its own table meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        listed, result = Path(folder) / "workloads.json", Path(folder) / "result.json"
        lengths = {"input_len": options.input_len, "output_len": options.output_len}
        entries = [{key: value for key, value in one.items() if key != "clients"} | lengths for one in workloads]
        listed.write_text(json.dumps({"offline": entries}))
        command = [sys.executable, "-m", "glmserve", "bench", "throughput", *engine_flags(options, "bench")]
        if subprocess.run([*command, "--workloads", str(listed), "--output-json", str(result)]).returncode:
            sys.exit(1)  # it has said why
        return {row["name"]: row for row in json.loads(result.read_text())["rows"]}


def run_http(server: Served, workload: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The best of the repeats, each with prompts of its own."""
    runs = []
    for repeat in range(workload["repeats"]):
        clients, seed = workload["clients"], 10 * workload["num_prompts"] + repeat
        cpu_before = server.cpu_seconds()
        run = bench(
            server, options, num_prompts=workload["num_prompts"], clients=clients, output_len=options.output_len, seed=seed,
            num_warmups=clients if repeat == 0 else 1,
        )  # fmt: skip
        run["front_end_cpu_seconds"] = server.cpu_seconds() - cpu_before
        print(f"HTTP, {workload['name']}: {run['output_throughput']:,.0f} tok/s in {run['duration']:.2f} s", flush=True)
        runs.append(run)
    return {"name": workload["name"]} | max(runs, key=lambda run: run["output_throughput"])


def bench(
    server: Served, options: argparse.Namespace, *, num_prompts: int, clients: int, output_len: int, seed: int, num_warmups: int
) -> Any:
    workers = min(options.num_workers, clients)
    return server.bench(
        "--num-prompts", str(num_prompts), "--max-concurrency", str(clients), "--num-workers", str(workers), "--seed", str(seed),
        "--random-input-len", str(options.input_len), "--random-output-len", str(output_len), "--ignore-eos",
        "--num-warmups", str(num_warmups), "--token-ids", options.token_ids, "--prompt-suffix-ids", options.prompt_suffix_ids,
    )  # fmt: skip


def table(head: str, rows: list[dict[str, Any]], offline: dict[str, Any], lone: dict[str, Any], options: argparse.Namespace) -> str:
    """Markdown."""
    lines = [
        "",
        f"ChatGLM-6B's shape, {options.dtype}, in {options.input_len} / out {options.output_len}, greedy, EOS ignored; output tokens/s.",
        head,
        "",
        "| workload | offline | HTTP, streamed | HTTP / offline | TTFT p50, p99 ms | TPOT p50 ms | ITL p99 ms | server CPU | client CPU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        alone = offline.get(row["name"], {}).get("out_tok_s")
        share = f"{alone:,.0f} | {row['output_throughput']:,.0f} | {row['output_throughput'] / alone:.1%}" if alone else (
            f"- | {row['output_throughput']:,.0f} | -"
        )  # fmt: skip
        lines.append(
            f"| {row['name']} | {share} | {row['p50_ttft_ms']:.1f}, {row['p99_ttft_ms']:.1f} | {row['p50_tpot_ms']:.2f} "
            f"| {row['p99_itl_ms']:.1f} | {row['front_end_cpu_seconds'] / row['duration']:.0%} | {row['client_busy']:.0%} |"
        )
    lines += ["", f"A lone request of {options.input_len} tokens, median of {NUM_LONE}: first token after {lone['median_ttft_ms']:.2f} ms "
              f"(p99 {lone['p99_ttft_ms']:.2f}), then {lone['median_tpot_ms']:.2f} ms a token."]  # fmt: skip
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", default="32,256")
    parser.add_argument("--steady", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--skip-offline", action="store_true")
    parser.add_argument("--num-workers", type=int, default=2, help="client processes")
    parser.add_argument("--output-json")
    parser.add_argument("--model", default=str(HERE / "chatglm-6b"), help="folder with a config.json")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--token-ids", default="1000:60000")
    parser.add_argument("--prompt-suffix-ids", default=SUFFIX_IDS)
    parser.add_argument("--engine-flags", default="", help='for both, as "--enforce-eager"')
    parser.add_argument("--serve-flags", default="", help='for the server alone, as "--stream-interval 0.01"')
    return parser.parse_args()


if __name__ == "__main__":
    main()
