"""An optimizer at work on one network: torch's optimizers used as one, and their state by the parameters' names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mlrun.models.axes import expand
from mlrun.models.network import Network
from mlrun.train.optimizers.base import Optimizer
from mlrun.train.parallel.placement import like
from mlrun.train.snapshot import STEP


class Stepping:
    """Moves the parameters of a network; `optimizer` says how."""

    def __init__(self, optimizer: Optimizer, net: Network) -> None:
        self.optimizer = optimizer
        self.named = dict(net.named_parameters())
        declared = dict(expand(net.model.params(), net.model.sizes()))
        self.parts = optimizer.build([(declared[name], p) for name, p in self.named.items()])
        self._part = {p: part for part in self.parts for group in part.param_groups for p in group["params"]}

    def set_rate(self, lr: float) -> None:
        """Set the learning rate of every parameter, times its group's factor."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * group.get("rate", 1.0)

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, dict[str, Tensor]], int]:
        """Return ({kind: {parameter name: tensor}}, steps taken); empty before the first step.

        Parameters that never had a gradient are left out. Where some had fewer than others (layers that learn in
        turn) the kind `step` holds each one's count.
        """
        states = {name: self._part[p].state[p] for name, p in self.named.items() if p in self._part[p].state}
        counts = {name: int(s[STEP].item()) for name, s in states.items() if STEP in s}
        kinds = (*self.optimizer.state, STEP) if len(set(counts.values())) > 1 else tuple(self.optimizer.state)
        tensors = {kind: {name: s[kind] for name, s in states.items() if kind in s} for kind in kinds}
        return {kind: named for kind, named in tensors.items() if named}, max(counts.values(), default=0)

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], taken: int) -> None:
        """Go on from what `state` returned, copied to where, and as, the parameters are held."""
        for name, p in self.named.items():
            kinds = [kind for kind in self.optimizer.state if name in tensors.get(kind, {})]
            state = {kind: like(p, tensors[kind][name]) for kind in kinds}
            if self.optimizer.counted in state:
                count = float(tensors[STEP][name] if STEP in tensors else taken)
                state[STEP] = torch.tensor(count, device=p.device)
            if state:
                self._part[p].state[p] = state
