"""BERT-Large down and up again: the operators against the same maths as dense matrix products.

The dense version is the paper's text taken literally, F W T with full F and T, one layer at a time.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from torch import Tensor

from benchmarks.resident import peak
from benchmarks.table import table
from mlrun.models.axes import Factor, Merge, Param, Resize, at_depth, depth_axis, factors
from mlrun.models.bert import BERT
from mlrun.models.network import build
from mlrun.multilevel import operators
from mlrun.multilevel.coarsening.uniform import Uniform

MODEL = BERT(vocab=30522, position=512, token_type=2, embed=1024, head=16, head_dim=64, ffn=4096, layer=24)
HALF = Uniform(width=2, ffn=2, head=2, depth=2)
State = Mapping[str, Tensor]


class Dense:
    """Both operators as products with full matrices, made once per dim."""

    def __init__(self, resize: Resize) -> None:
        self.resize = resize
        self.matrix = cache(self._matrix)

    def coalesce(self, state: State, params: Mapping[str, Param]) -> dict[str, Tensor]:
        """Return the coarse tensors; layers are averaged."""
        coarse = {}
        for template, param in params.items():
            for unit, group in enumerate(self.depth(template).groups):
                layers = [self.multiply(state[at_depth(template, layer)], param, down=True) for layer in group]
                coarse[at_depth(template, unit)] = torch.stack(layers).mean(0)
        return coarse

    def decoalesce(self, state: State, params: Mapping[str, Param]) -> dict[str, Tensor]:
        """Return the fine tensors; layers are copied."""
        fine = {}
        for template, param in params.items():
            for layer, unit in enumerate(self.depth(template).coarse_of):
                fine[at_depth(template, layer)] = self.multiply(state[at_depth(template, unit)], param, down=False)
        return fine

    def depth(self, template: str) -> Merge:
        """Return how layers merge; a tensor without depth is one layer."""
        axis = depth_axis(template)
        return Merge(((0,),)) if axis is None else self.resize.merges[axis]

    def multiply(self, tensor: Tensor, param: Param, down: bool) -> Tensor:
        """Return the tensor with each merged dim multiplied: F W T down, T W F up."""
        for dim, stored in enumerate(param.dims):
            if any(f.role and f.axis in self.resize.merges for f in factors(stored)):
                tensor = (tensor.movedim(dim, -1) @ self.matrix(stored, down)).movedim(-1, dim)
        return tensor.contiguous()

    def _matrix(self, stored: str, down: bool) -> Tensor:
        """Return the matrix that a dim is multiplied with from the right, (from, to)."""
        matrix = torch.ones(1, 1)
        for factor in factors(stored):
            matrix = torch.kron(matrix, self._factor(factor, down).contiguous())
        return matrix

    def _factor(self, factor: Factor, down: bool) -> Tensor:
        merge = self.resize.merges.get(factor.axis)
        if merge is None:
            return torch.eye(self.resize.fine[factor.axis])
        member = torch.nn.functional.one_hot(torch.tensor(merge.coarse_of), merge.coarse).float()
        mean = member / member.sum(0)
        if down:
            return mean if factor.role == "out" else member
        return member.T if factor.role == "out" else mean.T


def ours(resize: Resize) -> tuple[Callable[[State], State], Callable[[State], State]]:
    """Return the two operators."""
    params = MODEL.params()
    return lambda s: operators.coalesce(s, params, resize), lambda s: operators.decoalesce(s, params, resize)


def dense(resize: Resize) -> tuple[Callable[[State], State], Callable[[State], State]]:
    """Return the two dense versions."""
    version, params = Dense(resize), MODEL.params()
    return lambda s: version.coalesce(s, params), lambda s: version.decoalesce(s, params)


VERSIONS = {"operators": ours, "dense": dense}
# Rounds of each version before the other has its turn: the slow one needs fewer for as steady a median.
ROUNDS = {"operators": 3, "dense": 1}


@dataclass(frozen=True)
class Round:
    """Seconds down, up, and of the processor for both (all threads)."""

    down: float
    up: float
    processor: float

    @property
    def both(self) -> float:
        """Seconds down and up."""
        return self.down + self.up


def measure(name: str, rounds: int, threads: int) -> tuple[list[Round], int, float]:
    """Return the rounds, the bytes by which the peak memory rose, and the sum of squares of the last result."""
    torch.set_num_threads(threads)
    state = {key: tensor.detach() for key, tensor in build(MODEL, 0).state_dict().items()}
    before, found, total = peak(), [], 0.0
    for _ in range(rounds):
        down, up = VERSIONS[name](HALF.resize(MODEL.sizes()))
        start, processor = time.perf_counter(), time.process_time()
        coarse = down(state)
        middle = time.perf_counter()
        fine = up(coarse)
        found.append(Round(middle - start, time.perf_counter() - middle, time.process_time() - processor))
        used = peak() - before
        total = sum(float(tensor.norm()) ** 2 for tensor in fine.values())
        del coarse, fine
    return found, used, total


def main(turns: int = 5, threads: int = 2) -> str:
    """Return the table: medians over the rounds, and the dense version's ratio to ours."""
    found: dict[str, list[Round]] = {name: [] for name in VERSIONS}
    used: dict[str, int] = {}
    sums: dict[str, float] = {}
    for _ in range(turns):  # in turns, so that what else the machine does falls on both
        for name, rounds in ROUNDS.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a peak is that of a process's whole life
                measured, used[name], sums[name] = pool.apply(measure, (name, rounds, threads))
            found[name] += measured
    mine, theirs = found["operators"], found["dense"]
    assert abs(sums["operators"] - sums["dense"]) <= 1e-4 * sums["dense"], "the two versions must agree"
    rows = [[name, *cells(found[name], used[name])] for name in VERSIONS]
    head = ["BERT-Large, float32", "down (s)", "up (s)", "both (s)", "fastest (s)", "processor (s)", "peak (GB)"]
    ratios = {
        "median": median(r.both for r in theirs) / median(r.both for r in mine),
        "fastest": min(r.both for r in theirs) / min(r.both for r in mine),
        "processor": median(r.processor for r in theirs) / median(r.processor for r in mine),
    }
    said = ", ".join(f"{ratio:.1f} ({what})" for what, ratio in ratios.items())
    counts = " and ".join(f"{len(found[name])} of {name}" for name in VERSIONS)
    return f"{table(head, rows)}\n\nDense / operators: {said}. Medians of rounds, {counts}, on {threads} threads."


def cells(rounds: list[Round], used: int) -> list[str]:
    """Return a version's cells."""
    figures = [
        median(r.down for r in rounds),
        median(r.up for r in rounds),
        median(r.both for r in rounds),
        min(r.both for r in rounds),
        median(r.processor for r in rounds),
    ]
    return [*(f"{figure:.2f}" for figure in figures), f"{used / 1e9:.2f}"]
