"""Claim: the FLOPs that a model declares are those that torch counts, exactly, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_models import TINY, a_batch, read
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlrun.models.base import Model
from mlrun.models.deit import DeiT
from mlrun.models.network import build

LEVELS = ["gpt_tiny", "bert_tiny", "deit_digits", "llama_tiny", "t5_tiny"]


def halved(model: Model, count: int) -> Model:
    """Return the model with width and depth halved `count` times, as the paper's levels are."""
    axes = {"embed", "head", "kv_head", "ffn", "layer", "decoder_layer"}
    return model.resize({a: s // 2**count for a, s in model.sizes().items() if a in axes})


def counted(model: Model, batch: dict[str, torch.Tensor]) -> int:
    """Return the FLOPs that torch counts in one forward and backward pass."""
    net = build(model, 0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(batch).backward()
    return counter.get_total_flops()


def declared(model: Model, batch: dict[str, torch.Tensor]) -> int:
    """Return the FLOPs that the model declares for a batch."""
    sequence = 0 if isinstance(model, DeiT) else batch["tokens"].shape[1]
    targets = 1 if isinstance(model, DeiT) else batch["labels"].shape[1]
    return len(batch["labels"]) * model.flops(sequence, targets).total


@pytest.mark.parametrize("model", TINY.values(), ids=TINY)
def test_flops_are_what_torch_counts(model: Model) -> None:
    batch = a_batch(model, torch.float32)
    assert declared(model, batch) == counted(model, batch)


@pytest.mark.parametrize("model", TINY.values(), ids=TINY)
def test_dropping_costs_no_flops(model: Model) -> None:
    dropping, batch = replace(model, dropout=0.1, attention_dropout=0.1, drop_path=0.1), a_batch(model, torch.float32)
    assert declared(dropping, batch) == counted(dropping, batch) == declared(model, batch)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("name", LEVELS)
def test_flops_are_what_torch_counts_at_every_level(name: str, count: int) -> None:
    model = halved(read(name), count)
    batch = a_batch(model, torch.float32, rows=1)
    assert declared(model, batch) == counted(model, batch)


def test_body_leaves_out_the_head_alone() -> None:
    model = TINY["gpt"]
    wider = replace(model, vocab=2 * model.sizes()["vocab"])
    assert wider.flops(10, 10).body == model.flops(10, 10).body
    assert wider.flops(10, 10).head == 2 * model.flops(10, 10).head == 2 * 3 * 2 * 10 * 16 * 48


@pytest.mark.parametrize(
    ("name", "sequence", "targets", "ratio"),
    [("bert_base", 128, 20, 0.14), ("bert_large", 128, 20, 0.13), ("deit_b", 0, 1, 0.13), ("gpt_base", 512, 512, 0.24)],
)
def test_cost_of_the_second_level_is_the_papers(name: str, sequence: int, targets: int, ratio: float) -> None:
    model = read(name)
    fine, coarse = (m.flops(sequence, targets).total for m in (model, halved(model, 1)))
    assert coarse / fine == pytest.approx(ratio, abs=0.01)
