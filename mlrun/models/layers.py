"""Declared layers: from its named axes follow a layer's parameters, their layouts and its FLOPs. No torch here.

A declaration says what a layer is; `mlrun.models.modules` says how it computes. FLOPs are those of one sample's forward
pass, in matmuls and attention only (a multiply-add is 2), as `torch.utils.flop_counter` counts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlrun.models.axes import Param, Params, Place, Sizes


@dataclass(frozen=True)
class Flops:
    """FLOPs of one sample: `head` is the projection onto the vocabulary or the classes, `body` all the rest."""

    body: int
    head: int

    @property
    def total(self) -> int:
        """FLOPs of body and head."""
        return self.body + self.head


class Layer:
    """A declared layer: its own tensors, and child layers under their attribute names."""

    def own(self) -> Params:
        """Return the layer's own tensors by attribute name."""
        return {}

    def children(self) -> Mapping[str, Layer]:
        """Return the child layers by attribute name."""
        return {}

    def params(self) -> dict[str, Param]:
        """Return every tensor below this layer; a name is the path of attributes that leads to it."""
        below = ((f"{name}.{key}", p) for name, c in self.children().items() for key, p in c.params().items())
        return {**self.own(), **dict(below)}


@dataclass(frozen=True)
class Linear(Layer):
    """y = x W^T + b with W (out, inp); the bias starts at 0.

    `residual` marks the last projection of a residual branch; its bias is part of what the branch adds. `place` is
    "scores" of what makes queries.
    """

    out: str
    inp: str
    std: float
    bias: bool = True
    residual: bool = False
    place: Place = ""

    def own(self) -> Params:
        bias = Param((self.out,), residual=self.residual, place=self.place)
        weight = replace(bias, dims=(self.out, self.inp), std=self.std)
        return {"weight": weight} | ({"bias": bias} if self.bias else {})

    def flops(self, sizes: Sizes, rows: int) -> int:
        """Return the forward FLOPs for `rows` input rows."""
        return 2 * rows * self.own()["weight"].count(sizes)


@dataclass(frozen=True)
class Embedding(Layer):
    """A table of rows, looked up by index without FLOPs; a tied head also multiplies by it."""

    rows: str
    dim: str
    std: float

    def own(self) -> Params:
        return {"weight": Param((self.rows, self.dim), std=self.std)}


@dataclass(frozen=True)
class Dropout(Layer):
    """In training each value is 0 with probability `rate`, and divided by 1 - rate otherwise."""

    rate: float


@dataclass(frozen=True)
class DropPath(Layer):
    """In training each sample is 0 as a whole with probability `rate`, and divided by 1 - rate otherwise."""

    rate: float


@dataclass(frozen=True)
class Vector(Layer):
    """One learned vector that is added to its input: the bias of a tied head."""

    dim: str

    def own(self) -> Params:
        return {"weight": Param((self.dim,))}


@dataclass(frozen=True)
class Prefix(Layer):
    """One learned token that is put in front of the sequence: DeiT's class and distillation tokens."""

    dim: str
    std: float

    def own(self) -> Params:
        return {"weight": Param((self.dim,), std=self.std)}


@dataclass(frozen=True)
class LayerNorm(Layer):
    """Layer normalisation with weight and bias.

    In front of a tied head `dim` is consumed (`embed.in`): the table is copied as an embedding must be, so the
    1/g that a projection's input side needs is folded into this norm instead (docs: operators).
    """

    eps: float
    dim: str = "embed.out"
    place: Place = ""

    def own(self) -> Params:
        return {"weight": Param((self.dim,), mean=1.0, place=self.place), "bias": Param((self.dim,), place=self.place)}


@dataclass(frozen=True)
class RMSNorm(Layer):
    """Root-mean-square normalisation with a weight only (Zhang and Sennrich 2019); `dim` as in LayerNorm."""

    eps: float
    dim: str = "embed.out"
    place: Place = ""

    def own(self) -> Params:
        return {"weight": Param((self.dim,), mean=1.0, place=self.place)}


