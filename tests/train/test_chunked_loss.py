"""Runs whose losses are taken in chunks are those whose losses are not, however they are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pair
import pytest
import toy
from pair import Part
from test_sharding import DDP, FSDP, equal, one, rows_of

ROWS = 24  # of 4 * 16 or 2 * 16 in a pass, so the last chunk is a smaller one
BOTH = {"micro_batch": 2, "activation_checkpointing": True}
TWO: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp micro ragged": ("ragged", {**DDP, **BOTH}),
    "ddp layers frozen": ("two stages", DDP),
    "ddp compiled": ("carry", {**DDP, "compile": True}),
    "fsdp micro llama": ("llama", {**FSDP, **BOTH}),
    "fsdp bert": ("bert", FSDP),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every run by two processes, and those of one, not in chunks, that they are compared with."""
    folder = tmp_path_factory.mktemp("runs")
    pair.together(
        folder, [Part(str(folder / name), *rest, chunk=ROWS, backend="aot_eager") for name, rest in TWO.items()]
    )
    for run, rows in {(run, rows_of(hardware)) for run, hardware in TWO.values()}:
        pair.live(Part(str(one(folder, run, rows)), run, {"micro_batch": rows}))
    return folder


@pytest.mark.parametrize("name", TWO)
def test_two_processes_log_the_losses_of_one_that_holds_all_logits(runs: Path, name: str) -> None:
    run, hardware = TWO[name]
    pair.needs(hardware)
    equal(runs / name, one(runs, run, rows_of(hardware)))


@pytest.mark.parametrize("hardware", [FSDP, DDP], ids=["blocks", "whole"])
def test_what_is_compiled_takes_chunks(hardware: dict[str, Any], tmp_path: Path) -> None:
    pair.live(Part(str(tmp_path / "eager"), "carry", hardware))
    compiles = {**hardware, "compile": True}
    pair.live(Part(str(tmp_path / "compiled"), "carry", compiles, chunk=ROWS, backend="aot_eager"))
    equal(tmp_path / "compiled", tmp_path / "eager")


def test_recomputed_activations_change_nothing_and_a_stopped_run_goes_on_bitwise(tmp_path: Path) -> None:
    pair.live(Part(str(tmp_path / "plain"), "carry", {"micro_batch": 4}, chunk=ROWS))
    hardware = {"micro_batch": 4, "activation_checkpointing": True}
    pair.live(Part(str(tmp_path / "again"), "carry", hardware, stop=4, chunk=ROWS))
    pair.live(Part(str(tmp_path / "again"), "carry", hardware, chunk=ROWS))
    assert toy.records(tmp_path / "plain") == toy.records(tmp_path / "again")


def test_bf16_on_shards_is_that_of_autocast(tmp_path: Path) -> None:
    for name, hardware in (("shards", FSDP), ("whole", DDP)):
        pair.live(Part(str(tmp_path / name), "llama", {**hardware, "precision": "bf16"}, chunk=ROWS))
    for mine, other in zip(toy.records(tmp_path / "shards"), toy.records(tmp_path / "whole"), strict=True):
        assert mine.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=0.02)
