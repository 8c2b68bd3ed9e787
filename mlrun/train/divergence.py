"""A gradient that is not finite: the run stops before it saves anything broken, or leaves the step out."""

from __future__ import annotations

import torch
from torch import Tensor

# With `skip`: more bad steps than this in a row are no accident.
MOST_SKIPPED = 20


class Diverged(Exception):
    """The loss is no longer a finite number."""


class Guard:
    """Watches the norm of the gradient, step by step; `policy` is stop or skip."""

    def __init__(self, policy: str, device: torch.device) -> None:
        self._skips = policy == "skip"
        self._broken = torch.zeros((), dtype=torch.bool, device=device)
        self._in_a_row = 0

    def leaves_out(self, norm: Tensor, step: int) -> bool:
        """Take the norm of a step's gradient; return whether that step must not be made.

        Looking at it makes the processor wait for the device, so only `skip` does so at every step.

        Raises:
            Diverged: too many steps in a row were left out.
        """
        if not self._skips:
            self._broken |= ~norm.isfinite()
            return False
        bad = not bool(norm.isfinite())
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if self._in_a_row > MOST_SKIPPED:
            raise Diverged(f"{self._in_a_row} steps in a row were skipped, the last one at step {step}")
        return bad

    def check(self, step: int) -> None:
        """Raise Diverged if a step up to this one had no finite gradient; called before anything is saved."""
        if self._broken:
            raise Diverged(f"the gradient was not finite at step {step} or shortly before")
