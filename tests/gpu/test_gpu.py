"""What must hold on an NVIDIA GPU: `make gpu`. On other machines every test here is skipped."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_gpu
import pair
import pytest
import torch
import toy
from pair import Part

from mlrun.config.settings import Checkpoint, Eval, Hardware
from mlrun.errors import UserError
from mlrun.models.base import Model
from mlrun.models.network import build
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.plan import schedule
from mlrun.train import machine
from mlrun.train.loop import autocast
from mlrun.train.parallel import processes

pytestmark = pytest.mark.gpu

GPU = {"device": "cuda"}
# Sums of float32 in another order; matrix products without TF32.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# Eight bits of mantissa.
ROUGH = 0.03


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def batch(model: Model, device: str) -> dict[str, torch.Tensor]:
    drawn, made = torch.Generator().manual_seed(0), {}
    for name, like in fake_gpu.batch_of(model).items():
        top = toy.SEQUENCE if name == "positions" else 5 if model.objective == "image" else toy.WORDS
        ints = not like.is_floating_point()
        made[name] = (
            torch.randint(top, like.shape, generator=drawn) if ints else torch.randn(like.shape, generator=drawn)
        ).to(device)
    return made


def losses_and_gradients(name: str, device: str, precision: str = "fp32", compiled: bool = False) -> Any:
    """Return the loss and all gradients of a family, without dropout."""
    model = fake_gpu.FAMILIES[name]
    net = build(model, 0, device=device).eval()
    forward: Any = torch.compile(net) if compiled else net
    with autocast(Hardware(device=device, precision=precision), torch.device(device)):
        loss = forward(batch(model, device))
    loss.backward()
    return loss.item(), {n: p.grad.cpu() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", fake_gpu.FAMILIES)
def test_the_gpu_computes_what_the_processor_computes(name: str) -> None:
    (here, mine), (there, theirs) = (losses_and_gradients(name, device) for device in ("cpu", "cuda"))
    assert there == pytest.approx(here, abs=1e-5)
    assert mine.keys() == theirs.keys()
    for tensor in mine:
        torch.testing.assert_close(theirs[tensor], mine[tensor], **CLOSE)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", fake_gpu.FAMILIES)
def test_bf16_and_compiled_code_are_close(name: str, compiled: bool) -> None:
    exact, _ = losses_and_gradients(name, "cpu")
    rough, gradients = losses_and_gradients(name, "cuda", "bf16", compiled)
    assert rough == pytest.approx(exact, rel=ROUGH)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())


def trained(folder: Path) -> list[float]:
    return [record["loss"] for record in toy.records(folder) if record["kind"] == "train"]


def test_a_v_cycle_has_the_losses_and_receipts_of_the_processor(tmp_path: Path) -> None:
    toy.run(tmp_path / "cpu", toy.make())
    toy.run(tmp_path / "gpu", toy.make(hardware=Hardware(**GPU)))
    assert trained(tmp_path / "gpu") == pytest.approx(trained(tmp_path / "cpu"), abs=1e-3)
    receipts = [[r for r in toy.records(tmp_path / n) if r["kind"] == "transfer"] for n in ("cpu", "gpu")]
    assert len(receipts[0]) == len(receipts[1]) == 2
    for here, there in zip(*receipts, strict=True):
        for key in ("loss_before", "loss_operator", "loss_after"):
            assert there[key] == pytest.approx(here[key], abs=1e-3)


EXACT = Uniform(width=2, ffn=2, head=2, depth=2, depth_scale="identity")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_transfer_that_keeps_the_function_does_so_on_the_gpu(precision: str, tmp_path: Path) -> None:
    # Receipts are made in float32; the run raises where the promise is broken.
    toy.run(tmp_path, toy.make(EXACT, hardware=Hardware(**GPU, precision=precision)))
    (up,) = [r for r in toy.records(tmp_path) if r["kind"] == "transfer" and r["operator"] == "decoalesce"]
    assert up["exact"] and up["relative_logit_change"] <= up["tolerance"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_stopped_run_goes_on_bitwise(
    precision: str, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = Hardware(**GPU, precision=precision, compile=compiled)
    config = toy.make(hardware=hardware, checkpoint=Checkpoint(every="20%"))
    toy.run(tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        toy.stop_at(patch, 12)
        with pytest.raises(toy.loop.Stopped):
            toy.run(tmp_path / "cut", config)
    toy.run(tmp_path / "cut", config)
    assert toy.records(tmp_path / "cut") == toy.records(tmp_path / "whole")
    assert all(map(torch.equal, toy.weights(tmp_path / "cut").values(), toy.weights(tmp_path / "whole").values()))


@pytest.mark.parametrize("hardware", [{}, {"sharding": "fsdp"}], ids=["alone", "fsdp"])
def test_one_process_over_nccl(hardware: dict[str, Any], tmp_path: Path) -> None:
    toy.run(tmp_path / "cpu", pair.config("reset"))
    toy.run(tmp_path / "gpu", pair.config("reset", **GPU, **hardware))
    assert trained(tmp_path / "gpu") == pytest.approx(trained(tmp_path / "cpu"), abs=1e-3)


@pytest.mark.parametrize("name", ["carry", "layers left out", "llama", "bert"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_step_that_logs_nothing_waits_for_nothing(
    name: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count, by torch's own debug mode, where the processor waits for the GPU between the first and last step."""
    config = pair.config(name, **GPU, workers=workers)
    seldom = {"log_every": 10**6, "eval": Eval(every="100%", batch=6), "checkpoint": Checkpoint(every="100%")}
    steps = 40
    config = replace(config, settings=replace(config.settings, budget=f"{steps} steps", **seldom))
    real, watched = schedule.rate, []

    def rate(plan: Any, spec: Any, policy: str, stage: Any, step: int) -> float:
        due = {*plan.forks, steps}  # after them, as at both ends of a stage, something is evaluated or saved
        plain = stage.first < step < stage.end - 1 and step + 1 not in due
        torch.cuda.set_sync_debug_mode("warn" if plain else "default")
        watched.extend([step] * plain)
        return real(plan, spec, policy, stage, step)

    monkeypatch.setattr(schedule, "rate", rate)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            toy.run(tmp_path, config)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{w.filename}:{w.lineno}" for w in told if "synchronizing CUDA operation" in str(w.message)]
    assert len(watched) > 10 and waits == []


