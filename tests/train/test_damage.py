"""Whatever happened to a run's files, it ends bitwise as it would have, or says in one line what is wrong."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pair
import pytest
import torch
import toy
from kills import same_end
from pair import Part
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlrun import files
from mlrun.errors import UserError
from mlrun.log.jsonl import Jsonl
from mlrun.report.read import read, read_all
from mlrun.train import lock, loop
from mlrun.train.checkpoint import layout, tensor_files
from mlrun.train.checkpoint.store import ALONE, Checkpoints

OFTEN = {"checkpoint": toy.Checkpoint(every="2 steps")}
HARDWARE: dict[str, dict[str, Any]] = {"whole": {"sharding": "none"}, "shards": {"sharding": "fsdp"}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    pair.live(Part(str(folder), "carry", {}))
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return runs that were stopped in their second stage, with two checkpoints, by the format of these."""
    folders = {name: tmp_path_factory.mktemp(name) for name in HARDWARE}
    for name, folder in folders.items():
        if pair.possible(HARDWARE[name]):
            pair.live(Part(str(folder), "carry", HARDWARE[name], stop=4))
    return folders


@pytest.fixture
def cut(tmp_path: Path, stopped: dict[str, Path]) -> Path:
    """Return a copy of a run that was stopped, of whole files."""
    return Path(shutil.copytree(stopped["whole"], tmp_path / "run"))


def go_on(folder: Path) -> None:
    pair.live(Part(str(folder), "carry", {}))


def refusal(folder: Path) -> str:
    """Return the one line that refuses a run."""
    with pytest.raises(UserError) as caught:
        go_on(folder)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", toy.plans(pair.config("carry")))


# Damaged checkpoints


def state(found: Any) -> tuple[Any, dict[str, bytes], Any]:
    """Return a loaded checkpoint as values that compare bitwise."""
    progress, _, current, kept, _ = found
    snapshots = {"current": current, **kept}
    tensors = {
        f"{key}/{kind}/{name}": tensor.numpy().tobytes()
        for key, snapshot in snapshots.items()
        for kind, named in snapshot.tensors.items()
        for name, tensor in named.items()
    }
    return progress, tensors, {key: snapshot.optimizer_steps for key, snapshot in snapshots.items()}


def places(path: Path, draw: random.Random) -> Iterator[int]:
    """Yield places in a file to damage: all over its header, and here and there in its tensors."""
    size = path.stat().st_size
    header = size if path.suffix == ".json" else 8 + int.from_bytes(path.read_bytes()[:8], "little")
    yield from draw.sample(range(header), min(header, 400))
    yield from draw.sample(range(header, size), min(size - header, 40))


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("whole", "last.safetensors"),
        ("shards", "last.sharded/checkpoint.json"),
        ("shards", "last.sharded/shard-00000.safetensors"),
    ],
)
def test_a_flipped_bit_anywhere_is_noticed_or_without_effect(
    stopped: dict[str, Path], tmp_path: Path, form: str, name: str
) -> None:
    pair.needs(HARDWARE[form])
    shutil.copytree(stopped[form] / "checkpoints", tmp_path / "checkpoints")
    for before in layout.present(tmp_path / "checkpoints", layout.BEFORE):
        files.remove(before)
    path, draw = tmp_path / "checkpoints" / name, random.Random(20240407)
    genuine, expected, noticed = path.read_bytes(), state(checkpoints(tmp_path).load()), 0
    for place in places(path, draw):
        damaged = bytearray(genuine)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert state(checkpoints(tmp_path).load()) == expected, place
        except UserError as error:
            noticed += 1
            assert len(error.problems) == 1 and name.split("/", maxsplit=1)[0] in str(error)
    assert noticed > 350


