"""The FLOPs that torch counts of a model of one's own, beside those that it declares: savings are made of the latter.

Ours are held by tests. Of another one sample goes forward and backward at each level before a run begins, as shapes
alone (device `meta`), so it takes no memory and next to no time. Torch counts matrix products and attention, as we do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlrun.errors import UserError, mistake
from mlrun.models.network import build
from mlrun.own import ours
from mlrun.plan.stages import Level
from mlrun.units import human

# What a declared cost may lack: rounding, a bias here and there.
SLACK = 0.01


def notes(levels: Sequence[Level], sample: Callable[[], Mapping[str, Tensor]]) -> list[str]:
    """Return what is to be known of the costs that a model of one's own declares; nothing of ours.

    Args:
        sample: one of the data's held-out samples, as a batch.

    Raises:
        UserError: a level costs more than it declares, which would flatter everything that trains there.
    """
    if ours(type(levels[0].model)):
        return []
    batch, problems, said = sample(), [], []
    for level in levels:
        key, name = f"model (level {level.number})", type(level.model).__name__
        try:
            found = count(level.model, batch)
        except (NotImplementedError, RuntimeError) as error:  # a part that needs values, or that has no shapes alone
            reason = str(error).partition("\n")[0]
            said.append(f"{key}: torch cannot count {name} ({reason}); its costs are what {name}.flops says")
            continue
        told = f"{human(level.flops.total)}FLOPs a sample from {name}.flops"
        if level.flops.total < (1 - SLACK) * found:
            problems.append(too_little(key, told, found))
        elif level.flops.total > (1 + SLACK) * found:
            said.append(f"{key}: {told} are more than the {human(found)} that torch counts")
    if problems:
        raise UserError(problems)
    return said


def count(model: Any, batch: Mapping[str, Tensor]) -> int:
    """Return the FLOPs that torch counts in a forward and a backward pass of a batch."""
    return passes(build(model, None, device="meta"), batch)


def passes(module: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Return the FLOPs that torch counts in a forward and a backward pass; `module` is on the device meta."""
    shapes = {name: tensor.to("meta") for name, tensor in batch.items()}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        module(shapes).backward()
    return counter.get_total_flops()


def too_little(key: str, told: str, found: float) -> str:
    """Return the line about a cost that is declared as less than torch counts."""
    return mistake(key, told, f"{human(found)}, which torch counts", "correct what it returns: savings are made of it")
