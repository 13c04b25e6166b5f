"""ChatGLM-6B's architecture in plain PyTorch with gradients, for training alone.  Parameter names are those of the release.

The facts are those of docs/models.md; a test holds its logits equal to the server's model.  Generation with a cache is the server's
business: here every step computes the whole sequence.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

ALPHA = math.sqrt(2 * 28)  # of the released code, whatever the number of layers


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the defaults are those of the one that ships."""

    vocab_size: int = 8192
    hidden_size: int = 384
    num_heads: int = 6
    inner_size: int = 1536
    num_layers: int = 10
    max_positions: int = 2048
    dropout: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class ChatGLM(nn.Module):
    """`forward` gives normalised hidden states; `logits` turns them into scores with the embedding (tied)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.transformer = Transformer(shape)
        cos, sin = rotary_tables(shape.hidden_size // shape.num_heads, shape.max_positions + 1)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.cos: torch.Tensor
        self.sin: torch.Tensor

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ids [B, T], positions [2, B, T], mask bool or additive [B, 1, T, T] -> [B, T, hidden_size]."""
        # [B, 1, T, 2 axes, pairs]: the same for all heads
        cos = torch.stack([self.cos[positions[0]], self.cos[positions[1]]], dim=2)[:, None]
        sin = torch.stack([self.sin[positions[0]], self.sin[positions[1]]], dim=2)[:, None]
        hidden: torch.Tensor = self.transformer(ids, cos, sin, mask)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden_size] -> [..., vocab_size]."""
        return F.linear(hidden, self.transformer.word_embeddings.weight)

    def num_parameters(self) -> int:
        """The embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


class Transformer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.final_layernorm = nn.LayerNorm(shape.hidden_size)
        nn.init.normal_(self.word_embeddings.weight, std=0.02)

    def forward(self, ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.word_embeddings(ids))
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        hidden: torch.Tensor = self.final_layernorm(x)
        return hidden


class Block(nn.Module):
    """a = LN(x); x1 = alpha a + Attn(a); b = LN(x1); x2 = alpha b + MLP(b)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(shape.hidden_size)
        self.attention = Attention(shape)
        self.post_attention_layernorm = nn.LayerNorm(shape.hidden_size)
        self.mlp = MLP(shape)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        a = self.input_layernorm(x)
        b = self.post_attention_layernorm(ALPHA * a + self.dropout(self.attention(a, cos, sin, mask)))
        out: torch.Tensor = ALPHA * b + self.dropout(self.mlp(b))
        return out


class Attention(nn.Module):
    """Rows of query_key_value lie as [head][q | k | v]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.query_key_value = _linear(shape.hidden_size, 3 * shape.hidden_size)
        self.dense = _linear(shape.hidden_size, shape.hidden_size, gain=2.0)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x.shape
        qkv = self.query_key_value(x).view(batch, length, self.num_heads, 3, -1).permute(3, 0, 2, 1, 4)  # [3, B, H, T, D]
        query, key = rotate(qkv[0], cos, sin), rotate(qkv[1], cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, qkv[2], attn_mask=mask)
        out: torch.Tensor = self.dense(mixed.transpose(1, 2).reshape(batch, length, hidden))
        return out


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dense_h_to_4h = _linear(shape.hidden_size, shape.inner_size)
        self.dense_4h_to_h = _linear(shape.inner_size, shape.hidden_size, gain=2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))
        return out


def rotary_tables(head_dim: int, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [num_positions, head_dim / 4]; the frequencies are rounded to float16 as in the release."""
    width = head_dim // 2
    frequencies = (1.0 / (10000 ** (torch.arange(0, width, 2).float() / width))).half().float()
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, H, T, D]: its first half turned by the first position, its second by the second; element i pairs with i + D/4."""
    parts = x.float().unflatten(-1, (2, 2, -1))  # [B, H, T, axis, half, pairs]
    first, second = parts[..., 0, :], parts[..., 1, :]
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2)
    return turned.flatten(-3).to(x.dtype)


def _linear(in_features: int, out_features: int, gain: float = 1.0) -> nn.Linear:
    """The residual is scaled by alpha, so what is added to it starts larger than usual (gain)."""
    linear = nn.Linear(in_features, out_features)
    nn.init.normal_(linear.weight, std=gain * in_features**-0.5)
    nn.init.zeros_(linear.bias)
    return linear