def rewritten(path: Path, change: Callable[[dict[str, str]], None], signed: bool) -> None:
    """Change what a checkpoint says of itself, its tensors as they are; `signed` as its author could."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    _, metadata = tensor_files.read(path)
    change(metadata)
    if signed:
        metadata["sha256"] = tensor_files.checksum(tensors, metadata)
    save_file(tensors, path, metadata)


def step_38(metadata: dict[str, str]) -> None:
    metadata["progress"] = json.dumps({**json.loads(metadata["progress"]), "step": 38})


def stage_99(metadata: dict[str, str]) -> None:
    metadata["progress"] = json.dumps({**json.loads(metadata["progress"]), "stage": 99})


def no_progress(metadata: dict[str, str]) -> None:
    del metadata["progress"]


def a_field_less(metadata: dict[str, str]) -> None:
    progress = json.loads(metadata["progress"])
    del progress["best"]
    metadata["progress"] = json.dumps(progress)


def other_steps(metadata: dict[str, str]) -> None:
    metadata["optimizer_steps"] = json.dumps({"current": -1})


def no_json(metadata: dict[str, str]) -> None:
    metadata["progress"] = "[" * 50_000


DAMAGES = [step_38, stage_99, no_progress, a_field_less, other_steps, no_json]


@pytest.mark.parametrize("signed", [False, True], ids=["", "signed"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_header_where_no_run_can_be_falls_back_to_the_checkpoint_before(
    cut: Path, damage: Callable[[dict[str, str]], None], signed: bool
) -> None:
    expected = state(checkpoints(cut).load())
    shutil.copy(cut / "checkpoints/last.safetensors", cut / "checkpoints/before.safetensors")
    rewritten(cut / "checkpoints/last.safetensors", damage, signed)
    found = checkpoints(cut).load()
    assert found is not None and found[4] is not None and "last.safetensors" in found[4]
    assert state(found) == expected


def no_kept_model(tensors: dict[str, Tensor], record: dict[str, int]) -> str:
    for name in [name for name in tensors if name.startswith("kept/")]:
        del tensors[name]
    del record["kept/1"]
    return "the model that waits at level 1 is missing"


def of_another_name(tensors: dict[str, Tensor], record: dict[str, int]) -> str:
    name = next(name for name in tensors if name.startswith("current/weights/"))
    tensors[f"{name}s"] = tensors.pop(name)
    return "its weights are not those of level 2"


def of_another_shape(tensors: dict[str, Tensor], record: dict[str, int]) -> str:
    name = next(name for name in tensors if name.startswith("kept/1/weights/"))
    tensors[name] = tensors[name].reshape(-1)[:3].clone()
    return "the weights kept for level 1 are not of that level"


@pytest.mark.parametrize("change", [no_kept_model, of_another_name, of_another_shape])
def test_models_that_no_run_has_there_fall_back_to_the_checkpoint_before(
    cut: Path, change: Callable[[dict[str, Tensor], dict[str, int]], str]
) -> None:
    """Even where the checksum is right: a model that is missing would only have changed the loss."""
    expected = state(checkpoints(cut).load())
    last = Path(shutil.copy(cut / "checkpoints/last.safetensors", cut / "checkpoints/before.safetensors"))
    last = last.with_name("last.safetensors")
    tensors, metadata = tensor_files.read(last)
    steps = json.loads(metadata["optimizer_steps"])
    why = change(tensors, steps)
    told = {key: value for key, value in metadata.items() if key != "sha256"}
    tensor_files.write(last, tensors, told | {"optimizer_steps": json.dumps(steps)})
    found = checkpoints(cut).load()
    assert found is not None and found[4] is not None and f"last.safetensors: {why}" in found[4]
    assert state(found) == expected


def test_a_damaged_header_leads_to_the_same_end(cut: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewritten(cut / "checkpoints/last.safetensors", step_38, signed=False)
    go_on(cut)
    assert "last.safetensors: it differs from its checksum" in capsys.readouterr().out
    same_end(cut, whole)


def test_both_damaged_are_told_a_line_each(cut: Path) -> None:
    rewritten(cut / "checkpoints/last.safetensors", stage_99, signed=False)
    (cut / "checkpoints/before.safetensors").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        go_on(cut)
    assert ["last" in line or "before" in line for line in caught.value.problems] == [True, True]


# Lost or damaged files


def test_removed_checkpoints_do_not_start_a_run_over(cut: Path) -> None:
    log = (cut / "log.jsonl").read_bytes()
    for path in (cut / "checkpoints").iterdir():
        files.remove(path)
    assert "this run was begun and its checkpoints are gone; restore" in refusal(cut)
    (cut / "checkpoints").rmdir()
    assert "this run was begun and its checkpoints are gone; restore" in refusal(cut)
    assert (cut / "log.jsonl").read_bytes() == log
    (cut / "log.jsonl").unlink()
    assert "summary.json: this run was begun" in refusal(cut)
    assert not (cut / "checkpoints").exists()


def test_a_run_killed_before_its_first_checkpoint_starts_over_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", die)
        toy.run(tmp_path / "cut", toy.make(**OFTEN))
    toy.run(tmp_path / "cut", toy.make(**OFTEN))
    assert "no checkpoint was due before the run ended after step 2; it starts over" in capsys.readouterr().out
    toy.run(tmp_path / "whole", toy.make(**OFTEN))
    same_end(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("garbage", [b'{"kind": "tra\n', b"\x00\xff\n", b"[1]\n", b"[" * 50_000 + b"\n"])
def test_a_garbage_line_in_the_log_is_found_before_training(
    cut: Path, monkeypatch: pytest.MonkeyPatch, garbage: bytes
) -> None:
    lines = (cut / "log.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = garbage if len(garbage) > len(lines[2]) else garbage[:-1].ljust(len(lines[2]) - 1) + b"\n"
    (cut / "log.jsonl").write_bytes(b"".join(lines))
    monkeypatch.setattr(loop, "_gradients", None)
    line = refusal(cut)
    assert "log.jsonl" in line and ("line 3 is no record" in line or len(garbage) > 50_000)


# What follows from code: the plan, and what runs


@pytest.mark.parametrize(
    ("part", "key", "told"),
    [
        ("levels", "flops_per_sample", "level 1: flops_per_sample=7: allowed: "),
        ("stages", "steps", "stage 1: steps=7: allowed: "),
        ("stages", "lr_scale", "stage 1: lr_scale=7: allowed: "),
    ],
)
def test_a_plan_that_is_another_now_is_refused(cut: Path, whole: Path, part: str, key: str, told: str) -> None:
    """As an mlrun of another version, or a model of one's own whose FLOPs were corrected, would plan it."""
    genuine = (cut / "plan.json").read_text()
    plan = json.loads(genuine)
    plan[part][0][key] = 7
    (cut / "plan.json").write_text(json.dumps(plan))
    before = (cut / "log.jsonl").read_bytes()
    assert told in refusal(cut) and (cut / "log.jsonl").read_bytes() == before
    (cut / "plan.json").write_text(json.dumps({**plan, part: plan[part][1:]}))
    assert f"other {part}" in refusal(cut)
    (cut / "plan.json").write_text(genuine[:90])
    assert "remove it" in refusal(cut)
    (cut / "plan.json").unlink()
    go_on(cut)
    same_end(cut, whole)
    assert json.loads((cut / "plan.json").read_text()) == json.loads(genuine)


