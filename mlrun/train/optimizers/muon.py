"""Muon: hidden matrices move along their orthogonalised momentum (Jordan et al. 2024), all else by AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mlrun.config.settings import Hardware
from mlrun.errors import mistake, mistakes
from mlrun.models.axes import Param, Rule, repeated
from mlrun.train.optimizers.adamw import AdamW
from mlrun.train.optimizers.base import SHARE

if TYPE_CHECKING:
    import torch

    from mlrun.models.base import Model
    from mlrun.train.optimizers.base import Declared

# As many as torch.optim.Muon takes.
MOST_STEPS = 99


@dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Steps have the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that its rate and decay serve both.

    momentum: the decay rate of the averaged gradient; `nesterov` looks one step ahead.
    ns_steps: iterations of Newton and Schulz, which orthogonalise it.

    AdamW's own settings are for tables, heads and vectors; the decay is for all.
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5

    whole_matrices = True

    state: ClassVar[Mapping[str, Rule]] = {"momentum_buffer": "gradient", **AdamW.state}

    def build(self, tensors: Declared) -> list[torch.optim.Optimizer]:
        from mlrun.train.optimizers.orthogonal import Orthogonal

        rest = super().build([(param, p) for param, p in tensors if not param.hidden])
        hidden: dict[float, list[torch.nn.Parameter]] = {}
        for param, p in tensors:
            if param.hidden:
                hidden.setdefault(self.rate(param), []).append(p)
        if not hidden:  # a level without layers
            return rest
        groups = [
            {"params": found, "rate": rate, "weight_decay": self.weight_decay / rate} for rate, found in hidden.items()
        ]
        return [Orthogonal(groups, self.lr, self.weight_decay, self.momentum, self.nesterov, self.ns_steps), *rest]

    def rate(self, param: Param) -> float:
        return param.orthogonal if param.hidden else param.rate

    def kinds(self, param: Param) -> Sequence[str]:
        return ("momentum_buffer",) if param.hidden else tuple(AdamW.state)

    def update_flops(self, model: Model) -> int:
        """Return the FLOPs of Newton and Schulz: per iteration of an m x n matrix, m <= n, 4 m^2 n + 2 m^3."""
        sizes, found = model.sizes(), 0
        for param, tensors in repeated(model.params(), sizes):
            if param.hidden:
                m, n = sorted(param.shape(sizes))
                found += tensors * self.ns_steps * (4 * m * m * n + 2 * m**3)
        return found

    def problems(self, hardware: Hardware) -> list[str]:
        checks = [
            ("momentum", self.momentum, 0 <= self.momentum < 1, SHARE),
            ("ns_steps", self.ns_steps, 1 <= self.ns_steps <= MOST_STEPS, f"an integer from 1 to {MOST_STEPS}"),
        ]
        found = super().problems(hardware) + mistakes("optimizer.", checks)
        if hardware.sharding != "none":
            remedy = "muon orthogonalises whole matrices, of which a process holds some rows: choose optimizer=adamw"
            found.append(mistake("hardware.sharding", hardware.sharding, "none", remedy))
        return found
