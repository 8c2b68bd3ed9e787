"""Levels are compiled once: a level that comes back has its graphs, and a restart finds them on the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pair
import pytest
import torch
from pair import Part
from test_sharding import DDP, FSDP, equal
from torch._dynamo.utils import counters

from mlrun.train import compiled

# Compiles a small function in a process of its own; prints how often its code was found on the disk, and was not.
RESTART = """
import json, sys, torch
from torch._dynamo.utils import counters
from mlrun.train import compiled
compiled.keep_in(sys.argv[1])
compiled.code(torch.nn.Linear(3, 2))(torch.ones(4, 3))
print(json.dumps([counters["inductor"][f"fxgraph_cache_{what}"] for what in ("hit", "miss")]))
"""


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "said"))  # so that what a run sets does not stay
    compiled.forget()


@pytest.mark.parametrize(("run", "graphs"), [("3 levels", 3), ("other samples", 3)])
def test_a_level_that_comes_back_is_not_compiled_again(run: str, graphs: int, tmp_path: Path) -> None:
    pair.live(Part(str(tmp_path / "eager"), run, DDP))
    counters.clear()
    pair.live(Part(str(tmp_path / "compiled"), run, {**DDP, "compile": True}, backend="aot_eager"))
    assert counters["stats"]["unique_graphs"] == graphs
    assert counters["frames"]["total"] == counters["frames"]["ok"] == graphs
    equal(tmp_path / "compiled", tmp_path / "eager")


def test_nor_are_blocks_of_shards(tmp_path: Path) -> None:
    counters.clear()
    pair.live(Part(str(tmp_path), "reset", {**FSDP, "compile": True}, backend="aot_eager"))
    # At each level one to train, and two to evaluate, the last batch being smaller; all blocks share them.
    assert counters["stats"]["unique_graphs"] == 2 * 3


def test_more_graphs_than_there_is_room_for_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[None] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: dropped.append(None))
    for stage, graphs in ((1, 2), (2, 2), (3, 3), (2, 2), (1, 2), (4, 1)):
        compiled.begin(stage, graphs)
    assert not dropped
    compiled.begin(5, 1)
    assert len(dropped) == 1
    compiled.begin(1, 7)
    assert len(dropped) == 1


def test_the_graphs_lie_in_the_cache_unless_the_user_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled.keep_in(str(tmp_path))
    assert os.environ[compiled.VARIABLE] == str(tmp_path / "said")
    for torchs in (None, f"{tempfile.gettempdir()}/torchinductor_me"):
        monkeypatch.delenv(compiled.VARIABLE)
        if torchs is not None:
            monkeypatch.setenv(compiled.VARIABLE, torchs)
        compiled.keep_in(str(tmp_path))
        assert os.environ[compiled.VARIABLE] == str(tmp_path / "compiled")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a processor with g++, which is not here")
def test_a_restart_finds_what_was_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.VARIABLE)
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", RESTART, str(tmp_path)], capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout))
    assert found[0][0] == 0 and found[0][1] > 0
    assert found[1][0] > 0 and found[1][1] == 0
