"""Writes a trained run as a folder of the released int8 format: config.json, model.safetensors, ice_text.model.

    python -m training.export --run RUN --data DATA --out src/glmserve/models/poems [--float16]

The output layer is the embedding and is left out of the file, as the embedding is loaded for both.  With --float16 nothing is rounded
further: that folder is for measuring what rounding costs.  It makes no README; `model_card` does.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from training.packing import ROW
from training.prepare import TOKENIZER
from training.quantize import quantized_state
from training.vocabulary import PIECES, Vocabulary

WEIGHTS = "model.safetensors"
MAX_BYTES = 25_000_000  # of the whole folder: it travels in the package


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a trained run as a model folder.")
    parser.add_argument("--run", type=Path, required=True, help="folder written by training.train")
    parser.add_argument("--data", type=Path, required=True, help="folder made by training.prepare, with the run's tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--float16", action="store_true", help="leave the matrices as float16")
    arguments = parser.parse_args()
    export(arguments.run, arguments.data, arguments.out, float16=arguments.float16)
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{arguments.out}: {size:,} bytes")
    if size > MAX_BYTES and not arguments.float16:
        raise SystemExit(f"That is more than {MAX_BYTES:,} bytes.")


def export(run: Path, data: Path, out: Path, *, float16: bool = False) -> None:
    """Write the folder `out` from the weights of `run` and the tokenizer in `data`."""
    out.mkdir(parents=True, exist_ok=True)
    shape = json.loads((run / "training.json").read_text(encoding="utf-8"))["shape"]
    config = config_of(shape, Vocabulary.read(data / PIECES), bits=0 if float16 else 8)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = read_weights(run)
    save_file(state if float16 else quantized_state(state), out / WEIGHTS, metadata={"format": "pt"})
    (out / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    shutil.copyfile(data / TOKENIZER, out / TOKENIZER)


def read_weights(run: Path) -> dict[str, torch.Tensor]:
    """The float16 tensors of a run, by their released names."""
    state: dict[str, torch.Tensor] = {}
    for path in sorted(run.glob("weights-*.npz")):
        with np.load(path) as part:
            state |= {name: torch.from_numpy(part[name]) for name in part.files}
    if not state:
        raise SystemExit(f"{run} holds no weights-*.npz: train first.")
    return state


def config_of(shape: dict[str, int], vocabulary: Vocabulary, bits: int) -> dict[str, Any]:
    """config.json with the keys of the released one; `bits` is 8, or 0 for weights that are not rounded."""
    config: dict[str, Any] = {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "bos_token_id": vocabulary.sop,
        "eos_token_id": vocabulary.eop,
        "mask_token_id": vocabulary.pieces.index("[MASK]"),
        "gmask_token_id": vocabulary.gmask,
        "pad_token_id": vocabulary.pad,
        "hidden_size": shape["hidden_size"],
        "inner_hidden_size": shape["inner_size"],
        "layernorm_epsilon": 1e-05,
        "max_sequence_length": ROW,  # it has seen no longer conversation
        "num_attention_heads": shape["num_heads"],
        "num_layers": shape["num_layers"],
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": shape["vocab_size"],
    }
    return config | ({"quantization_bit": bits, "quantization_embeddings": False} if bits else {})


if __name__ == "__main__":
    main()
