"""T5 (Raffel et al. 2020): a pre-norm encoder and decoder with relative position biases.

original   mlp: relu, tied: true,  head_scale: embed ** -0.5     (t5-small, t5-base)
v1.1       mlp: gated, tied: false, head_scale: 1                (t5-v1_1-*, flan-t5-*)
"""

from __future__ import annotations

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
    RelativeBias,
    RMSNorm,
    Stack,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.models.base import Batch, Parts

MLPS = ("relu", "gated")
DECODER = "decoder_documents"


@dataclass(frozen=True)
class T5(TextModel):
    """Batches: `tokens` (B, S), `decoder_tokens` (B, T), `labels` (B, T); `documents` (B, S) and `decoder_documents`
    (B, T) keep documents apart.

    `layer` is the encoder's depth, `decoder_layer` the decoder's. `distance` is where the buckets of relative
    positions end. `head_scale` multiplies the hidden states in front of the head: a setting, not a function of
    the axis, since a coarser level must scale as the published size does or decoalescing would not be exact.
    As published, `dropout` also acts inside the feed-forward branch and at the end of both stacks (section 3.1).
    """

    vocab: int
    embed: int
    head: int
    head_dim: int
    ffn: int
    layer: int
    decoder_layer: int
    bucket: int
    distance: int
    mlp: str = "gated"
    tied: bool = False
    head_scale: float = 1.0
    eps: float = 1e-6

    axes = ("vocab", "embed", "head", "head_dim", "ffn", "layer", "decoder_layer", "bucket")
    objective = "span"
    within_documents = True

    def parts(self) -> Mapping[str, Layer]:
        std = self.embed**-0.5
        trunk = {
            "token": Embedding("vocab", "embed.out", 1.0),
            "dropout": Dropout(self.dropout),
            "encoder_bias": RelativeBias(std, self.distance, causal=False),
            "encoder": self.encoder(),
            "encoder_norm": RMSNorm(self.eps),
            "decoder_bias": RelativeBias(std, self.distance, causal=True),
            "decoder": self.decoder(),
        }
        if self.tied:
            return trunk | {"decoder_norm": RMSNorm(self.eps, "embed.in")}
        return trunk | {"decoder_norm": RMSNorm(self.eps), "head": Linear("vocab", "embed.in", std, bias=False)}

    def encoder(self) -> Stack:
        """Return the encoder's declared blocks."""
        return self.stack("layer", Block(RMSNorm(self.eps), self.attention(), self.feed_forward()))

    def decoder(self) -> Stack:
        """Return the decoder's declared blocks; their causal mask is in the relative bias."""
        attention = self.attention()
        block = Block(RMSNorm(self.eps), attention, self.feed_forward(), cross=attention)
        return self.stack("decoder_layer", block)

    def attention(self) -> Attention:
        """Return a declared attention: the scores are not scaled, so queries start smaller instead."""
        return Attention(
            std=self.embed**-0.5,
            output_std=(self.head * self.head_dim) ** -0.5,
            query_std=(self.embed * self.head_dim) ** -0.5,
            bias=False,
            scale=1.0,
        )

    def feed_forward(self) -> MLP:
        """Return the declared feed-forward branch."""
        gated = self.mlp == "gated"
        activation = "gelu_tanh" if gated else "relu"
        return MLP(self.embed**-0.5, self.ffn**-0.5, activation, gated, bias=False, dropout=self.dropout)

    def before_head(self, net: Parts, batch: Batch) -> Tensor:
        memory_BSE = self.encode(net, batch)
        x_BTE = net.dropout(net.token(batch["decoder_tokens"]))
        bias_BHTT = documents.hide(net.decoder_bias(x_BTE.shape[1]), documents.mask(batch, DECODER, DECODER))
        memory_mask_B1TS = documents.mask(batch, DECODER)
        for block in net.decoder:
            x_BTE = block(x_BTE, bias_BHTT, memory_BTE=memory_BSE, memory_mask_B1ST=memory_mask_B1TS)
        return net.dropout(net.decoder_norm(x_BTE)) * self.head_scale

    def encode(self, net: Parts, batch: Batch) -> Tensor:
        """Return the encoder's hidden states (B, S, E)."""
        x_BSE = net.dropout(net.token(batch["tokens"]))
        bias_BHSS = documents.hide(net.encoder_bias(x_BSE.shape[1]), documents.mask(batch))
        for block in net.encoder:
            x_BSE = block(x_BSE, bias_BHSS)
        return net.dropout(net.encoder_norm(x_BSE))

    def flops(self, sequence: int, targets: int) -> Flops:
        sizes = self.sizes()
        body = self.encoder().flops(sizes, sequence) + self.decoder().flops(sizes, targets, sequence)
        return Flops(TRAIN * body, self.head_flops(targets, self.vocab))

    def block_flops(self, sequence: int, targets: int) -> dict[str, int]:
        sizes = self.sizes()
        encoder = self.encoder().block.flops(sizes, sequence)
        return {"encoder": TRAIN * encoder, "decoder": TRAIN * self.decoder().block.flops(sizes, targets, sequence)}

    def problems(self) -> list[str]:
        if found := super().problems():
            return found
        exact = self.bucket // 4  # buckets of the bidirectional encoder that hold one distance each
        if self.bucket % 4:
            found.append(mistake("model.bucket", self.bucket, "a multiple of 4", "half is for each side, half exact"))
        elif type(self.distance) is not int or self.distance <= 2 * exact:
            allowed = f"an integer over {2 * exact} (model.bucket / 2)"
            found.append(mistake("model.distance", self.distance, allowed, "raise it or take fewer buckets"))
        if self.mlp not in MLPS:
            found.append(mistake("model.mlp", self.mlp, ", ".join(MLPS), "choose one"))
        return found
