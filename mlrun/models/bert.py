"""BERT (Devlin et al. 2018): a post-norm encoder with a tied masked-language head, no next-sentence task.

RoBERTa is this with one token type. ELECTRA is not: its token table is narrower than the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    LayerNorm,
    Stack,
    Transform,
    Vector,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.models.base import Batch, Parts

STD = 0.02


@dataclass(frozen=True)
class BERT(TextModel):
    """Batches: `tokens` (B, S), `positions` (B, M) of the masked tokens, `labels` (B, M); every token has type 0.

    `documents` and `places` (B, S) keep documents apart.
    """

    vocab: int
    position: int
    token_type: int
    embed: int
    head: int
    head_dim: int
    ffn: int
    layer: int
    eps: float = 1e-12

    axes = ("vocab", "position", "token_type", "embed", "head", "head_dim", "ffn", "layer")
    objective = "mlm"
    within_documents = True

    def parts(self) -> Mapping[str, Layer]:
        return {
            "token": Embedding("vocab", "embed.out", STD),
            "position": Embedding("position", "embed.out", STD),
            "token_type": Embedding("token_type", "embed.out", STD),
            "norm": LayerNorm(self.eps),
            "dropout": Dropout(self.dropout),
            "blocks": self.blocks(),
            "transform": self.transform(),
            "head_bias": Vector("vocab"),
        }

    def blocks(self) -> Stack:
        """Return the declared blocks."""
        return self.stack("layer", Block(LayerNorm(self.eps), Attention(STD, STD), MLP(STD, STD, "gelu"), post=True))

    def transform(self) -> Transform:
        """Return the projection in front of the tied head."""
        return Transform(LayerNorm(self.eps, "embed.in"), STD, "gelu")

    def hidden(self, net: Parts, batch: Batch) -> Tensor:
        x_BSE = net.token(batch["tokens"]) + documents.positions(net, batch) + net.token_type.weight[0]
        x_BSE = net.norm(x_BSE)
        x_BSE = net.dropout(x_BSE)
        mask_B1SS = documents.mask(batch)
        for block in net.blocks:
            x_BSE = block(x_BSE, mask_B1SS)
        return x_BSE

    def before_head(self, net: Parts, batch: Batch) -> Tensor:
        x_BSE, positions_BM = self.hidden(net, batch), batch["positions"]
        # The vocabulary is wide: only the masked positions are worth its product.
        x_BME = x_BSE.take_along_dim(positions_BM[..., None], dim=1)
        return net.transform(x_BME)

    def unembed(self, net: Parts, x: Tensor) -> Tensor:
        return net.head_bias(net.token.unembed(x))

    def head_tensors(self, net: Parts) -> tuple[Tensor, Tensor | None]:
        return net.token.weight, net.head_bias.weight

    def flops(self, sequence: int, targets: int) -> Flops:
        sizes = self.sizes()
        body = self.blocks().flops(sizes, sequence) + self.transform().flops(sizes, targets)
        return Flops(TRAIN * body, self.head_flops(targets, self.vocab))
