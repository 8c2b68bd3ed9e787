"""Layer dropout that fades: how many samples leave each block out at each step, and what that spares. Pure maths.

Block l of L is left out at the rate `rate * l / (L - 1) * (1 - t / T)` at step t of a schedule of T steps ("Don't Drop
Dropout", ICML 2026, arXiv 2609.05275). The paper draws each sample by itself. Here the number of samples of a step is
the rate's share of the batch, rounded so that the sum over the steps is within one sample of what the rates add up to:
the cost of a run is known before it starts. Where the rounding begins is drawn from the seed, and so is which samples
they are: each has the rate as its probability.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from mlrun.models.layers import Stack
from mlrun.models.seeds import SEEDS, seed_of


@dataclass(frozen=True)
class Fade:
    """The blocks of one stage, in their order, and the schedule that their rates follow.

    rates: at the schedule's first step.
    spared: FLOPs of a training step that one sample spares by leaving the block out.
    phases: where the rounding begins, in [0, 1).
    batch: samples of a step.
    first, span: the step of the trunk at which the schedule begins, and its length T.
    """

    rates: tuple[float, ...]
    spared: tuple[int, ...]
    phases: tuple[float, ...]
    batch: int
    first: int = 0
    span: int = 1

    def over(self, first: int, span: int) -> Self:
        """Return the same over another schedule."""
        return replace(self, first=first, span=span)

    def rate(self, block: int, step: int) -> float:
        """Return the share of the samples that leave a block out at a step of the trunk, in the mean."""
        return self.rates[block] * (1 - (step - self.first) / self.span)

    def counts(self, step: int) -> tuple[int, ...]:
        """Return how many samples of a step leave each block out."""
        return tuple(self._before(block, step + 1) - self._before(block, step) for block in range(len(self.rates)))

    def spares(self, start: int, end: int) -> int:
        """Return the FLOPs that the steps from `start` to before `end` spare; a schedule may have none."""
        if start == end:
            return 0
        return sum(
            flops * (self._before(block, end) - self._before(block, start)) for block, flops in enumerate(self.spared)
        )

    @property
    def most(self) -> float:
        """FLOPs that one sample spares at the schedule's first step, in the mean."""
        return sum(rate * flops for rate, flops in zip(self.rates, self.spared, strict=True))

    def _before(self, block: int, step: int) -> int:
        """Return how many samples leave a block out in all steps of the schedule before this one."""
        t = step - self.first
        return int(self.batch * self.rates[block] * (t - t * (t - 1) / (2 * self.span)) + self.phases[block])


def fading(model: Any, rate: float, sequence: int, targets: int, batch: int, *seed: int) -> Fade:
    """Return the blocks of a model at the rate of the last one; T is to follow (`Fade.over`).

    `seed` are the numbers that the phases are drawn from.
    """
    flops, sizes, rates, spared = model.block_flops(sequence, targets), model.sizes(), [], []
    for name, part in model.parts().items():
        if isinstance(part, Stack):
            count = sizes[part.axis]
            rates += [part.rate(rate, index, count) for index in range(count)]
            spared += [flops[name]] * count
    phases = tuple(seed_of("layer dropout", *seed, block) / SEEDS for block in range(len(rates)))
    return Fade(tuple(rates), tuple(spared), phases, batch)
