"""Runs by two processes, DDP and FSDP2, are those of one: losses, transfers, checkpoints, whatever comes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pair
import pytest
import toy
from pair import Part

CLOSE = 1e-5
LOSSES = ("loss", "ema_loss", "loss_before", "loss_operator", "loss_after")
FSDP, DDP = {"sharding": "fsdp"}, {"sharding": "none"}
# Runs by two processes: folder -> run, hardware, where it is stopped.
TWO: dict[str, tuple[str, dict[str, Any], int | None]] = {
    **{f"fsdp {name}": (name, FSDP, None) for name in pair.RUNS},
    "fsdp micro": ("carry", {**FSDP, "micro_batch": 1, "activation_checkpointing": True}, None),
    "ddp carry": ("carry", {**DDP, "activation_checkpointing": True}, None),
    "ddp two stages": ("two stages", DDP, None),
    "ddp micro two stages": ("two stages", {**DDP, "micro_batch": 2}, None),
    "cut by two": ("carry", FSDP, 7),
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
        pair.live(Part(str(folder / name), run, begun, stop=7))
    parts = [Part(str(folder / name), *rest) for name, rest in TWO.items()]
    parts += [Part(str(folder / name), run, ended) for name, (run, _, ended) in GONE_ON.items()]
    pair.together(folder, parts)
    for run in pair.RUNS:
        pair.live(Part(str(folder / "one" / run), run, DDP))
    return folder


def equal(found: Path, expected: Path) -> None:
    """Compare all logged numbers, and the weights at the end."""
    a, b = toy.records(found), toy.records(expected)
    assert [(r["kind"], r["step"]) for r in a] == [(r["kind"], r["step"]) for r in b]
    for one, other in zip(a, b, strict=True):
        for key in {*LOSSES, "copy_similarity", "grad_norm"} & other.keys():
            close = {"rel": 1e-3} if key == "grad_norm" else {"abs": CLOSE}
            assert one[key] == pytest.approx(other[key], **close), (key, one, other)
    weights = toy.weights(expected)
    for name, tensor in toy.weights(found).items():
        assert tensor.shape == weights[name].shape and float((tensor - weights[name]).abs().max()) < 1e-3, name


@pytest.mark.parametrize("name", [name for name, (_, _, stop) in TWO.items() if stop is None])
def test_two_processes_log_the_losses_of_one(runs: Path, name: str) -> None:
    equal(runs / name, runs / "one" / TWO[name][0])


@pytest.mark.parametrize("name", GONE_ON)
def test_two_processes_go_on_where_one_was_stopped(runs: Path, name: str) -> None:
    equal(runs / name, runs / "one" / GONE_ON[name][0])


@pytest.mark.parametrize("hardware", [FSDP, DDP])
def test_one_process_goes_on_where_two_were_stopped(runs: Path, tmp_path: Path, hardware: dict[str, Any]) -> None:
    shutil.copytree(runs / "cut by two", tmp_path / "run")
    assert len(list((tmp_path / "run/checkpoints/last.sharded").glob("*.distcp"))) == 2
    pair.live(Part(str(tmp_path / "run"), "carry", hardware))
    equal(tmp_path / "run", runs / "one/carry")
    kinds = {path.suffix for path in (tmp_path / "run/checkpoints").iterdir() if path.stem != "best"}
    assert kinds == {".sharded"} if hardware is FSDP else ".safetensors" in kinds


def test_model_and_best_weights_are_whole_files(runs: Path) -> None:
    for name in ("model/model.safetensors", "model/ema.safetensors", "checkpoints/best.safetensors"):
        assert (runs / "fsdp carry" / name).is_file()
    summary = json.loads((runs / "fsdp carry/summary.json").read_text())
    from mlrun import checkpoint

    _, meta = checkpoint.read(runs / "fsdp carry/checkpoints/best.safetensors")
    assert float(meta["val_loss"]) == summary["best_val_loss"]
