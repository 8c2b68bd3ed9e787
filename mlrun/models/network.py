"""A model's parts as one torch module, and its initial values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlrun.errors import UserError, mistake
from mlrun.models import vocabulary_loss
from mlrun.models.axes import Param, Sizes, expand
from mlrun.models.base import IGNORED, Model
from mlrun.models.modules import Block, module
from mlrun.models.seeds import seed_of
from mlrun.own import kind


class Network(nn.Module):
    """A model's parts as submodules; the model itself says how they are put together."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        for name, part in model.parts().items():
            self.add_module(name, module(part, model.sizes()))

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar loss of a batch, the mean over its labels."""
        return self._checked(self.model.loss(self, batch), "loss")

    def loss_and_logits(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return both of a batch, from one forward pass."""
        told = self.model.loss_and_logits(self, batch)
        if not isinstance(told, tuple) or len(told) != 2:
            raise self._wrong(told, "loss_and_logits", "(loss, logits)")
        return self._checked(told[0], "loss_and_logits"), told[1]

    def _checked(self, loss: Tensor, method: str) -> Tensor:
        """Return a loss; UserError for anything but a scalar, which a model of one's own may return."""
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            raise self._wrong(loss, method, "a scalar tensor as loss")
        return loss

    def _wrong(self, told: object, method: str, allowed: str) -> UserError:
        given = f"a tensor {list(told.shape)}" if isinstance(told, Tensor) else kind(told)
        where = f"{given} from {type(self.model).__name__}.{method}"
        return UserError(mistake("model", where, allowed, "correct what it returns"))

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of a batch; the last dim is vocab or classes."""
        return self.model.forward(self, batch)

    @staticmethod
    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy, at least in float32; 0 if every label is ignored.

        Labels are class indices in the logits' leading shape (IGNORED are left out), or one probability per class.
        """
        logits = logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32))
        if labels.is_floating_point():
            return F.cross_entropy(logits, labels.flatten(0, -2).to(logits.dtype))
        labels = labels.flatten()
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)

    @staticmethod
    def vocabulary_loss(x: Tensor, head: tuple[Tensor, Tensor | None], labels: Tensor) -> Tensor | None:
        """Return the mean cross-entropy of a head's logits without holding them, or None where they are few."""
        x, labels, (weight, bias) = x.flatten(0, -2), labels.flatten(), head
        if not vocabulary_loss.is_wide(x, weight):
            return None
        return vocabulary_loss.total(x, weight, bias, labels) / (labels != IGNORED).sum().clamp(min=1)


def blocks(net: nn.Module) -> list[Block]:
    """Return all blocks of a network, in order."""
    return [module for module in net.modules() if isinstance(module, Block)]


def initial(name: str, param: Param, sizes: Sizes, seed: int) -> Tensor:
    """Return a tensor's starting value, float32 on the CPU.

    It depends on the seed and on the name alone, so it is the same on every device, in every order, at any rank.
    """
    if param.std == 0:
        return torch.full(param.shape(sizes), param.mean)
    generator = torch.Generator().manual_seed(seed_of(seed, name))
    return torch.empty(param.shape(sizes)).normal_(param.mean, param.std, generator=generator)


def initials(model: Model, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, starting value) of every tensor of a model, one at a time."""
    sizes = model.sizes()
    return ((name, initial(name, param, sizes, seed)) for name, param in expand(model.params(), sizes))


def build(
    model: Model,
    seed: int | None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Network:
    """Return the network of a model with fresh weights.

    Seed None leaves the weights NaN, for a state dict to be loaded: what it forgets shows at once.
    On the device `meta` there are shapes only.
    """
    if torch.device(device).type == "meta":
        with torch.device("meta"):
            return Network(model).to(dtype)
    network, sizes = Network(model), model.sizes()
    state = network.state_dict()
    for name, param in expand(model.params(), sizes):
        state[name].copy_(torch.tensor(torch.nan) if seed is None else initial(name, param, sizes, seed))
    return network.to(device=device, dtype=dtype)
