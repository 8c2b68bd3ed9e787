"""Runs by two processes, DDP and FSDP2, are those of one: losses, transfers, checkpoints, whatever comes back.

Two processes add up the gradients of four rows each, so what they are compared with does so too (`micro_batch`): some
of these tiny runs magnify the rounding of another order a thousandfold, under DDP as well.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pair
import pytest
import torch
import toy
from pair import Part

from benchmarks import sharding as benchmark
from mlrun.config.settings import Hardware
from mlrun.errors import UserError
from mlrun.models import modules
from mlrun.models.axes import parameter_count
from mlrun.multilevel.growth.inherit import Inherit
from mlrun.multilevel.growth.ligo import LiGO
from mlrun.plan.make import make_plan
from mlrun.train.checkpoint import layout, tensor_files

# Of a loss: the order of sums differs, and with it which kernels a processor takes.
CLOSE = 1e-5
LOSSES = {"loss", "ema_loss", "loss_before", "loss_operator", "loss_after"}
FSDP: dict[str, Any] = {"sharding": "fsdp"}
DDP: dict[str, Any] = {"sharding": "none"}
# Runs by two processes: folder -> run, hardware, where it is stopped.
TWO: dict[str, tuple[str, dict[str, Any], int | None]] = {
    **{f"fsdp {name}": (name, FSDP, None) for name in pair.RUNS},
    "fsdp micro": ("carry", {**FSDP, "micro_batch": 2, "activation_checkpointing": True}, None),
    "ddp reset": ("reset", DDP, None),
    "ddp carry": ("carry", {**DDP, "activation_checkpointing": True}, None),
    "ddp apart": ("apart", {**DDP, "activation_checkpointing": True}, None),
    "ddp auto": ("auto", DDP, None),
    "ddp two stages": ("two stages", DDP, None),
    "ddp ragged": ("ragged", DDP, None),
    "ddp layers left out": ("layers left out", {**DDP, "micro_batch": 1}, None),
    "ddp other samples": ("other samples", DDP, None),
    "ddp micro two stages": ("two stages", {**DDP, "micro_batch": 2}, None),
    "cut by two": ("carry", FSDP, 4),
}
# Begun by one process, stopped, and ended by two.
GONE_ON: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "shards by one, shards by two": ("carry", FSDP, FSDP),
    "whole by one, shards by two": ("carry", DDP, FSDP),
    "shards by one, whole by two": ("carry", FSDP, DDP),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every run by two processes, and those of one that they are compared with, in `one`."""
    folder = tmp_path_factory.mktemp("runs")
    for name, (run, begun, _) in GONE_ON.items():
        if pair.possible(begun):
            pair.live(Part(str(folder / name), run, begun, stop=4))
    parts = [Part(str(folder / name), *rest) for name, rest in TWO.items()]
    parts += [Part(str(folder / name), run, ended) for name, (run, _, ended) in GONE_ON.items()]
    pair.together(folder, parts)
    for run, rows in {(part.run, rows_of(part.hardware)) for part in parts}:
        pair.live(Part(str(one(folder, run, rows)), run, {"micro_batch": rows}))
    return folder


def rows_of(hardware: Mapping[str, Any]) -> int:
    """Return the rows of a forward pass in one of two processes."""
    return hardware.get("micro_batch", 4)


def one(folder: Path, run: str, rows: int = 4) -> Path:
    return folder / "one" / f"{run} by {rows}"


def equal(found: Path, expected: Path) -> None:
    """Compare all logged losses and norms, and the weights at the end."""
    a, b = toy.records(found), toy.records(expected)
    assert [(r["kind"], r["step"]) for r in a] == [(r["kind"], r["step"]) for r in b]
    for mine, other in zip(a, b, strict=True):
        for key in (LOSSES | {"grad_norm"}) & other.keys():
            assert mine[key] == pytest.approx(other[key], abs=CLOSE, rel=1e-3 if key == "grad_norm" else CLOSE), key
    weights, trained = toy.weights(expected), toy.weights(found)
    assert trained.keys() == weights.keys()
    for name, tensor in trained.items():
        assert tensor.shape == weights[name].shape
        assert float((tensor - weights[name]).abs().max()) < 1e-3, name


@pytest.mark.parametrize("name", [name for name, (_, _, stop) in TWO.items() if stop is None])
def test_two_processes_log_the_losses_of_one(runs: Path, name: str) -> None:
    run, hardware, _ = TWO[name]
    pair.needs(hardware)
    equal(runs / name, one(runs, run, rows_of(hardware)))


@pytest.mark.parametrize("name", ["fsdp reset", "fsdp carry", "fsdp 3 levels", "ddp reset", "ddp carry"])
def test_a_v_cycle_by_two_is_that_of_one_process_and_its_whole_batch(runs: Path, tmp_path: Path, name: str) -> None:
    pair.needs(TWO[name][1])
    pair.live(Part(str(tmp_path), TWO[name][0], {}))
    equal(runs / name, tmp_path)


