"""Runs of the toy that die at a step as if killed, and must end as the one that nothing happened to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make the run die before its `at`-th optimizer step, as if killed: nothing is cleaned up."""
    taken = 0
    real = torch.optim.AdamW.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == at:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


def die(folder: Path, config: toy.Config, at: int) -> None:
    """Run, or go on, until the run dies before its `at`-th optimizer step."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(KeyboardInterrupt):
            toy.run(folder, config)


def same_end(a: Path, b: Path) -> None:
    """Check that two runs have the same log, timings and starts aside, and the same model to the last byte."""
    assert toy.records(a) == toy.records(b)
    assert (a / "model/model.safetensors").read_bytes() == (b / "model/model.safetensors").read_bytes()


def a_kill_changes_nothing(folder: Path, at: int, made: Callable[[], toy.Config]) -> None:
    """Check that a run killed at its batch `at`, and started again from another state of torch's, is the whole one."""
    toy.run(folder / "whole", made())
    die(folder / "killed", made(), at)
    torch.rand(at)
    toy.run(folder / "killed", made())
    same_end(folder / "killed", folder / "whole")
