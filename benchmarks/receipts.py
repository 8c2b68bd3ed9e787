"""Per family: what decoalescing does to a briefly trained tiny model, in float64 on its held-out set.

A level-2 model (half the width, half the depth) is trained, then grown along one direction at a time: in width, where
nothing may change, and in depth with each of the three choices.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from benchmarks.table import table
from mlrun.cli import command, points
from mlrun.config.choices import build
from mlrun.models.axes import Resize
from mlrun.models.base import Model
from mlrun.models.network import Network
from mlrun.models.network import build as build_network
from mlrun.multilevel import operators
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.multilevel.receipt import relative_change

# Family: model and data of conf/.
FAMILIES = {
    "GPT-2": ("gpt_tiny", "sotu"),
    "BERT": ("bert_tiny", "sotu"),
    "DeiT": ("deit_digits", "digits"),
    "Llama": ("llama_tiny", "sotu"),
    "T5": ("t5_tiny", "sotu"),
}
CHOICES = ("copy", "ode", "identity")
HALF = Uniform(width=2, ffn=2, head=2, depth=2)
WIDTH = Uniform(width=2, ffn=2, head=2)
SEQUENCE, CHARACTERS = 64, 2_000_000
BATCH, HELD_OUT, POOL = 16, 64, 1024
LR = 2e-3


@dataclass(frozen=True)
class Receipt:
    """The held-out loss before, the relative logit change in width, and (change, jump of the loss) by depth choice."""

    family: str
    loss: float
    width: float
    depth: dict[str, tuple[float, float]]


def chosen(group: str, name: str) -> DictConfig:
    """Return a choice of a group as it is composed."""
    (point,) = points.of(command.read([f"{group}={name}"]))
    return OmegaConf.create(OmegaConf.to_container(point.settings[group]))


def open_data(name: str, model: Model, cache: Path) -> Any:
    """Return the open data of a YAML in conf/data, cut short."""
    node = chosen("data", name)
    short = {"sequence": SEQUENCE, "tokenizer_characters": CHARACTERS}
    fitted = {key: value for key, value in short.items() if key in node}
    return build(OmegaConf.merge(node, fitted), "data").open(model, 0, cache)  # type: ignore[arg-type]


def trained(model: Model, source: Any, steps: int) -> dict[str, Tensor]:
    """Return float64 weights after some steps of AdamW at a rate that falls linearly to zero."""
    net = build_network(model, 0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / steps))
    for _, batch in zip(range(steps), source.batches(0, BATCH), strict=False):
        net(batch).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return {name: tensor.double() for name, tensor in net.state_dict().items()}


@torch.no_grad()
def look(model: Model, state: dict[str, Tensor], batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    """Return (loss, logits) in float64."""
    net: Network = build_network(model, None, dtype=torch.float64)
    net.load_state_dict(state)
    wide = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    return float(net.eval()(wide)), net.logits(wide)


def grown(state: dict[str, Tensor], coarse: Model, resize: Resize, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    """Return (loss, logits) after decoalescing."""
    fine = operators.decoalesce(state, coarse.params(), resize)
    return look(coarse.resize(resize.fine), fine, batch)


def receipt(family: str, steps: int, cache: Path) -> Receipt:
    """Train a family's level 2 and grow it."""
    name, data = FAMILIES[family]
    fine: Model = build(chosen("model", name), "model")
    source = open_data(data, fine, cache)
    coarse = fine.resize(HALF.resize(fine.sizes()).coarse)
    state = trained(coarse, source, steps)
    many = next(iter(source.validation(POOL)))
    batch = {key: value[:: POOL // HELD_OUT] for key, value in many.items()}  # neighbours are alike
    loss, logits = look(coarse, state, batch)

    wide, deep = ({**coarse.sizes()} for _ in range(2))
    wide |= {axis: size for axis, size in fine.sizes().items() if "layer" not in axis}
    deep |= {axis: size for axis, size in fine.sizes().items() if "layer" in axis}
    width = relative_change(logits, grown(state, coarse, WIDTH.resize(wide), batch)[1])
    depth = {}
    for choice in CHOICES:
        resize = Uniform(depth=2, depth_scale=choice).resize(deep)
        after, changed = grown(state, coarse, resize, batch)
        depth[choice] = (relative_change(logits, changed), after - loss)
    return Receipt(family, loss, width, depth)


def main(steps: int = 300) -> str:
    """Return the table."""
    torch.set_num_threads(1)  # tiny matrices gain nothing from more
    with tempfile.TemporaryDirectory() as cache:
        receipts = [receipt(family, steps, Path(cache)) for family in FAMILIES]
    head = ["family", "loss at level 2", "width: logits"]
    head += [f"{choice}: {what}" for choice in CHOICES for what in ("logits", "loss")]
    rows = []
    for found in receipts:
        pairs = (found.depth[choice] for choice in CHOICES)
        cells = [text for change, jump in pairs for text in (f"{change:.1e}", f"{jump:+.3f}")]
        rows.append([found.family, f"{found.loss:.3f}", f"{found.width:.1e}", *cells])
    models = ", ".join(sorted({name for name, _ in FAMILIES.values()}))
    how = f"{steps} steps of {BATCH} samples at half the width and depth of {models}; {HELD_OUT} held-out samples."
    return f"{table(head, rows)}\n\n{how} logits: largest relative change; loss: the jump."
