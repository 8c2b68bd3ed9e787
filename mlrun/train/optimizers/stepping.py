"""An optimizer at work on one network: torch's optimizers used as one, and their state by the parameters' names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mlrun.errors import UserError, mistake
from mlrun.models.axes import expand
from mlrun.models.network import Network
from mlrun.own import ours
from mlrun.train.counted import too_little
from mlrun.train.optimizers.base import Optimizer
from mlrun.train.parallel.placement import like
from mlrun.train.snapshot import STEP
from mlrun.units import human


class Stepping:
    """Moves the parameters of a network; `optimizer` says how."""

    def __init__(self, optimizer: Optimizer, net: Network) -> None:
        self.optimizer = optimizer
        self.named, self._model = dict(net.named_parameters()), net.model
        declared = dict(expand(net.model.params(), net.model.sizes()))
        self.parts = optimizer.build([(declared[name], p) for name, p in self.named.items()])
        self._part = self._shared_out()
        self._looked = False

    def set_rate(self, lr: float) -> None:
        """Set the learning rate of every parameter, times its group's factor."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * group.get("rate", 1.0)

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        if not self._looked and not ours(type(self.optimizer)):
            self._count()
        else:
            self._move()
        if not self._looked:
            self._look()

    def _move(self) -> None:
        for part in self.parts:
            part.step()

    def _count(self) -> None:
        """Move once; UserError where that multiplies more matrices than an optimizer of one's own declares."""
        with FlopCounterMode(display=False) as counter:
            self._move()
        found, declared = counter.get_total_flops(), self.optimizer.update_flops(self._model)
        if found > declared:
            given = f"{human(declared)}FLOPs from {type(self.optimizer).__name__}.update_flops"
            raise UserError(too_little("optimizer", given, found))

    def _shared_out(self) -> dict[Tensor, torch.optim.Optimizer]:
        """Return which of torch's optimizers moves each parameter; UserError unless each is in exactly one."""
        lists = isinstance(self.parts, list) and all(isinstance(one, torch.optim.Optimizer) for one in self.parts)
        groups = [(p, part) for part in self.parts for g in part.param_groups for p in g["params"]] if lists else []
        found = dict(groups)
        if len(found) < len(groups) or found.keys() != set(self.named.values()):
            missing = [name for name, p in self.named.items() if p not in found]
            given = f"{type(self.optimizer).__name__}.build"
            allowed = "a list of torch optimizers, each tensor in one of them"
            remedy = f"{missing[0] if missing else 'a tensor'} is {'in none' if missing else 'in two'}"
            raise UserError(mistake("optimizer", given, allowed, remedy))
        return found

    def _look(self) -> None:
        """Raise UserError for state that is kept but not declared: no checkpoint and no transfer would have it."""
        kept = {kind for p in self.named.values() for kind in self._part[p].state.get(p, ())}
        if surplus := sorted(kept - {*self.optimizer.state, STEP}):
            given, known = type(self.optimizer).__name__, ", ".join(self.optimizer.state) or "nothing"
            remedy = f"declare {surplus[0]} in its `state`, or do not keep it"
            raise UserError(mistake("optimizer", given, f"to keep {known}, as it declares", remedy))
        self._looked = True

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
