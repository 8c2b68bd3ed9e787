"""How large each layer's gradient, weights and activations are, and its attention logits: so that a jump that goes
wrong can be understood. It looks at one held-out batch and changes nothing of the training."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mlrun.config.settings import Hardware
from mlrun.models.axes import expand
from mlrun.models.modules import Attention
from mlrun.models.network import Network, blocks
from mlrun.train.loop import Batch, autocast
from mlrun.train.parallel.placement import local
from mlrun.train.parallel.processes import Ranks


def look(net: Network, batch: Batch, hardware: Hardware, ranks: Ranks) -> dict[str, Any] | None:
    """Return by layer what one forward and backward pass over a held-out batch shows; nothing is dropped.

    `gradient` and `weight` are L2 norms over the tensors of a layer, `gain` the root mean square of the gains of its
    norm that has the smallest (near 0, what reads it is dead: nothing goes in, and so no gradient comes back),
    `activation` the root mean square of what a block gives to the next, `logit` the largest attention score before the
    softmax (scaled, with its bias; hidden positions do not count). Layers without one are left out: frozen ones have no
    gradient. `score_flops` is what working out the scores took beside the two passes.

    Whole models are looked at by the first process alone, the others return None. Of shards every process has the same
    batch, and the squares of all their rows are added up.
    """
    if not (ranks.placement.collective or ranks.first):
        return None
    here = {key: value.to(ranks.device) for key, value in batch.items()}
    seen = _Seen()
    net.eval()
    try:
        with autocast(hardware, ranks.device), seen.watching(net):
            loss = net(here)
        gradients = _gradients(net, loss, ranks)
    finally:
        ranks.placement.reshard(net.train())
    weights = dict(net.named_parameters())
    found = {"gradient": _norms(gradients, ranks), "weight": _norms(weights, ranks), "gain": _gains(net, ranks)}
    found |= {"activation": _numbers(seen.activations), "logit": _numbers(seen.logits)}
    return {**found, "score_flops": seen.flops}


def _gradients(net: Network, loss: Tensor, ranks: Ranks) -> dict[str, Tensor]:
    """Return the gradients by name and leave none behind.

    Of a whole model without its accumulators, which would start DDP's sums; shards have to be summed by theirs, and
    hold their gradients once what the forward pass had gathered is given back.
    """
    found: dict[str, Tensor | None]
    if ranks.placement.collective:
        loss.backward()
        ranks.placement.reshard(net)
        found = {name: p.grad for name, p in net.named_parameters()}
        net.zero_grad()
    else:
        wanted = {name: p for name, p in net.named_parameters() if p.requires_grad}
        found = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values()), allow_unused=True), strict=True))
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def layer(name: str) -> str:
    """Return the layer that a tensor or a module is of: `blocks.0` of `blocks.0.mlp.up.weight`, else its part."""
    place = re.match(r"\w+\.\d+", name)
    return place.group() if place else name.partition(".")[0]


def _gains(net: Network, ranks: Ranks) -> dict[str, float]:
    """Return the least root mean square of the gains of a layer's norms: what is declared to begin at 1."""
    declared, sizes = dict(expand(net.model.params(), net.model.sizes())), net.model.sizes()
    gains = {name: p for name, p in net.named_parameters() if (declared[name].mean, declared[name].std) == (1.0, 0.0)}
    found: dict[str, float] = {}
    for name, norm in _norms(gains, ranks, by=str).items():
        size = norm / math.sqrt(declared[name].count(sizes))
        found[layer(name)] = min(size, found.get(layer(name), size))
    return found


@torch.no_grad()
def _norms(tensors: Mapping[str, Tensor], ranks: Ranks, by: Callable[[str], str] = layer) -> dict[str, float]:
    """Return the L2 norm over all tensors of each layer; of shards with the rows of all processes."""
    squares: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = local(tensor.detach()).double().square().sum()
        squares[by(name)] = squares.get(by(name), torch.zeros_like(own)) + own
    if not squares:
        return {}
    sums = torch.stack(list(squares.values()))
    total = ranks.sum(sums) if ranks.placement.collective else sums
    return {name: math.sqrt(value) for name, value in zip(squares, total.tolist(), strict=True)}


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


@dataclass
class _Seen:
    """What a forward pass shows on its way, by layer."""

    activations: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    flops: int = 0
    inside: str = ""  # the layer whose attention is being computed

    @contextmanager
    def watching(self, net: Network) -> Iterator[None]:
        """Watch a forward pass. Compiled blocks run as they are written meanwhile: compiled code calls nobody."""
        with ExitStack() as stack:
            for block in blocks(net):
                if (compiled := block.__dict__.pop("forward", None)) is not None:
                    stack.callback(block.__dict__.__setitem__, "forward", compiled)
            names = {module: layer(name) for name, module in net.named_modules()}
            for attention in (module for module in names if isinstance(module, Attention)):
                hook = attention.register_forward_pre_hook(lambda module, _: self._enter(names[module]))
                stack.callback(hook.remove)
            for block in blocks(net):
                hook = block.register_forward_hook(lambda module, _, out: self._leave(names[module], out))
                stack.callback(hook.remove)
            stack.enter_context(_Scores(self))
            yield

    def _enter(self, name: str) -> None:
        self.inside = name

    def _leave(self, name: str, out_BSE: Tensor) -> None:
        self.activations[name] = out_BSE.detach().float().square().mean().sqrt()

    @torch.no_grad()
    def attention(self, q_BHSD: Tensor, k_BGTD: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> None:
        """Keep the largest score of one attention; a sample at a time, as the scores of a batch need much memory."""
        k_BHTD = k_BGTD.repeat_interleave(q_BHSD.shape[1] // k_BGTD.shape[1], dim=1)
        factor = q_BHSD.shape[-1] ** -0.5 if scale is None else scale
        largest = [
            _scores(q, k, None if mask is None else mask[row % len(mask)], causal, factor).max()
            for row, (q, k) in enumerate(zip(q_BHSD, k_BHTD, strict=True))
        ]
        found = torch.stack(largest).max()
        known = self.logits.get(self.inside)
        self.logits[self.inside] = found if known is None else torch.maximum(known, found)
        self.flops += 2 * q_BHSD.numel() * k_BHTD.shape[2]


def _scores(q_HSD: Tensor, k_HTD: Tensor, mask: Tensor | None, causal: bool, factor: float) -> Tensor:
    """Return the scores (H, S, T) of one sample in float32; -inf where a position is hidden."""
    scores = q_HSD.float() @ k_HTD.float().transpose(-1, -2) * factor
    if causal:
        shown = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~shown, -torch.inf)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()


class _Scores(TorchFunctionMode):
    """Shows what goes into each fused attention, which keeps its scores to itself."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self._seen.attention(args[0], args[1], given["attn_mask"], given["is_causal"], given["scale"])
        return func(*args, **given)
