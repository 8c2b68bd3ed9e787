"""How many samples a forward pass takes at a time (`hardware.micro_batch`), where the memory of a GPU may run out.

With `auto` it is the whole share of the batch, halved for as long as memory runs out, at each level by itself. A step
that ran out is taken again from its start: nothing but gradients had been made. Several processes halve together. So
that none waits for one that failed, they first try the pass by themselves, in the first steps of a level.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mlrun.config.settings import Hardware
from mlrun.errors import UserError, mistake
from mlrun.train.parallel.processes import Ranks

# Steps of a level before which several processes try: the optimizer's state is there from the second on.
TRIALS = 3
KEY = "hardware.micro_batch"


def fixed(hardware: Hardware) -> int | None:
    """Return the micro-batch that was given as a number; None is the whole share."""
    return hardware.micro_batch if isinstance(hardware.micro_batch, int) else None


@dataclass(frozen=True)
class Pass:
    """What may run out of memory, by its micro-batch: the gradients of one step of a level.

    attempt: makes them and returns the loss. trial: makes those of one micro-batch, alone, and keeps nothing.
    forget: drops what an attempt that failed has left. halved: is told of a smaller micro-batch.
    """

    level: int
    rows: int
    attempt: Callable[[int], Tensor]
    trial: Callable[[int], object]
    forget: Callable[[], None]
    halved: Callable[[int], None]


@dataclass
class Fit:
    """The micro-batches of one run; `sizes` are those of the levels at which memory ran out."""

    hardware: Hardware
    ranks: Ranks
    sizes: dict[int, int] = field(default_factory=dict)
    _tried: dict[int, int] = field(default_factory=dict)

    def size(self, level: int, rows: int) -> int:
        """Return the samples of one forward pass, of so many rows of a batch."""
        return min(self.sizes.get(level) or fixed(self.hardware) or rows, rows)

    def gradients(self, step: Pass) -> Tensor:
        """Return the loss of a step whose gradients were made with a micro-batch that fits.

        Raises:
            UserError: memory ran out, and the micro-batch was given or cannot be halved; the line says which fits.
        """
        before = self.sizes.get(step.level)
        if self._together:
            self._agree(step)
        while True:
            size = self.size(step.level, step.rows)
            try:
                loss = step.attempt(size)
            except torch.OutOfMemoryError:
                pass  # what failed is freed only once this block is left
            else:
                if self.sizes.get(step.level) != before:
                    step.halved(size)
                return loss
            self._free(step)
            if not self._halves or self.ranks.world > 1:
                raise UserError(self._line(step, size))
            self._halve(step)

    @property
    def _halves(self) -> bool:
        return self.hardware.micro_batch == "auto" and not self.ranks.placement.collective

    @property
    def _together(self) -> bool:
        return self._halves and self.ranks.world > 1

    def _agree(self, step: Pass) -> None:
        """Halve on all processes until the pass fits on each; in the first steps of a level."""
        tried = self._tried.get(step.level, 0)
        if tried >= TRIALS:
            return
        self._tried[step.level] = tried + 1
        while self.ranks.most(int(not self._fits(step, self.size(step.level, step.rows)))):
            self._halve(step)

    def _fits(self, step: Pass, size: int) -> bool:
        try:
            step.trial(size)
        except torch.OutOfMemoryError:
            pass
        else:
            return True
        self._free(step)
        return False

    def _free(self, step: Pass) -> None:
        step.forget()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def _halve(self, step: Pass) -> None:
        size = self.size(step.level, step.rows)
        if size == 1:
            raise UserError(self._line(step, size))
        self.sizes[step.level] = halved(size, step.rows)

    def _line(self, step: Pass, size: int) -> str:
        """Return what fits, found by trying; shards are passed around meanwhile, so that one process cannot try."""
        remedy = "the memory of the GPU ran out: give less"
        if self.ranks.placement.collective:
            return mistake(KEY, size, f"less than {size}", f"{remedy}, such as {halved(size, step.rows)}")
        smaller = size
        while smaller > 1:
            smaller = halved(smaller, step.rows)
            if self._fits(step, smaller):
                return mistake(KEY, size, f"at most {smaller}, which fits", f"{remedy}, or auto, which halves it")
        return mistake(KEY, size, "what fits", "not one sample does: hardware.activation_checkpointing=true, or fsdp")


def halved(size: int, rows: int) -> int:
    """Return the largest divisor of `rows` that is at most half of a micro-batch, and at least 1."""
    return next(smaller for smaller in range(max(1, size // 2), 0, -1) if rows % smaller == 0)


def logged(log: Path) -> dict[int, int]:
    """Return the micro-batch of each level at which memory ran out, as the run's log says."""
    with open(log) as lines:
        records = [json.loads(line) for line in lines if '"micro_batch"' in line]
    return {r["level"]: r["samples"] for r in records if r["kind"] == "micro_batch"}
