"""The coordinate check of CompleteP (arXiv 2505.01618): how far an optimizer moves activations, over width and depth.

A GPT of each size takes the same few steps on batches of the embedded speeches. Measured are the hidden states behind
the last block, and the logits: the root mean square of their change since the start. A parametrisation whose rates
transfer moves them alike at every size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.receipts import open_data
from benchmarks.table import table
from mlrun.models.base import Model
from mlrun.models.gpt import GPT
from mlrun.models.network import Network, build
from mlrun.train.optimizers.adamw import AdamW
from mlrun.train.optimizers.base import Optimizer
from mlrun.train.optimizers.muon import Muon
from mlrun.train.optimizers.stepping import Stepping

SEQUENCE, BATCH, STEPS = 64, 8, 10
BASE = GPT(vocab=2048, position=SEQUENCE, embed=32, head=2, head_dim=16, ffn=128, layer=2)
WIDTHS, DEPTHS = (32, 64, 128, 256, 512), (2, 4, 8, 16, 32)
PARAMETRIZATIONS = ("standard", "completep")
OPTIMIZERS: Mapping[str, type[Optimizer]] = {"AdamW": AdamW, "Muon": Muon}
LR = 4e-3
FIGURE = Path("docs/figures/coordinate_check.png")
TITLES = {"hidden": "hidden states", "logits": "logits"}
Batches = Sequence[Mapping[str, Tensor]]
# Optimizer, parametrisation, axis.
Line = tuple[str, str, str]


@dataclass(frozen=True)
class Moved:
    """Root mean square of a change since the start: of the hidden states behind the last block, and of the logits."""

    hidden: float
    logits: float


def wider(base: GPT, embed: int) -> GPT:
    """Return a model with another width; heads and feed-forward layers follow, the width of a head stays."""
    ratio = embed // base.embed
    return replace(base, embed=embed, head=base.head * ratio, ffn=base.ffn * ratio)


def parametrized(model: GPT, base: GPT, name: str) -> GPT:
    """Return a model in one of the parametrisations, at the base's sizes the standard one."""
    if name == "standard":
        return model
    return replace(base, parametrization=name).resize(model.sizes())


def moved(model: Model, batches: Batches, kind: type[Optimizer]) -> Moved:
    """Return how far one step for each batch but the last moved what the model computes for the last."""
    net = build(model, 0)
    stepping = Stepping(kind(lr=LR), net)
    stepping.set_rate(LR)
    before = _computed(net, batches[-1])
    for batch in batches[:-1]:
        net(batch).backward()
        stepping.step()
        stepping.zero_grad()
    changes = (after - start for start, after in zip(before, _computed(net, batches[-1]), strict=True))
    return Moved(*(float(change.square().mean().sqrt()) for change in changes))


@torch.no_grad()
def _computed(net: Network, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return (hidden states behind the last block, logits)."""
    seen: list[Tensor] = []
    stack = net.decoder if hasattr(net, "decoder") else net.blocks
    hook = stack[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = net.logits(batch)
    hook.remove()
    return seen[0], logits


def measured(batches: Batches) -> dict[Line, dict[int, Moved]]:
    """Return what moved, by optimizer, parametrisation and axis, at each size."""
    models = {"width": {n: wider(BASE, n) for n in WIDTHS}, "depth": {n: replace(BASE, layer=n) for n in DEPTHS}}
    return {
        (optimizer, name, axis): {
            size: moved(parametrized(model, BASE, name), batches, kind) for size, model in sizes.items()
        }
        for optimizer, kind in OPTIMIZERS.items()
        for name in PARAMETRIZATIONS
        for axis, sizes in models.items()
    }


def draw(found: Mapping[Line, Mapping[int, Moved]], path: Path) -> None:
    """Write the figure: a row for what is measured, a column for the axis, a line for each parametrisation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, field in enumerate(("hidden", "logits")):
        for column, axis in enumerate(("width", "depth")):
            lines = {f"{name}, {kind}": found[kind, name, axis] for kind in OPTIMIZERS for name in PARAMETRIZATIONS}
            _panel(panels[row][column], lines, field, axis)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=120)


def _panel(panel: Any, found: Mapping[str, Mapping[int, Moved]], field: str, axis: str) -> None:
    for (name, sizes), marker in zip(found.items(), "osDv", strict=True):
        panel.plot(list(sizes), [getattr(at, field) for at in sizes.values()], marker=marker, label=name)
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(sizes), labels=list(map(str, sizes)))
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set_title(f"{TITLES[field]}, over {axis}", fontsize=10)
    panel.set_xlabel(axis)
    panel.set_ylabel("change, root mean square")


def main() -> str:
    """Draw the figure and return the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        batches = open_data("sotu", BASE, Path(cache)).batches(0, BATCH)
        found = measured([next(batches) for _ in range(STEPS + 1)])
    draw(found, FIGURE)
    how = f"{STEPS} steps at {LR:g} on {BATCH} samples; root mean square of the change. Written to {FIGURE}."
    return f"{tabled(found)}\n\n{how}"


def tabled(found: Mapping[Line, Mapping[int, Moved]]) -> str:
    """Return the table; sizes are over the base's."""
    ratios = [f"{size // BASE.embed}x" for size in WIDTHS]
    rows = [
        [TITLES[field], axis, kind, name, *(f"{getattr(at, field):.2f}" for at in sizes.values())]
        for field in TITLES
        for (kind, name, axis), sizes in found.items()
    ]
    return table(["change of", "over", "optimizer", "parametrisation", *ratios], rows)