@dataclass(frozen=True)
class Patches(Layer):
    """Cut an image into square patches and project each one: a convolution whose stride is its kernel."""

    std: float

    def own(self) -> Params:
        return {
            "weight": Param(("embed.out", "channel", "patch", "patch"), std=self.std),
            "bias": Param(("embed.out",)),
        }

    def flops(self, sizes: Sizes, patches: int) -> int:
        """Return the forward FLOPs for `patches` patches."""
        return 2 * patches * self.own()["weight"].count(sizes)


@dataclass(frozen=True)
class Stretch:
    """Llama 3.1's rotary positions for texts longer than the `position` tokens that it was first trained on.

    Wavelengths over position / low grow by `factor`, those under position / high stay, between them it is a blend.
    """

    factor: float
    low: float
    high: float
    position: int


@dataclass(frozen=True)
class Rotary(Layer):
    """Rotary positions (Su et al. 2021) in the half-split layout of Llama; no learned tensors."""

    theta: float
    stretch: Stretch | None = None
    rows: str = "position"
    dim: str = "head_dim"


@dataclass(frozen=True)
class RelativeBias(Layer):
    """T5's learned bias per head and bucket of distance, added to the attention scores (Raffel et al. 2020)."""

    std: float
    distance: int
    causal: bool

    def own(self) -> Params:
        return {"weight": Param(("bucket", "head.out"), std=self.std)}


@dataclass(frozen=True)
class Attention(Layer):
    """Multi-head attention with separate projections: heads merge whole, and each has its own axis role.

    `head` is the axis that keys and values have. In grouped-query attention every unit of it also holds `group`
    query heads, so that a key/value head merges together with the queries that read it.
    `scale` None is 1/sqrt(head_dim). `qk_norm` is the epsilon of an RMSNorm on each query and key, None is off.
    `dropout` is the rate at which single attention weights are dropped. `output_bias` None is as `bias`.
    """

    std: float
    output_std: float
    query_std: float | None = None
    head: str = "head"
    group: str | None = None
    bias: bool = True
    causal: bool = False
    scale: float | None = None
    qk_norm: float | None = None
    dropout: float = 0.0
    output_bias: bool | None = None

    def children(self) -> Mapping[str, Layer]:
        return {**self.projections(), **self.norms()}

    def projections(self) -> dict[str, Linear]:
        """Return the four projections."""
        many = "*head_dim" if self.group is None else f"*{self.group}*head_dim"
        heads, queries = f"{self.head}.out*head_dim", f"{self.head}.out{many}"
        query_std = self.std if self.query_std is None else self.query_std
        output_bias = self.bias if self.output_bias is None else self.output_bias
        query_place = self.scores() if self.qk_norm is None else ""
        return {
            "query": Linear(queries, "embed.in", query_std, self.bias, place=query_place),
            "key": Linear(heads, "embed.in", self.std, self.bias),
            "value": Linear(heads, "embed.in", self.std, self.bias),
            "output": Linear("embed.out", f"{self.head}.in{many}", self.output_std, output_bias, residual=True),
        }

    def norms(self) -> dict[str, RMSNorm]:
        """Return the norms of query and key, if any: one weight for all heads, over `head_dim`."""
        if self.qk_norm is None:
            return {}
        key = RMSNorm(self.qk_norm, "head_dim")
        return {"query_norm": replace(key, place=self.scores()), "key_norm": key}

    def scores(self) -> Place:
        """Return the place of what makes queries."""
        return "scores" if self.scale is None else "unscaled scores"

    def flops(self, sizes: Sizes, queries: int, keys: int) -> int:
        """Return the forward FLOPs of `queries` rows that attend to `keys` rows; a causal mask saves none."""
        rows = {"query": queries, "key": keys, "value": keys, "output": queries}
        projected = sum(layer.flops(sizes, rows[name]) for name, layer in self.projections().items())
        width = Param((self.projections()["query"].out,)).count(sizes)
        return projected + 2 * (2 * queries * keys * width)


