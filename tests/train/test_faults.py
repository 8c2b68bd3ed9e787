"""Disks, clocks, data, gradients and processes that fail: what was saved stays good, and the user gets one line.

The table in docs/reliability.md names these tests.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
from kills import same_end

from mlrun import files
from mlrun.cli import command, points, preflight
from mlrun.data import shuffled_blocks
from mlrun.data.huggingface import HubSource
from mlrun.data.source import Broken
from mlrun.data.text.files import Files
from mlrun.data.text.hub import Hub
from mlrun.data.text.windows import PackedText, StreamedText
from mlrun.errors import UserError
from mlrun.models.gpt import GPT
from mlrun.train import loop
from mlrun.train.checkpoint.store import Checkpoints
from mlrun.train.divergence import MOST_SKIPPED

OFTEN = {"checkpoint": toy.Checkpoint(every="2 steps")}


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Any]:
    """Return a function that mounts a small file system of its own; skips where that is not allowed."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk-{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(mounted: Any, tmp_path: Path) -> None:
    toy.run(tmp_path / "whole", toy.make(**OFTEN))
    size = (tmp_path / "whole/checkpoints/before.safetensors").stat().st_size
    disk = mounted(f"size={4 * size}")
    (disk / "ballast").write_bytes(b"0" * int(1.5 * size))
    with pytest.raises(UserError, match=r"No space left on device: free some space; then the same command goes on"):
        toy.run(disk / "run", toy.make(**OFTEN))
    assert Checkpoints(disk / "run/checkpoints", toy.plans(toy.make(**OFTEN))).load() is not None
    subprocess.run(["mount", "-o", f"remount,size={20 * size}", str(disk)], check=True)
    toy.run(disk / "run", toy.make(**OFTEN))
    same_end(disk / "run", tmp_path / "whole")


LIMITED = """
import pathlib, resource, sys
import toy
from mlrun.errors import UserError
# No file may grow beyond what a checkpoint needs; the system says so as it does for a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    toy.run(pathlib.Path(sys.argv[1]), toy.make(checkpoint=toy.Checkpoint(every="2 steps")))
except UserError as error:
    sys.exit(f"told: {error}")
"""


def child(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", script, *arguments]


def environment() -> dict[str, str]:
    here = Path(__file__).resolve().parents[1]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}


def test_a_limit_on_file_sizes_is_one_line_too(tmp_path: Path) -> None:
    command = child(LIMITED, str(tmp_path / "run"))
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "told: " in done.stderr and "File too large: raise the limit" in done.stderr
    assert not list((tmp_path / "run/checkpoints").glob(".*")), "half a file was left behind"


def test_of_a_copy_the_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    error = OSError(errno.EFBIG, os.strerror(errno.EFBIG), "original", None, "copy")
    assert str(files.reason(error, tmp_path)).startswith("copy: File too large")


def test_the_reason_inside_a_safetensors_error_is_found() -> None:
    found = files.as_os_error(ValueError("I/O error: No space left on device (os error 28)"), Path("x"))
    assert (found.errno, found.filename) == (errno.ENOSPC, "x")
    assert files.as_os_error(ValueError("of unknown origin"), Path("x")).errno == errno.EIO


def test_a_read_only_folder_is_refused_before_any_work(mounted: Any) -> None:
    disk = mounted("ro,size=1m")
    with pytest.raises(UserError, match="allowed: a folder that can be written"):
        preflight.check(points.of(command.read([f"run={disk}/run"])))
    with pytest.raises(UserError, match="Read-only file system: choose a folder"):
        toy.run(disk / "run", toy.make())


def test_a_divergence_between_two_log_lines_never_reaches_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.spoil(monkeypatch, 7)
    with pytest.raises(loop.Diverged, match=r"step 8.*last good checkpoint is .*last\.safetensors, of step 6"):
        toy.run(tmp_path, toy.make(log_every=1000, **OFTEN))
    found = Checkpoints(tmp_path / "checkpoints", toy.plans(toy.make(**OFTEN))).load()
    assert found is not None
    assert all(bool(t.isfinite().all()) for t in found[2].weights.values())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "failed" and "of step 6" in summary["reason"]


