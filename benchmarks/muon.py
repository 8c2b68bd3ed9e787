"""A step of Muon over the hidden matrices of some models, ours and torch's in turn, in processor milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.table import table
from mlrun.models.axes import repeated
from mlrun.models.gpt import GPT
from mlrun.train.optimizers.orthogonal import Orthogonal

# Width, heads and layers; a position table and a vocabulary do not matter here.
MODELS = ((48, 4, 8), (96, 4, 8), (256, 4, 6), (768, 12, 2))
TIMES = 7


def matrices(width: int, heads: int, layers: int) -> list[torch.nn.Parameter]:
    """Return the hidden matrices of a GPT with a gradient each."""
    model = GPT(1024, 128, width, heads, width // heads, 4 * width, layers)
    shapes = [
        param.shape(model.sizes())
        for param, times in repeated(model.params(), model.sizes())
        if param.hidden
        for _ in range(times)
    ]
    found = [torch.nn.Parameter(torch.randn(*shape)) for shape in shapes]
    for one in found:
        one.grad = torch.randn_like(one)
    return found


def measure(width: int, heads: int, layers: int) -> tuple[float, float]:
    """Return the medians of ours and torch's; one after the other, so that both meet the same machine."""
    ours = Orthogonal(matrices(width, heads, layers), 1e-3, 0.1, 0.95, True, 5)
    theirs = torch.optim.Muon(matrices(width, heads, layers), 1e-3, adjust_lr_fn="match_rms_adamw")
    taken = [(_ms(ours.step), _ms(theirs.step)) for _ in range(1 + TIMES)][1:]
    return median(mine for mine, _ in taken), median(other for _, other in taken)


def _ms(step: Callable[[], object]) -> float:
    begun = time.process_time()
    step()
    return 1000 * (time.process_time() - begun)


def main() -> str:
    """Return the table."""
    torch.set_num_threads(1)
    rows = []
    for width, heads, layers in MODELS:
        ours, theirs = measure(width, heads, layers)
        rows.append([f"{width} x {layers}", f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.2f}"])
    return table(["hidden matrices", "ours: ms", "torch.optim.Muon: ms", "torch / ours"], rows)