@dataclass(frozen=True)
class MLP(Layer):
    """down(activation(up(x))), or with a gate down(activation(gate(x)) * up(x)) (Shazeer 2020).

    `dropout` is of what `down` reads.
    """

    std: float
    output_std: float
    activation: str
    gated: bool = False
    bias: bool = True
    dropout: float = 0.0

    def children(self) -> Mapping[str, Layer]:
        return {**self.projections(), "dropout": Dropout(self.dropout)}

    def projections(self) -> dict[str, Linear]:
        """Return the two projections, or with a gate three."""
        wide = Linear("ffn.out", "embed.in", self.std, self.bias)
        down = Linear("embed.out", "ffn.in", self.output_std, self.bias, residual=True)
        return ({"gate": wide} if self.gated else {}) | {"up": wide, "down": down}

    def flops(self, sizes: Sizes, rows: int) -> int:
        """Return the forward FLOPs for `rows` input rows."""
        return sum(layer.flops(sizes, rows) for layer in self.projections().values())


@dataclass(frozen=True)
class Transform(Layer):
    """norm(activation(dense(x))): what BERT puts between its last block and the tied head."""

    norm: Layer
    std: float
    activation: str

    def children(self) -> Mapping[str, Layer]:
        return {"dense": self.dense(), "norm": self.norm}

    def dense(self) -> Linear:
        """Return the projection."""
        return Linear("embed.out", "embed.in", self.std)

    def flops(self, sizes: Sizes, rows: int) -> int:
        """Return the forward FLOPs for `rows` input rows."""
        return self.dense().flops(sizes, rows)


@dataclass(frozen=True)
class Block(Layer):
    """Residual branches: attention, then cross-attention if there is one, then the MLP; each has a `norm`.

    pre-norm   x + f(norm(x))
    post-norm  norm(x + f(x))

    What a branch adds is dropped in values at the rate `dropout`, and as a whole at the rate `drop_path`.
    """

    norm: LayerNorm | RMSNorm
    attention: Attention
    mlp: MLP
    cross: Attention | None = None
    post: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0

    def children(self) -> Mapping[str, Layer]:
        norm = replace(self.norm, place="stream") if self.post else self.norm
        cross = {} if self.cross is None else {"cross_norm": norm, "cross": self.cross}
        first = {"attention_norm": norm, "attention": self.attention}
        drops = {"dropout": Dropout(self.dropout), "drop_path": DropPath(self.drop_path)}
        return {**first, **cross, "mlp_norm": norm, "mlp": self.mlp, **drops}

    def flops(self, sizes: Sizes, rows: int, memory: int = 0) -> int:
        """Return the forward FLOPs for `rows` rows; cross-attention reads `memory` rows."""
        cross = 0 if self.cross is None else self.cross.flops(sizes, rows, memory)
        return self.attention.flops(sizes, rows, rows) + cross + self.mlp.flops(sizes, rows)


@dataclass(frozen=True)
class Stack(Layer):
    """One block per unit of a depth axis; the block's `drop_path` is that of the last."""

    axis: str
    block: Block

    def children(self) -> Mapping[str, Layer]:
        return {f"{{{self.axis}}}": self.block}

    @staticmethod
    def rate(last: float, index: int, count: int) -> float:
        """Return the rate of dropping at block `index` of `count`: linearly from 0 at the first to that of the last.

        Huang et al. 2016, equation 4, as timm has it.
        """
        return last * index / max(count - 1, 1)

    def at(self, index: int, count: int) -> Block:
        """Return block `index` of `count`, with the `drop_path` of its relative depth."""
        return replace(self.block, drop_path=self.rate(self.block.drop_path, index, count))

    def flops(self, sizes: Sizes, rows: int, memory: int = 0) -> int:
        """Return the forward FLOPs of all blocks."""
        return sizes[self.axis] * self.block.flops(sizes, rows, memory)
