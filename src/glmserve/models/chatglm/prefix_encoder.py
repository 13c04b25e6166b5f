"""P-Tuning v2: keys and values that were trained instead of a prompt, in front of every sequence, in every layer.

They are not rotated, every token sees them, and they move no position.  Source: PrefixEncoder in modeling_chatglm.py of THUDM/chatglm-6b.
"""

from __future__ import annotations

import torch
from torch import nn

from glmserve.models.spec import ModelSpec


class PrefixEncoder(nn.Module):
    """Makes the keys and values once; its tensors have the released names."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.shape = (spec.num_soft_tokens, spec.num_layers, 2, spec.num_kv_heads, spec.head_dim)
        width = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
        projects = bool(spec.extra.get("prefix_projection"))
        self.embedding = nn.Embedding(spec.num_soft_tokens, spec.hidden_size if projects else width)
        self.trans = (
            nn.Sequential(nn.Linear(spec.hidden_size, spec.hidden_size), nn.Tanh(), nn.Linear(spec.hidden_size, width))
            if projects
            else nn.Identity()
        )
        self.requires_grad_(False)

    def forward(self) -> torch.Tensor:
        """[num_soft_tokens, num_layers, 2 (keys, values), num_heads, head_dim]."""
        made: torch.Tensor = self.trans(self.embedding.weight)
        return made.view(self.shape)
