"""Checkpoints of shards keep what those of whole tensors promise."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pair
import pytest
import toy
from pair import Part

from mlrun import files
from mlrun.errors import UserError
from mlrun.train.checkpoint import layout, sharded

FSDP = {"sharding": "fsdp"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    pair.live(Part(str(folder), "carry", FSDP))
    return folder


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """Return a run that was stopped in its second stage, with two checkpoints."""
    pair.live(Part(str(tmp_path), "carry", FSDP, stop=4))
    assert [path.name for path in layout.present(tmp_path / "checkpoints", "last", "before")] == [
        "last.sharded",
        "before.sharded",
    ]
    return tmp_path


def flip(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


def go_on(folder: Path) -> None:
    pair.live(Part(str(folder), "carry", FSDP))


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("shard-00000.safetensors", flip, "differs from its checksum"),
        ("shard-00000.safetensors", Path.unlink, "No such file"),
        ("checkpoint.json", flip, "checkpoint.json: "),
        ("checkpoint.json", Path.unlink, "cannot be read"),
    ],
)
def test_a_damaged_newest_one_falls_back_to_the_one_before(
    cut: Path, whole: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None], told: str
) -> None:
    damage(cut / "checkpoints/last.sharded" / name)
    go_on(cut)
    out = capsys.readouterr().out
    assert told in out and "going on from the checkpoint before it" in out
    assert toy.records(cut) == toy.records(whole)
    assert (cut / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()


def test_without_a_whole_one_the_run_is_refused_and_each_is_named(cut: Path) -> None:
    for name in ("last", "before"):
        flip(cut / f"checkpoints/{name}.sharded/shard-00000.safetensors")
    with pytest.raises(UserError) as caught:
        go_on(cut)
    assert [line.split(".sharded")[0].rsplit("/", 1)[1] for line in caught.value.problems] == ["last", "before"]


def test_a_failed_write_leaves_the_checkpoints_as_they_were(cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in (cut / "checkpoints").rglob("*")}
    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device: free some space"):
        patch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, os.strerror(28), "disk")))
        go_on(cut)
    assert {path: path.stat().st_mtime_ns for path in (cut / "checkpoints").rglob("*")} == before
    go_on(cut)


LIMITED = """
import pathlib, resource, sys
import pair
from mlrun.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    pair.live(pair.Part(sys.argv[1], "carry", {"sharding": "fsdp"}))
except UserError as error:
    sys.exit(f"told: {error}")
"""


@pytest.mark.parametrize("limit", [20_000, 120_000])
def test_a_limit_on_file_sizes_is_one_line_too(tmp_path: Path, limit: int) -> None:
    pair.needs(FSDP)
    here = Path(__file__).resolve().parents[1]
    path = {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "run"), str(limit)]
    done = subprocess.run(command, env={**os.environ, **path}, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "told: " in done.stderr and "File too large: raise the limit" in done.stderr
    assert not [path for path in (tmp_path / "run/checkpoints").iterdir() if path.name.startswith(".")]


# Shards that somebody else signed


def sign(folder: Path, **changes: Any) -> None:
    """Change what is said of a checkpoint, and sign it as its author could."""
    note = json.loads((folder / sharded.NOTE).read_text()) | changes
    del note["sha256"]
    sharded.write_note(folder / sharded.NOTE, note)


def test_tensors_are_read_from_files_of_the_checkpoint_alone(cut: Path) -> None:
    newest = cut / "checkpoints/last.sharded"
    files.remove(cut / "checkpoints/before.sharded")
    for name in ("../best.safetensors", "/etc/passwd", "shard-0/../../best.safetensors"):
        sign(newest, files={name: "0" * 64})
        with pytest.raises(UserError, match="files that are not of this checkpoint"):
            go_on(cut)


def test_a_pickle_in_the_place_of_a_shard_is_not_opened(cut: Path) -> None:
    newest = cut / "checkpoints/last.sharded"
    files.remove(cut / "checkpoints/before.sharded")
    (newest / "shard-00000.safetensors").write_bytes(pickle.dumps(["a", "pickle"]))
    with pytest.raises(UserError, match=r"shard-00000\.safetensors: cannot be read"):
        go_on(cut)


def test_a_place_where_no_run_can_be_is_refused(cut: Path) -> None:
    newest = cut / "checkpoints/last.sharded"
    files.remove(cut / "checkpoints/before.sharded")
    sign(newest, progress={**json.loads((newest / sharded.NOTE).read_text())["progress"], "stage": 99})
    with pytest.raises(UserError, match=r"last\.sharded: its progress has stage 99"):
        go_on(cut)


def test_the_hardware_is_no_part_of_what_a_checkpoint_belongs_to(cut: Path, whole: Path) -> None:
    """From shards to whole files and back again, in one folder."""
    pair.live(Part(str(cut), "carry", {"sharding": "none"}, stop=7))
    assert [path.name for path in layout.present(cut / "checkpoints", "last")] == ["last.safetensors"]
    pair.live(Part(str(cut), "carry", FSDP, stop=9))
    assert [path.name for path in layout.present(cut / "checkpoints", "last")] == ["last.sharded"]
    go_on(cut)
    assert toy.records(cut) == toy.records(whole)
    leftovers = [path.name for path in (cut / "checkpoints").iterdir() if path.name.startswith(".")]
    assert leftovers == []
