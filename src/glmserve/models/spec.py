"""The facts of a model that both wings need: shapes, special ids, how it attends.  No torch.

Each family's own `spec` module turns config.json into one of these; `catalog` knows which family that is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glmserve.protocol.errors import ModelLoadError
from glmserve.protocol.weight_format import WeightFormat


@dataclass(frozen=True)
class ModelSpec:
    """What the scheduler, the runner, the tokenizer and the routes need to know of a model.

    `attention` is "prefix" where everything before the first `bos_token_id` (the context) attends to all of itself, so a
    context is computed whole and reused only whole; "causal" otherwise.  `rotary` names the layout of positions:
    "2d" has two position ids a token (ChatGLM-6B), "1d" one.  `layer_format` and `head_format` are how the matrices of the layers and
    the one that makes logits are kept; `released_bits` is set where the checkpoint itself holds integers of so many bits.
    `knows_first_qkv`: what the first layer's q|k|v product makes of each token is kept as a table, so that matrix is not read.
    """

    family: str
    attention: Literal["causal", "prefix"]
    rotary: Literal["1d", "2d"]
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_model_len: int
    norm_epsilon: float
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    mask_token_id: int | None = None  # prefix models: where the answer's first position points
    gmask_token_id: int | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True
    torch_dtype: str = "float32"
    rope_theta: float = 10000.0
    default_sampling: dict[str, float] = field(default_factory=dict)  # what the model's own `chat` samples with
    layer_format: WeightFormat = "none"
    head_format: WeightFormat = "none"
    released_bits: int = 0
    num_soft_tokens: int = 0  # P-Tuning: trained keys and values in front of every sequence
    knows_first_qkv: bool = False
    num_mlp_matrices: int = 3  # 3 where a gate multiplies, 2 where there is only an activation between
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that cannot be: they come from a file that anybody may have written."""
        for name in (
            "num_heads",
            "num_kv_heads",
            "num_layers",
            "hidden_size",
            "head_dim",
            "intermediate_size",
            "vocab_size",
            "max_model_len",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value!r}.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly.")

    @property
    def kv_values_per_token(self) -> int:
        """Numbers of K and V that one token keeps, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def qkv_values(self) -> int:
        """Numbers that a layer's q|k|v product makes of one token."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.  Raises ModelLoadError that names what is missing."""
    if not folder.is_dir():
        raise ModelLoadError(
            f"there is no model folder at {folder}. Give the folder that holds config.json and the weights, "
            "or the name of a built-in model: `demo` or `demo-en`."
        )
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(
            f"{folder} has no config.json, so it is not a model folder. A ChatGLM-6B folder holds config.json, "
            "ice_text.model and pytorch_model-*.bin or *.safetensors."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}. Download it again.") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path} should hold a JSON object. Download it again.")
    return config