def test_a_start_on_something_else_is_told(cut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = cut / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[0] = lines[0].replace(b'"torch": "2', b'"torch": "1')
    log.write_bytes(b"".join(lines))
    assert json.loads(lines[0])["torch"] != torch.__version__
    go_on(cut)
    said = capsys.readouterr().out
    assert f"goes on otherwise than before (torch: 1{torch.__version__[1:]}, now {torch.__version__})" in said


def test_a_start_on_the_same_tells_nothing(cut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(cut)
    assert "otherwise" not in capsys.readouterr().out


def test_a_log_keeps_whole_records_only(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"kind": "val"}\n{"kind": "val"}\n')
    for keep in (5, 20, 33):
        with pytest.raises(UserError):
            Jsonl(path, keep)
    Jsonl(path, 16).close()
    assert path.read_bytes() == b'{"kind": "val"}\n'


@pytest.mark.parametrize("damage", [b'{"status": "fin', b"\xff", b"[]", b'{"a":' * 50_000, b""])
def test_a_damaged_summary_is_one_line(cut: Path, damage: bytes) -> None:
    (cut / "summary.json").write_bytes(damage)
    line = refusal(cut)
    assert "summary.json: " in line and "remove it, and the run goes on" in line


@pytest.mark.parametrize(
    "name", ["plan.json", "config.yaml", "log.jsonl", "checkpoints/last.safetensors", "checkpoints/best.safetensors"]
)
def test_a_folder_in_the_place_of_a_file_is_one_line(cut: Path, name: str) -> None:
    (cut / name).unlink()
    (cut / name).mkdir()
    assert name in refusal(cut)


def test_a_finished_run_whose_model_is_gone_says_so(whole: Path, tmp_path: Path, capsys: Any) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    go_on(folder)
    assert "its model is gone" not in capsys.readouterr().out
    (folder / "model/model.safetensors").unlink()
    go_on(folder)
    assert "the run is finished, but its model is gone" in capsys.readouterr().out


@pytest.mark.parametrize("what", [".", "checkpoints"])
def test_a_folder_that_is_removed_under_a_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    real = loop.record

    def record(job: Any, stage: Any, step: int, kind: str, **values: Any) -> dict[str, Any]:
        if step == 7:
            shutil.rmtree(tmp_path / "run" / what, ignore_errors=True)
        return real(job, stage, step, kind, **values)

    monkeypatch.setattr(loop, "record", record)
    with pytest.raises(UserError, match="it was removed while the run used it; put the folder back") as caught:
        toy.run(tmp_path / "run", toy.make(**OFTEN))
    assert len(caught.value.problems) == 1
    assert what != "." or not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [3, 7, 22])
def test_a_folder_that_is_made_anew_under_a_run_is_one_line_and_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = tmp_path / "run"

    def anew() -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        for name in (".lock", "config.yaml"):
            (folder / name).write_text("another's")
        (folder / "checkpoints").mkdir()

    toy.at_event(monkeypatch, step, anew)
    with pytest.raises(UserError, match="it was removed and made anew while the run used it") as caught:
        toy.run(folder, toy.make(**OFTEN))
    assert len(caught.value.problems) == 1
    assert sorted(path.name for path in folder.rglob("*")) == [".lock", "checkpoints", "config.yaml"]
    assert (folder / "config.yaml").read_text() == "another's"


def test_what_killed_saves_left_is_removed_by_the_next_holder(cut: Path, whole: Path) -> None:
    (cut / "model").mkdir()
    left = [
        files.aside(cut / "summary.json"),
        files.aside(cut / "checkpoints/last.safetensors"),
        cut / "checkpoints/.last.safetensors.12345",
        files.aside(cut / "model/model.safetensors"),
    ]
    for path in left:
        path.write_bytes(b"half a file")
    for path in (cut / "checkpoints/.last.sharded.tmp", cut / "model/.model.safetensors.parts"):
        path.mkdir()
        (path / "half a file").touch()
    go_on(cut)
    hidden = {path.name for path in cut.rglob(".*")}
    assert hidden == {".lock"}
    same_end(cut, whole)


def test_leftovers_are_ours_alone(tmp_path: Path) -> None:
    others = [".lock", ".hydra", ".wandb-id", ".keep.txt", "note.tmp", "last.safetensors"]
    for name in others:
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


# The lock


def test_a_second_process_is_refused_and_leaves_what_the_first_one_writes(tmp_path: Path) -> None:
    with lock.claimed(tmp_path, ALONE):
        unfinished = files.aside(tmp_path / "summary.json")
        unfinished.touch()
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(lock.InUse, match="a folder that no other process uses"):
            toy.run(tmp_path, toy.make())
        assert sorted(tmp_path.rglob("*")) == before
    with lock.claimed(tmp_path, ALONE):
        assert not unfinished.exists()


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(tmp_path: Path) -> None:
    target = tmp_path / "precious.txt"
    target.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(target)
    with pytest.raises(UserError, match=r"\.lock: neither a link nor a folder"):
        toy.run(tmp_path / "run", toy.make())
    assert target.read_text() == "precious"


def test_the_lock_keeps_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("a note")
    with lock.claimed(tmp_path, ALONE):
        pass
    assert (tmp_path / ".lock").read_text() == "a note"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_once_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def flock(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.claimed(tmp_path, ALONE):
        assert capsys.readouterr().out.count("this file system has no locks") == 1


def test_a_folder_is_free_unless_another_process_holds_it(tmp_path: Path) -> None:
    assert lock.free(tmp_path / "absent") and lock.free(tmp_path)
    with lock.claimed(tmp_path, ALONE):
        assert not lock.free(tmp_path)
    assert lock.free(tmp_path)


# Files that somebody else wrote


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a":' * 50_000, "nested too deep|cannot be read"),
        (b"[1]", "not a JSON object"),
        (b"\xff", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_json_that_is_no_file_of_ours_is_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"config.json: .*({told})") as caught:
        files.read_json(path)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[" * 200_000, "nested too deep"),  # which ends the process that reads it with libyaml
        (b'{"a":' * 1_000, "nested too deep"),
        (b"- " * 100_000 + b"a", "nested too deep"),
        (b"\n".join(b" " * depth + b"a:" for depth in range(300)), "nested too deep"),
        (b"- 1", "no settings in it"),
        (b"a: [", "cannot be read as YAML"),
        (b"\xff", "cannot be read as YAML"),
        (b"", "no settings in it"),
    ],
)
def test_yaml_that_is_no_file_of_ours_is_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"config.yaml: .*{told}") as caught:
        files.read_yaml(path)
    (line,) = caught.value.problems
    assert "\n" not in line and line.endswith("restore the file")