@pytest.mark.parametrize("name", GONE_ON)
def test_two_processes_go_on_where_one_was_stopped(runs: Path, name: str) -> None:
    run, *hardware = GONE_ON[name]
    pair.needs(*hardware)
    equal(runs / name, one(runs, run))


@pytest.mark.parametrize("hardware", [FSDP, DDP], ids=["shards", "whole"])
def test_one_process_goes_on_where_two_were_stopped(runs: Path, tmp_path: Path, hardware: dict[str, Any]) -> None:
    pair.needs(FSDP)
    shutil.copytree(runs / "cut by two", tmp_path / "run")
    assert len(list((tmp_path / "run/checkpoints/last.sharded").glob("shard-*.safetensors"))) == 2
    pair.live(Part(str(tmp_path / "run"), "carry", hardware))
    equal(tmp_path / "run", one(runs, "carry"))


def test_model_average_and_best_weights_are_whole_files(runs: Path) -> None:
    pair.needs(FSDP)
    folder = runs / "fsdp carry"
    summary = json.loads((folder / "summary.json").read_text())
    best, meta = tensor_files.read(folder / "checkpoints" / layout.BEST)
    final, _ = tensor_files.read(folder / "model/model.safetensors")
    averaged, _ = tensor_files.read(folder / "model/ema.safetensors")
    assert float(meta["val_loss"]) == summary["best_val_loss"]
    shapes = {name: tensor.shape for name, tensor in final.items()}
    assert shapes == {n: t.shape for n, t in best.items()} == {n: t.shape for n, t in averaged.items()}
    expected = toy.weights(one(runs, "carry"))
    assert shapes == {n: t.shape for n, t in expected.items()}


def test_no_process_holds_more_than_its_shards_and_a_few_tensors() -> None:
    model = toy.model()
    full = 3 * 4 * parameter_count(model.params(), model.sizes())  # weights and two moments, float32
    for seen in benchmark.measure(model, 2):
        assert seen.before == seen.up[1] == pytest.approx(full / 2, rel=0.05)
        lasting = seen.before + seen.down[1], seen.before + seen.down[1] + seen.up[1]
        for (peak, _), rest in zip((seen.down, seen.up), lasting, strict=True):
            assert rest < peak <= rest + 4 * seen.largest
        assert seen.down[0] < 0.8 * full, "level 1 and level 2, and the largest tensor has a ninth of this tiny model"


# One process: everything but the exchange is the same.


def test_alone_shards_are_bitwise_what_whole_tensors_are(tmp_path: Path) -> None:
    for name, hardware in (("shards", FSDP), ("whole", DDP)):
        pair.live(Part(str(tmp_path / name), "carry", hardware))
    assert toy.records(tmp_path / "shards") == toy.records(tmp_path / "whole")
    mine, other = toy.weights(tmp_path / "shards"), toy.weights(tmp_path / "whole")
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_activation_checkpointing_computes_again_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = modules.MLP.forward, {"plain": 0, "again": 0}
    for name, count in calls.items():

        def forward(self: Any, x: torch.Tensor, name: str = name) -> torch.Tensor:
            calls[name] += torch.is_grad_enabled()
            return real(self, x)

        assert count == 0
        monkeypatch.setattr(modules.MLP, "forward", forward)
        pair.live(Part(str(tmp_path / name), "carry", {"activation_checkpointing": name == "again"}))
    assert calls["again"] == 2 * calls["plain"] > 0
    assert toy.records(tmp_path / "plain") == toy.records(tmp_path / "again")


def test_bf16_blocks_are_gathered_low_and_the_loss_is_that_of_autocast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    real = modules.Linear.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        seen.add(self.weight.dtype)
        return real(self, x)

    monkeypatch.setattr(modules.Linear, "forward", forward)
    for name, hardware in (("shards", FSDP), ("whole", DDP)):
        seen.clear()
        pair.live(Part(str(tmp_path / name), "llama", {**hardware, "precision": "bf16"}))
        # Receipts are in float32 either way.
        assert (torch.bfloat16 in seen) == (name == "shards") and torch.float32 in seen
    for mine, other in zip(toy.records(tmp_path / "shards"), toy.records(tmp_path / "whole"), strict=True):
        assert mine.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=0.02)


@pytest.mark.parametrize("run", ["reset", "apart"])
def test_compiled_blocks_train_as_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    pair.live(Part(str(tmp_path / "eager"), run, FSDP))
    compiled: list[Any] = []
    real = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled.append(function) or real(function, **how))
    pair.live(Part(str(tmp_path / "compiled"), run, {**FSDP, "compile": True}))
    assert len(compiled) == 2 + 1 + 2, "the blocks of the three stages"
    equal(tmp_path / "compiled", tmp_path / "eager")


@pytest.mark.parametrize("growth", [LiGO(steps=1), Inherit()])
def test_what_needs_the_whole_model_is_refused_before_any_work(growth: Any) -> None:
    given = pair.growing(growth)
    make_plan(toy.make(**given))
    with pytest.raises(UserError, match=r"hardware\.sharding=fsdp: allowed: none; \w+ learns .* in every process"):
        make_plan(toy.make(**given, hardware=Hardware(sharding="fsdp")))