def test_skipped_steps_are_left_out_logged_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.spoil(monkeypatch, 3, 9)
    summary = toy.run(tmp_path, toy.make(on_divergence="skip"))
    assert summary["skipped_steps"] == 2
    train = [r for r in toy.records(tmp_path) if r["kind"] == "train"]
    assert [r["step"] for r in train if r.get("skipped")] == [3, 9]
    assert all(r["loss"] is None for r in train if r.get("skipped"))
    assert len(train) == 22 and all(bool(t.isfinite().all()) for t in toy.weights(tmp_path).values())


def test_a_run_that_only_skips_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.spoil(monkeypatch, *range(1, 100))
    with pytest.raises(loop.Diverged, match=f"{MOST_SKIPPED + 1} steps in a row"):
        toy.run(tmp_path, toy.make(budget="60 steps", on_divergence="skip"))


def test_skipping_costs_a_healthy_run_nothing(tmp_path: Path) -> None:
    toy.run(tmp_path / "stop", toy.make())
    toy.run(tmp_path / "skip", toy.make(on_divergence="skip"))
    same_end(tmp_path / "skip", tmp_path / "stop")


def test_without_a_whole_checkpoint_the_run_is_refused(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.make(**OFTEN))
    (tmp_path / "summary.json").unlink()
    for name in ("last.safetensors", "before.safetensors"):
        (tmp_path / "checkpoints" / name).write_bytes(b"not a checkpoint")
    with pytest.raises(UserError) as caught:
        toy.run(tmp_path, toy.make(**OFTEN))
    assert len(caught.value.problems) == 2


def test_data_that_changed_under_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "as it was"
    monkeypatch.setattr(toy.Source, "describe", lambda self: {"content": content})
    with monkeypatch.context() as patch, pytest.raises(loop.Stopped):
        toy.stop_at(patch, 5)
        toy.run(tmp_path, toy.make())
    content = "with a shard changed"
    with pytest.raises(UserError, match="the data that this run began with"):
        toy.run(tmp_path, toy.make())
    content = "as it was"
    toy.run(tmp_path, toy.make())


def streamed(folder: Path) -> Any:
    """Return the configuration of a toy run on a stream of documents."""
    shards = folder / "shards"
    if not shards.exists():
        shards.mkdir()
        lines = [json.dumps({"text": f"speech {n}: the state of the union is strong " * 4}) for n in range(300)]
        (shards / "train.jsonl").write_text("\n".join(lines) + "\n")
    model = GPT(vocab=300, position=16, embed=16, head=2, head_dim=8, ffn=32, layer=2)
    data = Hub(sequence=16, sources=[HubSource(path=str(shards))], streaming=True, block=64, validation_samples=4)
    return replace(toy.make(model=model, cache=str(folder / "cache"), **OFTEN), data=data)


def test_a_stream_that_stays_away_names_the_last_checkpoint_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.run(tmp_path / "whole", streamed(tmp_path))
    shutil.rmtree(tmp_path / "cache")  # no marks of the run before
    real, seen = StreamedText.batches, 0

    def batches(self: StreamedText, *where: Any) -> Iterator[Any]:
        nonlocal seen
        load = self.blocks.load

        def away() -> Any:
            raise ConnectionError("Server Disconnected")

        for batch in real(self, *where):
            seen += 1
            self.blocks.load = load if seen < 9 else away
            yield batch
            if seen >= 9:  # the connection that is open breaks off with the next rows
                self.blocks._reads(None).__next__()

    monkeypatch.setattr(shuffled_blocks, "WAITS", (0, 0))
    with monkeypatch.context() as patch, pytest.raises(Broken) as caught:
        patch.setattr(StreamedText, "batches", batches)
        toy.run(tmp_path / "cut", streamed(tmp_path))
    line = str(caught.value)
    assert "Server Disconnected" in line and "last.safetensors, of step 8" in line and "\n" not in line
    summary = json.loads((tmp_path / "cut/summary.json").read_text())
    assert summary["status"] == "failed" and summary["reason"] == line
    toy.run(tmp_path / "cut", streamed(tmp_path))
    same_end(tmp_path / "cut", tmp_path / "whole")