def test_yaml_is_read_by_what_tells_that_it_is_deep() -> None:
    """libyaml itself ends the process, so whoever reads a run's settings asks `files`."""
    package = Path(files.__file__).parent
    direct = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"CSafeLoader|yaml\.(safe_)?load\(|OmegaConf\.load\(", path.read_text())
    }
    assert direct == {"files.py", "cli/initial.py"}  # the latter reads what we ship


def test_json_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "JSON_BYTES", 10)
    monkeypatch.setattr(files, "YAML_BYTES", 10)
    (tmp_path / "config.json").write_text('{"key": "a long value"}')
    with pytest.raises(UserError, match="23 bytes are no file of ours"):
        files.read_json(tmp_path / "config.json")
    with pytest.raises(UserError, match="23 bytes are no file of ours"):
        files.read_yaml(tmp_path / "config.json")


def test_a_safetensors_header_that_is_nested_too_deep_is_one_line(tmp_path: Path) -> None:
    header = b'{"a":' * 50_000
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="no safetensors file") as caught:
        tensor_files.open_shards(tmp_path)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("name", ["plan.json", "summary.json", "log.jsonl", "config.yaml"])
def test_a_report_names_the_run_whose_files_are_nested_too_deep(tmp_path: Path, name: str) -> None:
    recorded = Path(__file__).resolve().parents[1] / "report" / "recorded" / "scratch"
    shutil.copytree(recorded, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b'{"a":' * 5_000 + b"\n")
    with pytest.raises(UserError, match="a run folder as mlrun writes it"):
        read(tmp_path / "run")


@pytest.mark.parametrize("damage", [b'{"status": "fin', b"\xff", b"[]", b"", b"{}", b'{"status": "finished"}'])
def test_a_report_names_a_damaged_summary_and_what_to_do(tmp_path: Path, damage: bytes) -> None:
    shutil.copytree(Path(__file__).resolve().parents[1] / "report" / "recorded" / "scratch", tmp_path / "run")
    (tmp_path / "run/summary.json").write_bytes(damage)
    with pytest.raises(UserError) as caught:
        read_all([tmp_path / "run"])
    (line,) = caught.value.problems
    assert "leave it out or restore it" in line and f"{tmp_path / 'run/summary.json'}: " in line
