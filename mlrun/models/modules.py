"""How each declared layer computes, as torch modules.

Shape suffixes, one letter a dim:

    B batch      S sequence    T second sequence (attention: the rows attended to)    M predicted positions
    E embed      H heads       D head_dim      F ffn      V vocab or classes      C channels

A module takes its tensors and children from the declaration, so state dict names equal `Model.params()`.
Weights are float32; autocast, where wanted, is the training loop's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mlrun.models import layers
from mlrun.models.axes import Sizes
from mlrun.models.dropout import Dropout, DropPath

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class Module(nn.Module):
    """A declared layer made of torch: its tensors as parameters, its children as submodules, names kept."""

    if TYPE_CHECKING:  # submodules and parameters are set by name

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, layer: layers.Layer, sizes: Sizes) -> None:
        super().__init__()
        for name, param in layer.own().items():
            self.register_parameter(name, nn.Parameter(torch.empty(param.shape(sizes))))
        for name, child in layer.children().items():
            self.add_module(name, module(child, sizes))


class Linear(Module):
    """Affine map of the last dim."""

    def __init__(self, layer: layers.Linear, sizes: Sizes) -> None:
        super().__init__(layer, sizes)
        if not layer.bias:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Look-up by index, and the tied head."""

    def forward(self, index_BS: Tensor) -> Tensor:
        return F.embedding(index_BS, self.weight)

    def unembed(self, x_BSE: Tensor) -> Tensor:
        """Return the logits (B, S, V) of a head that is tied to this table."""
        return F.linear(x_BSE, self.weight)


class Vector(Module):
    """Add a learned vector."""

    def forward(self, x_BSE: Tensor) -> Tensor:
        return x_BSE + self.weight


class Prefix(Module):
    """Put a learned token in front: (B, S, E) -> (B, S + 1, E)."""

    def forward(self, x_BSE: Tensor) -> Tensor:
        token_B1E = self.weight.expand(len(x_BSE), 1, -1)
        return torch.cat([token_B1E, x_BSE], dim=1)


class LayerNorm(Module):
    """Layer normalisation over the last dim."""

    def __init__(self, layer: layers.LayerNorm, sizes: Sizes) -> None:
        super().__init__(layer, sizes)
        self.eps = layer.eps

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.layer_norm(x.to(wide), weight.shape, weight, bias, self.eps)


class RMSNorm(Module):
    """RMS normalisation over the last dim, in the higher precision of weight and input."""

    def __init__(self, layer: layers.RMSNorm, sizes: Sizes) -> None:
        super().__init__(layer, sizes)
        self.eps = layer.eps

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps)


class Patches(Module):
    """Images (B, C, height, width) to patches (B, S, E), row by row."""

    def forward(self, images: Tensor) -> Tensor:
        x = F.conv2d(images, self.weight, self.bias, stride=self.weight.shape[-1])
        return x.flatten(2).transpose(1, 2)


class Rotary(nn.Module):
    """Cosines and sines of every position's angles; not saved, since they follow from the sizes.

    They are worked out in float64, so that `build(dtype=float64)` rounds nothing.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, layer: layers.Rotary, sizes: Sizes) -> None:
        super().__init__()
        self.dim, self.rows, self.theta, self.stretch = sizes[layer.dim], sizes[layer.rows], layer.theta, layer.stretch
        for name, table in zip(("cos", "sin"), self.tables(), strict=True):
            self.register_buffer(name, table, persistent=False)

    def tables(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return cosines and sines in float64, each (positions, D / 2)."""
        half = torch.arange(0, self.dim, 2, dtype=torch.float64, device=device) / self.dim
        angle = torch.arange(self.rows, dtype=torch.float64, device=device)[:, None] / self.theta**half
        if self.stretch is not None:
            angle = angle * stretched(self.theta**half, self.stretch)
        return angle.cos(), angle.sin()

    def reset(self) -> None:
        """Work the tables out again, where they were made without values and then given memory."""
        for table, worked in zip((self.cos, self.sin), self.tables(self.cos.device), strict=True):
            table.copy_(worked)

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, each (length, D / 2)."""
        return self.cos[:length], self.sin[:length]

    def at(self, places_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of given positions, each (B, 1, S, D / 2)."""
        return self.cos[places_BS][:, None], self.sin[places_BS][:, None]


def stretched(radians: Tensor, stretch: layers.Stretch) -> Tensor:
    """Return how fast, of 1, each pair turns whose wavelength is 2 pi * `radians` (`_compute_llama3_parameters`)."""
    turns = stretch.position / (2 * math.pi * radians)  # over the text of the first training
    kept = ((turns - stretch.low) / (stretch.high - stretch.low)).clamp(0, 1)
    return kept + (1 - kept) / stretch.factor