def test_batches_made_ahead_are_those_of_the_loop(tmp_path: Path) -> None:
    for workers in (0, 1):
        toy.run(tmp_path / str(workers), toy.make(hardware=Hardware(**GPU, workers=workers)))
    assert toy.records(tmp_path / "0") == toy.records(tmp_path / "1")


@pytest.mark.gpu(count=2)
@pytest.mark.parametrize("name", ["reset", "carry", "3 levels", "bert", "llama"])
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_gpus_train_what_one_processor_trains(name: str, sharding: str, tmp_path: Path) -> None:
    toy.run(tmp_path / "cpu", pair.config(name, micro_batch=4))
    pair.together(tmp_path, [Part(str(tmp_path / "gpus"), name, {**GPU, "sharding": sharding})])
    assert trained(tmp_path / "gpus") == pytest.approx(trained(tmp_path / "cpu"), abs=1e-3)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Make every sample of a forward pass in training take a share of the GPU's memory, so that `rows` fit."""
    free, _ = torch.cuda.mem_get_info()
    real = toy.Network.forward

    def forward(net: Any, batch: Any) -> torch.Tensor:
        loss = real(net, batch)
        if not net.training:
            return loss
        held = [torch.empty(int(free * 0.9 / rows), dtype=torch.uint8, device="cuda") for _ in batch["tokens"]]
        return loss + 0.0 * len(held)

    monkeypatch.setattr(toy.Network, "forward", forward)


def test_memory_that_runs_out_halves_the_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run(tmp_path / "whole", toy.make(hardware=Hardware(**GPU)))
    short_of_memory(monkeypatch, 3)
    toy.run(tmp_path / "auto", toy.make(hardware=Hardware(**GPU, micro_batch="auto")))
    halved = [(r["level"], r["samples"]) for r in toy.records(tmp_path / "auto") if r["kind"] == "micro_batch"]
    assert halved == [(1, 2), (2, 2)]
    assert trained(tmp_path / "auto") == pytest.approx(trained(tmp_path / "whole"), abs=1e-4)
    with pytest.raises(UserError, match=r"hardware\.micro_batch=8: allowed: at most 2, which fits"):
        toy.run(tmp_path / "given", toy.make(hardware=Hardware(**GPU, micro_batch=8)))


def test_the_log_names_the_gpu(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.make(hardware=Hardware(**GPU, precision="bf16")))
    (start,) = toy.starts(tmp_path)
    assert start["gpu"] == torch.cuda.get_device_name() and start["precision"] == "bf16"
    assert torch.cuda.get_device_name() in json.loads((tmp_path / "summary.json").read_text())["machine"]
    ranks = processes.start(Hardware(**GPU))
    assert torch.cuda.get_device_name() in machine.words(ranks)
