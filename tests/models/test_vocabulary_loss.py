"""Claims on the loss that does not hold all logits: it is the plain one in value, gradients and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from test_models import TINY, a_batch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mlrun.models import vocabulary_loss
from mlrun.models.base import IGNORED, Model, TextModel
from mlrun.models.network import Network, build
from mlrun.multilevel.growth.stage_losses import Distilled

TEXT = {name: model for name, model in TINY.items() if isinstance(model, TextModel)}
EVERY = pytest.mark.parametrize("model", TEXT.values(), ids=TEXT)
ROWS = 4


def chunk(patch: pytest.MonkeyPatch, model: Model) -> None:
    """Take every loss of a training step in chunks, of four rows or a few more."""
    patch.setattr(vocabulary_loss, "WHOLE", 0)
    patch.setattr(vocabulary_loss, "CHUNK", ROWS * model.sizes()["vocab"])


def with_gaps(model: Model, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return a batch whose labels are ignored here and there, and in one whole chunk."""
    batch = a_batch(model, dtype, rows=4)
    batch["labels"][1], batch["labels"][0, 1] = IGNORED, IGNORED
    return batch


def step(net: Network, batch: Mapping[str, Tensor], bf16: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and every gradient of a part of it, as a micro-batch has it."""
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = net(batch)
    (loss * 0.3).backward()
    return loss.detach(), {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Return by tensor how far gradients are from each other; a key's bias has one that is zero but for rounding."""
    assert found.keys() == expected.keys()
    floor = 1e-4 * max(float(grad.norm()) for grad in expected.values())
    return {n: float((found[n] - grad).norm() / max(float(grad.norm()), floor)) for n, grad in expected.items()}


@EVERY
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_loss_and_gradients_are_the_plain_ones(
    model: Model, dtype: torch.dtype, close: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, batch = build(model, 0, dtype), with_gaps(model, dtype)
    loss, grads = step(net, batch)
    chunk(monkeypatch, model)
    found, found_grads = step(net, batch)
    assert found.dtype == dtype and float(found) == pytest.approx(float(loss), rel=close)
    assert max(apart(found_grads, grads).values()) < close


@EVERY
def test_in_bf16_it_is_no_further_from_float32(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = build(model, 0), with_gaps(model)
    exact = step(net, batch)[1]
    loss, grads = step(net, batch, bf16=True)
    chunk(monkeypatch, model)
    found, found_grads = step(net, batch, bf16=True)
    assert found.dtype == torch.float32 and float(found) == pytest.approx(float(loss), rel=1e-6)
    plain, mine = apart(grads, exact), apart(found_grads, exact)
    # Of the products' rounding, which each of the two has in its own way.
    assert max(plain.values()) > 1e-3
    assert all(mine[name] < 2 * plain[name] + 1e-3 for name in plain)


@EVERY
@pytest.mark.parametrize("bf16", [False, True])
def test_it_costs_the_same_flops(model: Model, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = build(model, 0), with_gaps(model)
    with FlopCounterMode(display=False) as plain:
        step(net, batch, bf16)
    chunk(monkeypatch, model)
    with FlopCounterMode(display=False) as mine:
        step(net, batch, bf16)
    assert mine.get_total_flops() == plain.get_total_flops() > 0


def test_without_a_label_loss_and_gradients_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TEXT["bert"]
    batch = a_batch(model, torch.float32)
    chunk(monkeypatch, model)
    loss, grads = step(build(model, 0), {**batch, "labels": torch.full_like(batch["labels"], IGNORED)})
    assert loss == 0 and all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads.values())


def test_a_frozen_head_has_no_gradient_and_passes_one_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TEXT["gpt untied"]
    net, batch = build(model, 0), with_gaps(model)
    net.head.requires_grad_(False)
    grads = step(net, batch)[1]
    chunk(monkeypatch, model)
    found = step(net, batch)[1]
    assert "head.weight" not in found and max(apart(found, grads).values()) < 1e-6


@EVERY
def test_no_tensor_of_all_logits_is_kept_for_the_backward_pass(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = build(model, 0), with_gaps(model)
    logits, kept = batch["labels"].numel() * model.sizes()["vocab"], []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    def keeps_them() -> bool:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            net(batch)
        return logits in kept

    assert keeps_them()
    chunk(monkeypatch, model)
    assert not keeps_them()


def test_whoever_asks_for_logits_gets_all_and_evaluations_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TEXT["gpt"]
    net, batch = build(model, 0), with_gaps(model)
    taught = Distilled(net, build(model, 1), 0.5, 2.0, range(4))

    def numbers() -> list[Tensor]:
        with torch.no_grad():
            return [net(batch), *net.loss_and_logits(batch), net.logits(batch), taught(batch)]

    before, learning = numbers(), taught(batch).detach()
    chunk(monkeypatch, model)
    monkeypatch.setattr(vocabulary_loss, "total", lambda *_: pytest.fail("in chunks"))
    assert all(map(torch.equal, numbers(), before))
    assert torch.equal(taught(batch), learning)
    with pytest.raises(pytest.fail.Exception, match="in chunks"):
        net(batch)


def test_a_model_that_is_compiled_as_a_whole_takes_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    model = TEXT["llama"]
    net, batch = build(model, 0), with_gaps(model)
    loss, grads = step(net, batch)
    chunk(monkeypatch, model)
    compiled: Any = torch.compile(net, backend="aot_eager")
    found, found_grads = step(compiled, batch)
    assert float(found) == pytest.approx(float(loss), rel=1e-6)
    assert max(apart({n.removeprefix("_orig_mod."): g for n, g in found_grads.items()}, grads).values()) < 1e-5


def test_a_step_is_taken_whole_up_to_a_number_of_logits_and_chunks_grow_with_the_rows() -> None:
    head = torch.empty(32768, 128, device="meta", requires_grad=True)

    def rows(count: int) -> Tensor:
        return torch.empty(count, 128, device="meta")

    assert not vocabulary_loss.is_wide(rows(1024), head) and vocabulary_loss.is_wide(rows(1025), head)
    with torch.no_grad():
        assert not vocabulary_loss.is_wide(rows(1025), head)
    assert [vocabulary_loss.rows_of_a_chunk(rows(count), head) for count in (1025, 2**15, 2**17)] == [128, 128, 512]


def test_a_processor_takes_chunks_sooner() -> None:
    """From 32 MiB on memory is asked for anew in each step; a compiler has its own way to spare logits."""

    def wide(rows: int, words: int, device: str = "cpu") -> bool:
        given = torch.empty(rows, 4, device=device), torch.empty(words, 4, device=device, requires_grad=True)
        return vocabulary_loss.is_wide(*given)

    assert wide(2**13, 1024) and wide(1024, 2**13) and not wide(1023, 2**13)
    assert not wide(1024, 2**13, "meta")
    compiled = torch.compile(lambda x, w: torch.tensor(vocabulary_loss.is_wide(x, w)), backend="eager")
    assert not compiled(torch.empty(1024, 4), torch.empty(2**13, 4))