def rotate(x_BHSD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (d, d + D/2) of a query or key by its position's angle."""
    cos, sin = rotary
    first, second = x_BHSD.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class RelativeBias(Module):
    """T5's position bias (1, H, S, T), made once and shared by all layers of a stack."""

    def __init__(self, layer: layers.RelativeBias, sizes: Sizes) -> None:
        super().__init__(layer, sizes)
        self.buckets, self.distance, self.causal = sizes["bucket"], layer.distance, layer.causal

    def forward(self, length: int) -> Tensor:
        """Return the bias for `length` positions; a causal one hides the later positions itself.

        SDPA takes a mask or `is_causal`, not both.
        """
        position = torch.arange(length, device=self.weight.device)
        offset_ST = position[None, :] - position[:, None]
        bias_STH = F.embedding(self.bucket(offset_ST), self.weight)
        if self.causal:
            bias_STH = bias_STH.masked_fill((offset_ST > 0)[..., None], -torch.inf)
        return bias_STH.permute(2, 0, 1)[None]

    def bucket(self, offset_ST: Tensor) -> Tensor:
        """Return each offset's bucket: exact when near, logarithmic up to `distance`, one for all beyond.

        Float32 as in the published code, whose rounding decides the bucket at the edges.
        """
        count = self.buckets if self.causal else self.buckets // 2
        later = 0 if self.causal else (offset_ST > 0).long() * count
        away = (-offset_ST).clamp(min=0) if self.causal else offset_ST.abs()
        exact = count // 2
        log = (away.clamp(min=1).float() / exact).log() / math.log(self.distance / exact)
        far = (exact + (log * (count - exact)).long()).clamp(max=count - 1)
        return later + torch.where(away < exact, away, far)


class Attention(Module):
    """Scaled dot-product attention; queries (and keys, values of `memory_BTE` if given) from x.

    `mask_BHST` is added to the scores, or (bool) says which of them count; B and H may be 1. It hides later positions
    itself: SDPA takes a mask or `is_causal`, not both.
    """

    def __init__(self, layer: layers.Attention, sizes: Sizes) -> None:
        super().__init__(layer, sizes)
        self.head_dim, self.causal, self.scale = sizes["head_dim"], layer.causal, layer.scale
        self.grouped = layer.group is not None and sizes[layer.group] > 1
        self.normed = layer.qk_norm is not None
        self.dropout = layer.dropout

    def forward(
        self,
        x_BSE: Tensor,
        mask_BHST: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        memory_BTE: Tensor | None = None,
    ) -> Tensor:
        source = x_BSE if memory_BTE is None else memory_BTE
        q_BHSD = self.split(self.query(x_BSE))
        k_BHTD, v_BHTD = self.split(self.key(source)), self.split(self.value(source))
        if self.normed:
            q_BHSD, k_BHTD = self.query_norm(q_BHSD), self.key_norm(k_BHTD)
        if rotary is not None:
            q_BHSD, k_BHTD = rotate(q_BHSD, rotary), rotate(k_BHTD, rotary)
        if mask_BHST is not None and mask_BHST.is_floating_point():
            mask_BHST = mask_BHST.to(v_BHTD.dtype)
        y_BHSD = F.scaled_dot_product_attention(
            q_BHSD.to(v_BHTD.dtype),  # norms and rotations leave autocast's low precision
            k_BHTD.to(v_BHTD.dtype),
            v_BHTD,
            attn_mask=mask_BHST,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and mask_BHST is None,
            scale=self.scale,
            enable_gqa=self.grouped,
        )
        return self.output(y_BHSD.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """Split the heads: (B, S, H * D) -> (B, H, S, D)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MLP(Module):
    """The feed-forward branch, plain or gated."""

    def __init__(self, layer: layers.MLP, sizes: Sizes) -> None:
        super().__init__(layer, sizes)
        self.activation, self.gated = ACTIVATIONS[layer.activation], layer.gated

    def forward(self, x_BSE: Tensor) -> Tensor:
        if self.gated:
            return self.down(self.dropout(self.activation(self.gate(x_BSE)) * self.up(x_BSE)))
        return self.down(self.dropout(self.activation(self.up(x_BSE))))


class Transform(Module):
    """Projection, activation and norm in front of a tied head."""

    def __init__(self, layer: layers.Transform, sizes: Sizes) -> None:
        super().__init__(layer, sizes)
        self.activation = ACTIVATIONS[layer.activation]

    def forward(self, x_BME: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x_BME)))


class Computed(NamedTuple):
    """Which rows of a batch go through a block, None for all, and the factor on what its branches add to them.

    The other rows leave the block out: layer dropout, which spares their computation. The factor is one over the
    probability of going through, as in stochastic depth.
    """

    rows: Tensor | None
    scale: float


def _rows(rows: Tensor, batch: int, given_B: Tensor | None) -> Tensor | None:
    """Return the rows of what has one for each sample; what all samples share stays."""
    return given_B if given_B is None or len(given_B) != batch else given_B[rows]


class Block(Module):
    """Attention, cross-attention when there is a memory, and MLP, each as a residual branch.

    With `recompute` nothing inside is stored for the backward pass, which computes the block again (activation
    checkpointing, Chen et al. 2016, arXiv 1604.06174). In training, `computed` says which rows go through.
    """

    def __init__(self, layer: layers.Block, sizes: Sizes) -> None:
        super().__init__(layer, sizes)
        self.post, self.recompute = layer.post, False
        self.computed: Computed | None = None

    def forward(
        self,
        x_BSE: Tensor,
        mask_BHST: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        memory_BTE: Tensor | None = None,
        memory_mask_B1ST: Tensor | None = None,
    ) -> Tensor:
        if not self.training or self.computed is None or (rows := self.computed.rows) is None:
            return self.through(x_BSE, mask_BHST, rotary, memory_BTE, memory_mask_B1ST)
        if len(rows) == 0:
            # Kernels need not take an empty batch; but every process owes a gradient for every parameter.
            return x_BSE + 0 * sum(parameter.sum() for parameter in self.parameters())
        kept = partial(_rows, rows, len(x_BSE))
        turned = rotary if rotary is None or rotary[0].ndim == 2 else (rotary[0][rows], rotary[1][rows])
        some = self.through(x_BSE[rows], kept(mask_BHST), turned, kept(memory_BTE), kept(memory_mask_B1ST))
        return x_BSE.to(some.dtype).index_copy(0, rows, some)

    def through(self, *given: Any) -> Tensor:
        """Return what the block makes of x, all rows of it; takes what `branches` does."""
        if not (self.recompute and torch.is_grad_enabled()):
            return self.branches(*given)
        again: Tensor = checkpoint(self.branches, *given, use_reentrant=False)
        return again

    def branches(
        self,
        x_BSE: Tensor,
        mask_BHST: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
        memory_BTE: Tensor | None,
        memory_mask_B1ST: Tensor | None,
    ) -> Tensor:
        """Return x with all branches added."""
        x_BSE = self.add(self.attention_norm, partial(self.attention, mask_BHST=mask_BHST, rotary=rotary), x_BSE)
        if memory_BTE is not None:
            cross = partial(self.cross, mask_BHST=memory_mask_B1ST, memory_BTE=memory_BTE)
            x_BSE = self.add(self.cross_norm, cross, x_BSE)
        return self.add(self.mlp_norm, self.mlp, x_BSE)

    def add(self, norm: nn.Module, branch: Callable[[Tensor], Tensor], x_BSE: Tensor) -> Tensor:
        """Return x with a branch added, normed before it or after."""
        added_BSE = self.drop_path(self.dropout(branch(x_BSE if self.post else norm(x_BSE))))
        if self.training and self.computed is not None:
            added_BSE = added_BSE * self.computed.scale
        return norm(x_BSE + added_BSE) if self.post else x_BSE + added_BSE


def stack(layer: layers.Stack, sizes: Sizes) -> nn.ModuleList:
    """Return the blocks of a stack, outermost first: what FSDP wraps and the trainer compiles one by one."""
    count = sizes[layer.axis]
    return nn.ModuleList(module(layer.at(index, count), sizes) for index in range(count))


COMPUTES: dict[type[layers.Layer], Callable[[Any, Sizes], nn.Module]] = {
    layers.Linear: Linear,
    layers.Embedding: Embedding,
    layers.Dropout: Dropout,
    layers.DropPath: DropPath,
    layers.Vector: Vector,
    layers.Prefix: Prefix,
    layers.LayerNorm: LayerNorm,
    layers.RMSNorm: RMSNorm,
    layers.Patches: Patches,
    layers.Rotary: Rotary,
    layers.RelativeBias: RelativeBias,
    layers.Attention: Attention,
    layers.MLP: MLP,
    layers.Transform: Transform,
    layers.Block: Block,
    layers.Stack: stack,
}


def module(layer: layers.Layer, sizes: Sizes) -> nn.Module:
    """Return the torch module of a declared layer, values unset; KeyError for a layer that has none."""
    return COMPUTES[type(layer)](layer, sizes)
