"""DeiT (Touvron et al. 2021) and ViT (Dosovitskiy et al. 2021): a pre-norm encoder of image patches.

`pooling: mean` without class token is the plain ViT of Beyer et al. 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.errors import mistake
from mlrun.models.base import TRAIN, TRAIN_ON_DATA, Model
from mlrun.models.layers import (
    MLP,
    Attention,
    Block,
    Dropout,
    Embedding,
    Flops,
    Layer,
    LayerNorm,
    Linear,
    Patches,
    Prefix,
    Stack,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.models.base import Batch, Parts

STD = 0.02
POOLINGS = ("class", "mean")


@dataclass(frozen=True)
class DeiT(Model):
    """Batches: `images` (B, C, image, image), `labels` (B,) or (B, classes).

    There is no teacher: the distillation head, which published weights have, learns the labels too. Without
    `distillation_head` the distillation token has none, as in a model that was fine-tuned after distillation.
    """

    image: int
    channel: int
    patch: int
    classes: int
    embed: int
    head: int
    head_dim: int
    ffn: int
    layer: int
    pooling: str = "class"
    distillation: bool = False
    distillation_head: bool = True
    eps: float = 1e-6

    axes = ("image", "channel", "patch", "classes", "embed", "head", "head_dim", "ffn", "layer")
    objective = "image"

    def sizes(self) -> dict[str, int]:
        return super().sizes() | {"position": self.patches() + self.prefixes()}

    def patches(self) -> int:
        """Return the number of patches of an image."""
        return (self.image // self.patch) ** 2

    def prefixes(self) -> int:
        """Return the number of learned tokens in front of the patches."""
        return int(self.pooling == "class") + int(self.distillation)

    def parts(self) -> Mapping[str, Layer]:
        token, head = Prefix("embed.out", STD), Linear("classes", "embed.in", STD)
        return {
            "patches": Patches(STD),
            **({"class_token": token} if self.pooling == "class" else {}),
            **({"distillation_token": token} if self.distillation else {}),
            "position": Embedding("position", "embed.out", STD),
            "dropout": Dropout(self.dropout),
            "blocks": self.blocks(),
            "norm": LayerNorm(self.eps),
            "head": head,
            **({"distillation_head": head} if self.two_heads else {}),
        }

    @property
    def two_heads(self) -> bool:
        """Whether the distillation token has a head of its own."""
        return self.distillation and self.distillation_head

    def blocks(self) -> Stack:
        """Return the declared blocks."""
        return self.stack("layer", Block(LayerNorm(self.eps), Attention(STD, STD), MLP(STD, STD, "gelu")))

    def forward(self, net: Parts, batch: Batch) -> Tensor:
        return _mean(self.heads(net, batch))  # DeiT, section 4: at inference the two heads are averaged

    def heads(self, net: Parts, batch: Batch) -> list[Tensor]:
        """Return the logits (B, classes) of the head, and of the distillation head if there is one."""
        x_BSE = net.patches(batch["images"])
        if self.distillation:
            x_BSE = net.distillation_token(x_BSE)
        if self.pooling == "class":
            x_BSE = net.class_token(x_BSE)
        x_BSE = net.dropout(x_BSE + net.position.weight)
        for block in net.blocks:
            x_BSE = block(x_BSE)
        x_BSE = net.norm(x_BSE)
        pooled_BE = x_BSE[:, 0] if self.pooling == "class" else x_BSE.mean(dim=1)
        return [net.head(pooled_BE)] + ([net.distillation_head(x_BSE[:, 1])] if self.two_heads else [])

    def loss_and_logits(self, net: Parts, batch: Batch) -> tuple[Tensor, Tensor]:
        heads = self.heads(net, batch)
        return _mean([net.cross_entropy(head, batch["labels"]) for head in heads]), _mean(heads)

    def tokens(self, sequence: int) -> int:
        """Return the patches and learned tokens of an image; an image has no other length."""
        return self.sizes()["position"]

    def flops(self, sequence: int, targets: int) -> Flops:
        """Return the FLOPs of one image (see Model.flops), whose length follows from the sizes alone."""
        sizes = self.sizes()
        body = TRAIN_ON_DATA * Patches(STD).flops(sizes, self.patches())
        body += TRAIN * self.blocks().flops(sizes, sizes["position"])
        return Flops(body, (1 + self.two_heads) * self.head_flops(1, self.classes))

    def problems(self) -> list[str]:
        if found := super().problems():
            return found
        if self.image % self.patch:
            found.append(mistake("model.patch", self.patch, f"a divisor of model.image={self.image}", "change one"))
        if self.pooling not in POOLINGS:
            found.append(mistake("model.pooling", self.pooling, ", ".join(POOLINGS), "choose one"))
        if self.distillation and self.pooling != "class":
            remedy = "set model.pooling=class or model.distillation=false"
            found.append(mistake("model.distillation", True, "only with model.pooling=class", remedy))
        return found


def _mean(values: list[Tensor]) -> Tensor:
    return sum(values[1:], values[0]) / len(values)
