"""From memory to the device: on a GPU beside its work, on a stream that does nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor


def moved(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return a batch on the device; a GPU waits for it before what is asked of it next, the processor does not.

    Copies from pinned memory only are made beside the work; torch keeps that memory until they are done.
    """
    if device.type != "cuda":
        return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    computing, copying = torch.cuda.current_stream(device), _copying(device)
    with torch.cuda.stream(copying):
        there = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    computing.wait_stream(copying)
    for tensor in there.values():
        tensor.record_stream(computing)
    return there


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