def test_a_cache_that_is_cut_while_a_run_reads_it_is_one_line_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(f"speech {n}: the state of the union is strong" for n in range(300)))
    model = GPT(vocab=300, position=16, embed=16, head=2, head_dim=8, ffn=32, layer=2)
    data = Files(sequence=16, files=[str(tmp_path / "corpus.txt")], format="text", document="line")
    config = replace(toy.make(model=model, cache=str(tmp_path / "cache"), **OFTEN), data=data)
    toy.run(tmp_path / "whole", config)
    real = PackedText.batches

    def batches(self: PackedText, *where: Any) -> Iterator[Any]:
        for number, batch in enumerate(real(self, *where)):
            if number == 5:
                os.truncate(self.folder / "train.bin", 0)
            yield batch

    with monkeypatch.context() as patch, pytest.raises(Broken, match=r"train\.bin was cut") as caught:
        patch.setattr(PackedText, "batches", batches)
        toy.run(tmp_path / "cut", config)
    assert "the last good checkpoint is" in str(caught.value) and "\n" not in str(caught.value)
    toy.run(tmp_path / "cut", config)
    assert "train.bin has 0 of its" in capsys.readouterr().err
    same_end(tmp_path / "cut", tmp_path / "whole")


def test_a_deleted_shard_is_named_although_its_tokens_are_cached(tmp_path: Path) -> None:
    shards = [tmp_path / f"{name}.txt" for name in "ab"]
    for shard in shards:
        shard.write_text("the state of the union is strong\n\n" * 400)
    given = [
        "data=text", f"data.files=[{shards[0]},{shards[1]}]", "data.sequence=16", "model.position=16",
        "model.vocab=300", "budget=20 steps", f"run={tmp_path}/run", f"cache={tmp_path}/cache",
    ]  # fmt: skip
    (point,) = points.of(command.read(given))
    preflight.check([point])
    shards[1].unlink()
    with pytest.raises(UserError, match=r"b\.txt"):
        preflight.check([point])


def test_a_clock_that_jumps_changes_no_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1e6 * (time.perf_counter() % 2))
    toy.run(tmp_path, toy.make())
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds) and seconds[0] >= 0 and seconds[-1] < 600


WORKERS = """
import os, pathlib, signal, sys
import torch, toy
from mlrun.train.parallel.processes import Lost
real, taken = torch.optim.AdamW.step, 0
def step(self, *args, **kwargs):
    global taken
    taken += 1
    if taken == 9 and os.environ["RANK"] == "1" and sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args, **kwargs)
torch.optim.AdamW.step = step
try:
    toy.run(pathlib.Path(sys.argv[1]), toy.make(checkpoint=toy.Checkpoint(every="2 steps")))
except Lost as error:
    sys.exit(f"told: {error}")
"""


def test_a_worker_that_dies_ends_the_others_and_the_run_resumes(tmp_path: Path) -> None:
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]

    def run(folder: str, how: str) -> int:
        command = [*launch, str(tmp_path / folder), how]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
        assert how == "live" or "told: another process of this run was lost (" in done.stderr
        return done.returncode

    assert run("cut", "die") != 0
    assert not (tmp_path / "cut/model").exists()
    assert run("cut", "live") == 0 and run("whole", "live") == 0
    same_end(tmp_path / "cut", tmp_path / "whole")
