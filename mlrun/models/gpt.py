"""GPT-2 (Radford et al. 2019): a pre-norm causal decoder with learned positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.errors import mistake
from mlrun.models import documents
from mlrun.models.base import TRAIN, TextModel
from mlrun.models.layers import MLP, Attention, Block, Dropout, Embedding, Flops, Layer, LayerNorm, Linear, Stack

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.models.base import Batch, Parts

STD = 0.02
ACTIVATIONS = ("gelu_tanh", "gelu", "relu")


@dataclass(frozen=True)
class GPT(TextModel):
    """Batches: `tokens` (B, S), `labels` (B, S) already shifted; `documents`, `places` (B, S) keep documents apart."""

    vocab: int
    position: int
    embed: int
    head: int
    head_dim: int
    ffn: int
    layer: int
    tied: bool = True
    activation: str = "gelu_tanh"
    eps: float = 1e-5

    axes = ("vocab", "position", "embed", "head", "head_dim", "ffn", "layer")
    objective = "causal"
    within_documents = True

    def parts(self) -> Mapping[str, Layer]:
        trunk = {
            "token": Embedding("vocab", "embed.out", STD),
            "position": Embedding("position", "embed.out", STD),
            "dropout": Dropout(self.dropout),
            "blocks": self.blocks(),
        }
        if self.tied:
            return trunk | {"norm": LayerNorm(self.eps, "embed.in")}
        return trunk | {"norm": LayerNorm(self.eps), "head": Linear("vocab", "embed.in", STD, bias=False)}

    def blocks(self) -> Stack:
        """Return the declared blocks."""
        # Each of 2 * layer branches adds to the residual stream: their sum keeps its scale (GPT-2, section 2.3).
        branch_std = STD / math.sqrt(2 * max(self.layer, 1))
        attention = Attention(STD, branch_std, causal=True)
        return self.stack("layer", Block(LayerNorm(self.eps), attention, MLP(STD, branch_std, self.activation)))

    def hidden(self, net: Parts, batch: Batch) -> Tensor:
        tokens_BS = batch["tokens"]
        x_BSE = net.dropout(net.token(tokens_BS) + documents.positions(net, batch))
        mask_B1SS = documents.mask(batch, causal=True)
        for block in net.blocks:
            x_BSE = block(x_BSE, mask_B1SS)
        normed_BSE: Tensor = net.norm(x_BSE)
        return normed_BSE

    def problems(self) -> list[str]:
        found = super().problems()
        if self.activation not in ACTIVATIONS:
            found.append(mistake("model.activation", self.activation, ", ".join(ACTIVATIONS), "choose one"))
        return found

    def flops(self, sequence: int, targets: int) -> Flops:
        body = TRAIN * self.blocks().flops(self.sizes(), sequence)
        return Flops(body, self.head_flops(targets, self.vocab))
