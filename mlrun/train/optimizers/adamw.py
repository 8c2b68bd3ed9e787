"""Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mlrun.config.settings import Hardware
from mlrun.errors import mistakes
from mlrun.models.axes import Rule
from mlrun.models.parametrization import COMPLETEP, STANDARD
from mlrun.train.optimizers.base import POSITIVE, SHARE, Optimizer

if TYPE_CHECKING:
    import torch

    from mlrun.train.optimizers.base import Declared


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """`beta1` and `beta2` are the decay rates of the moments; only tensors of two or more dims decay.

    A tensor's factor on the rate is taken back from its decay, so that all shrink alike (arXiv 2505.01618, table 1).
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1

    state: ClassVar[Mapping[str, Rule]] = {"exp_avg": "gradient", "exp_avg_sq": "square"}
    counted = "exp_avg"
    parametrizations: ClassVar[Sequence[str]] = (STANDARD, COMPLETEP)

    def build(self, tensors: Declared) -> list[torch.optim.Optimizer]:
        import torch

        alike: dict[tuple[bool, float, float], list[torch.nn.Parameter]] = {}
        for param, p in tensors:
            alike.setdefault((len(param.dims) >= 2, self.rate(param), param.eps), []).append(p)
        groups = [
            {"params": found, "rate": rate, "eps": self.eps * eps, "weight_decay": decays * self.weight_decay / rate}
            for (decays, rate, eps), found in alike.items()
        ]
        betas = (self.beta1, self.beta2)
        return [torch.optim.AdamW(groups, lr=self.lr, betas=betas, fused=True)]

    def problems(self, hardware: Hardware) -> list[str]:
        decay = self.weight_decay
        checks = [
            ("beta1", self.beta1, 0 <= self.beta1 < 1, SHARE),
            ("beta2", self.beta2, 0 <= self.beta2 < 1, SHARE),
            ("eps", self.eps, 0 < self.eps < math.inf, POSITIVE),
            ("weight_decay", decay, 0 <= decay < math.inf, "a finite number of at least 0"),
        ]
        return super().problems(hardware) + mistakes("optimizer.", checks)
