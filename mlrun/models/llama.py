"""Llama (Touvron et al. 2023): a pre-norm causal decoder with RMSNorm, rotary positions and gated MLPs.

Grouped-query attention (Ainslie et al. 2023) has two axes: `kv_head`, and `group` query heads to each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.errors import mistake
from mlrun.models import documents
from mlrun.models.base import TRAIN, TextModel
from mlrun.models.layers import (
    MLP,
    Attention,
    Block,
    Dropout,
    Embedding,
    Flops,
    Layer,
    Linear,
    RMSNorm,
    Rotary,
    Stack,
    Stretch,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.models.base import Batch, Parts

STD = 0.02


@dataclass(frozen=True)
class Llama(TextModel):
    """Batches: `tokens` (B, S), `labels` (B, S) already shifted; `documents`, `places` (B, S) keep documents apart.

    `qk_norm` adds an RMSNorm to each query and key, as Qwen3 has it; `qkv_bias` a bias to query, key and value, as
    Qwen2; `output_bias` one to what attention puts out (with both it is `attention_bias`). `rope_factor` over 1
    stretches the rotary positions as Llama 3.1 does (see `layers.Stretch`), which was first trained on texts of
    `rope_position` tokens.
    """

    vocab: int
    position: int
    embed: int
    kv_head: int
    group: int
    head_dim: int
    ffn: int
    layer: int
    tied: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    theta: float = 10000.0
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_position: int = 8192
    eps: float = 1e-5

    axes = ("vocab", "position", "embed", "kv_head", "group", "head_dim", "ffn", "layer")
    objective = "causal"
    within_documents = True

    def parts(self) -> Mapping[str, Layer]:
        trunk = {
            "token": Embedding("vocab", "embed.out", STD),
            "dropout": Dropout(self.dropout),
            "rotary": Rotary(self.theta, self.stretch()),
            "blocks": self.blocks(),
        }
        if self.tied:
            return trunk | {"norm": RMSNorm(self.eps, "embed.in")}
        return trunk | {"norm": RMSNorm(self.eps), "head": Linear("vocab", "embed.in", STD, bias=False)}

    def stretch(self) -> Stretch | None:
        """Return how rotary positions are stretched, None if they are not."""
        if self.rope_factor == 1:
            return None
        return Stretch(self.rope_factor, self.rope_low, self.rope_high, self.rope_position)

    def blocks(self) -> Stack:
        """Return the declared blocks."""
        branch_std = STD / math.sqrt(2 * max(self.layer, 1))  # as in GPT-2; Llama's own start was not published
        attention = Attention(
            STD,
            branch_std,
            head="kv_head",
            group="group",
            bias=self.qkv_bias,
            output_bias=self.output_bias,
            causal=True,
            qk_norm=self.eps if self.qk_norm else None,
        )
        mlp = MLP(STD, branch_std, "silu", gated=True, bias=False)
        return self.stack("layer", Block(RMSNorm(self.eps), attention, mlp))

    def hidden(self, net: Parts, batch: Batch) -> Tensor:
        tokens_BS = batch["tokens"]
        rotary = net.rotary.at(batch["places"]) if "places" in batch else net.rotary(tokens_BS.shape[1])
        x_BSE, mask_B1SS = net.dropout(net.token(tokens_BS)), documents.mask(batch, causal=True)
        for block in net.blocks:
            x_BSE = block(x_BSE, mask_B1SS, rotary)
        normed_BSE: Tensor = net.norm(x_BSE)
        return normed_BSE

    def flops(self, sequence: int, targets: int) -> Flops:
        body = TRAIN * self.blocks().flops(self.sizes(), sequence)
        return Flops(body, self.head_flops(targets, self.vocab))

    def problems(self) -> list[str]:
        found = super().problems()
        if not found and self.head_dim % 2:
            found.append(mistake("model.head_dim", self.head_dim, "an even number", "rotary positions turn pairs"))
        positive = {key: getattr(self, key) for key in ("theta", "rope_low", "rope_position")}
        found += [mistake(f"model.{k}", v, "a number above 0", "correct it") for k, v in positive.items() if not v > 0]
        if not self.rope_factor >= 1:
            found.append(mistake("model.rope_factor", self.rope_factor, "1 (off) or more", "correct it"))
        if not self.rope_high > self.rope_low:
            allowed = f"over model.rope_low={self.rope_low}"
            found.append(mistake("model.rope_high", self.rope_high, allowed, "correct one of them"))
        return found
