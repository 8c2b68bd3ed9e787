"""Seconds by purpose: training, transfer, evaluation, checkpoint, startup; each moment belongs to exactly one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PURPOSES = ("startup", "training", "transfer", "evaluation", "checkpoint")


class Clock:
    """Runs from its creation, in `startup`. `settle` waits for the device, so that queued work is charged rightly."""

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        self.totals = dict.fromkeys(PURPOSES, 0.0)
        self._purpose = "startup"
        self._since = time.perf_counter()
        self._settle = settle

    @classmethod
    def of(cls, device: torch.device) -> Clock:
        """Return a clock that waits for a device."""
        import torch

        return cls(torch.cuda.synchronize if device.type == "cuda" else (lambda: None))

    def read(self) -> dict[str, float]:
        """Return the seconds per purpose until now."""
        self._settle()
        now = time.perf_counter()
        self.totals[self._purpose] += now - self._since
        self._since = now
        return dict(self.totals)

    def switch(self, purpose: str) -> str:
        """Charge what follows to `purpose` and return the purpose before."""
        assert purpose in PURPOSES
        self.read()
        before, self._purpose = self._purpose, purpose
        return before

    @contextmanager
    def during(self, purpose: str) -> Iterator[None]:
        """Charge the block to `purpose`."""
        before = self.switch(purpose)
        try:
            yield
        finally:
            self.switch(before)
