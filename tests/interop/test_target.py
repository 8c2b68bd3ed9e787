"""Claims on the folder that a task writes: apart from what is read, whole or not at all, and nothing left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_interop import ours_at
from test_models import TINY

from mlrun.convert import coalesce_folder, decoalesce_folder, interpolate_folders
from mlrun.errors import UserError
from mlrun.interop.folders import export_hf, import_hf
from mlrun.interop.read import open_folder
from mlrun.interop.target import fresh, judge
from mlrun.multilevel.coarsening.uniform import Uniform

HALF = Uniform(width=2, ffn=2, head=2, depth=2)


@pytest.fixture
def gpt(tmp_path: Path) -> Path:
    """Return a folder that holds a run of ours and its export."""
    ours_at(tmp_path / "run", TINY["gpt"])
    export_hf(tmp_path / "run", tmp_path / "hf")
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def refused(folder: Path, call: Callable[[], None]) -> str:
    """Return the one line of a refusal, having seen that nothing changed."""
    before = everything(folder)
    with pytest.raises(UserError) as caught:
        call()
    assert everything(folder) == before
    (line,) = caught.value.problems
    return line


@pytest.mark.parametrize("place", ["model", "new", "a/b"])
def test_a_target_inside_its_source_is_refused(place: str, gpt: Path) -> None:
    hf, run = gpt / "hf", gpt / "run"
    (hf / "inner").symlink_to(gpt / "elsewhere", target_is_directory=True)
    calls: list[Callable[[], None]] = [
        lambda: import_hf(hf, hf / place),
        lambda: coalesce_folder(hf, hf / place, HALF),
        lambda: decoalesce_folder(hf, hf / place, HALF),
        lambda: decoalesce_folder(hf, run / place, HALF, run),
        lambda: interpolate_folders(hf, run, 0.5, hf / place),
        lambda: interpolate_folders(hf, run, 0.5, run / place),
        lambda: export_hf(run, run / place),
        lambda: export_hf(run / "model", run / "model" / place),
    ]
    for call in calls:
        assert refused(gpt, call).startswith("target=")


def test_a_source_inside_its_target_is_refused(gpt: Path) -> None:
    assert "does not hold it" in refused(gpt, lambda: export_hf(gpt / "run" / "model", gpt / "run"))
    assert "does not hold it" in refused(gpt, lambda: import_hf(gpt / "hf", gpt))
    link = gpt / "link"
    link.symlink_to(gpt / "hf", target_is_directory=True)
    assert "does not hold it" in refused(gpt, lambda: import_hf(gpt / "hf", link / "new"))


@pytest.mark.parametrize("name", ["config.json", "config.yaml"])
def test_a_folder_that_would_stand_for_another_model_is_refused(name: str, gpt: Path) -> None:
    """Whoever reads a folder reads the `model/` in it first."""
    (gpt / "other").mkdir()
    (gpt / "other" / name).write_text("{}")
    assert "would be read as the model" in refused(gpt, lambda: export_hf(gpt / "run", gpt / "other" / "model"))


def test_an_empty_folder_stays_what_it_is(gpt: Path) -> None:
    (gpt / "disk").mkdir()
    before = (gpt / "disk").stat().st_ino
    (gpt / "link").symlink_to(gpt / "disk", target_is_directory=True)
    coalesce_folder(gpt / "hf", gpt / "link", HALF)
    assert (gpt / "link").is_symlink() and (gpt / "disk").stat().st_ino == before
    assert open_folder(gpt / "disk").model.embed == 8  # type: ignore[attr-defined]
    assert not [path for path in (gpt / "disk").iterdir() if path.name.startswith(".")]


def test_a_link_to_nowhere_is_refused(gpt: Path) -> None:
    (gpt / "link").symlink_to(gpt / "nowhere")
    (gpt / "loop").symlink_to(gpt / "loop")
    assert "a new or an empty folder" in refused(gpt, lambda: import_hf(gpt / "hf", gpt / "link"))
    assert refused(gpt, lambda: import_hf(gpt / "hf", gpt / "loop")).startswith("target=")


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow beyond 20 kB, as on a disk that fills while it is written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("kind", ["new", "deep/new", "empty"])
def test_a_disk_that_fills_is_one_line_and_leaves_nothing(kind: str, gpt: Path, small_files: None) -> None:
    if kind == "empty":
        (gpt / kind).mkdir()
    line = refused(gpt, lambda: import_hf(gpt / "hf", gpt / kind))
    assert "File too large: raise the limit" in line


KILLED = """
import sys, time
from pathlib import Path
from mlrun.interop.target import fresh
with fresh(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("there", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("exists", [False, True])
def test_what_a_killed_process_left_is_removed_by_the_next(exists: bool, gpt: Path) -> None:
    target = gpt / "place" / "new"
    target.parent.mkdir()
    if exists:
        target.mkdir()
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED, str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    at_work = everything(target.parent)
    if exists:
        assert "a new or an empty folder" in refused(gpt, lambda: judge(target))
    else:
        judge(target)
    assert everything(target.parent) == at_work, "a process that lives keeps its folder"
    process.kill()
    process.wait()
    import_hf(gpt / "hf", target)
    assert [path.name for path in target.parent.rglob(".*")] == []
    assert open_folder(target).model == TINY["gpt"]


def test_what_was_begun_goes_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), fresh(tmp_path / "a" / "b") as folder:
        (folder / "half").write_text("half")
        raise KeyError
    assert not list(tmp_path.iterdir())
