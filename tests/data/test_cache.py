"""Prepared data is not believed: what is damaged is made anew, with a word, and a full disk is one line."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import equal, error_of, gpt

from mlrun import files
from mlrun.data import cache as cached
from mlrun.data import huggingface
from mlrun.data.source import Broken
from mlrun.data.text.files import Files
from mlrun.data.text.hub import Hub


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize("harm", [cut, zero, Path.unlink])
@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "tokenizer.json", "meta.json", "contents.json"])
def test_a_damaged_file_is_prepared_anew(
    spec: Files, tmp_path: Path, harm: Callable[[Path], None], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = spec.open(gpt(), 0, str(tmp_path))
    before, kept = next(whole.batches(0, 32)), (whole.folder / name).read_bytes()
    assert capsys.readouterr().err == ""
    harm(whole.folder / name)
    again = spec.open(gpt(), 0, str(tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert str(whole.folder) in line and line.endswith("it is prepared anew")
    assert equal(next(again.batches(0, 32)), before) and (again.folder / name).read_bytes() == kept
    assert spec.open(gpt(), 0, str(tmp_path)).samples == whole.samples and capsys.readouterr().err == ""


def test_what_a_killed_process_left_of_a_folder_is_removed_by_the_next_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = os.fork()
    if child == 0:
        cached.build(tmp_path / "data", lambda new: ((new / "half").touch(), os._exit(9))[0])
    os.waitpid(child, 0)
    (tmp_path / ".making-data2-x").mkdir()
    assert len(list(tmp_path.glob(".making-data-*/half"))) == 1
    with monkeypatch.context() as patch:  # without locks another process may be at it

        def none(*given: Any) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        patch.setattr(fcntl, "flock", none)
        cached.build(tmp_path / "data", lambda new: (new / "whole").touch())
    assert len(list(tmp_path.glob(".making-data-*"))) == 1
    shutil.rmtree(tmp_path / "data")
    cached.build(tmp_path / "data", lambda new: (new / "whole").touch())
    assert (tmp_path / "data/whole").exists() and not list(tmp_path.glob(".making-data-*"))
    assert (tmp_path / ".making-data2-x").exists(), "of another folder"


def test_a_damaged_trained_tokenizer_is_trained_anew(spec: Files, tmp_path: Path) -> None:
    before = next(spec.open(gpt(), 0, str(tmp_path)).batches(0, 32))
    (trained,) = (tmp_path / "tokenizers").glob("*/tokenizer.json")
    cut(trained)
    shutil.rmtree(tmp_path / "text")
    assert equal(next(spec.open(gpt(), 0, str(tmp_path)).batches(0, 32)), before)


def test_a_cache_cut_while_it_is_read_is_one_line_and_a_deleted_one_reads_on(spec: Files, tmp_path: Path) -> None:
    whole = list(islice(spec.open(gpt(), 0, str(tmp_path)).batches(0, 32), 40))
    source = spec.open(gpt(), 0, str(tmp_path))
    batches = source.batches(0, 32)
    assert equal(next(batches), whole[0])
    shutil.rmtree(tmp_path / "text")
    assert all(equal(a, b) for a, b in zip(batches, whole[1:20], strict=False))
    source = spec.open(gpt(), 0, str(tmp_path))
    cut(source.folder / "train.bin")
    with pytest.raises(Broken, match=r"train\.bin was cut while the run read it") as caught:
        list(islice(source.batches(0, 32), 40))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EROFS, os.strerror(errno.EROFS), "x"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_is_full_or_forbidden_is_one_line(tmp_path: Path, error: Exception) -> None:
    def make(folder: Path) -> None:
        (folder / "half").touch()
        raise error

    line = error_of(lambda: cached.build(tmp_path / "a" / "b", make))
    assert line.startswith("cache: ") and line.endswith("or choose another cache=...")
    assert list((tmp_path / "a").glob("*b/*")) == [] and not list((tmp_path / "a").glob(".making-*"))


def test_a_cache_that_no_file_system_makes_is_one_line() -> None:
    line = error_of(lambda: cached.build(Path("/proc/x/text/b"), lambda folder: None))
    assert (
        line
        == "cache=/proc/x/text: allowed: a folder that can be made; No such file or directory: choose another cache=..."
    )


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        raise ValueError("not the disk")

    with pytest.raises(ValueError, match="not the disk"):
        cached.build(tmp_path / "b", make)


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int, but: Path | None = None) -> None:
    """Let `flock` fail as where there are no locks; files in the folder `but` have theirs."""
    real = fcntl.flock

    def flock(file: Any, how: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"))
        if but is None or not name.is_relative_to(but):
            raise OSError(number, os.strerror(number))
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_serves_too(
    spec: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    cache, here = tmp_path / "cache", tmp_path / "here"
    here.mkdir()
    (cache / "text").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    without_locks(monkeypatch, number, but=here)
    source = spec.open(gpt(), 0, str(cache))
    assert source.samples > 0 and source.folder.is_relative_to(cache)
    assert capsys.readouterr().err.count(f"mlrun: {cache / 'text'}: this file system has no locks; ") == 1
    assert list(here.iterdir()) == []


def test_local_files_need_no_cache_of_hugging_face(
    spec: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file/no folder")
    assert next(iter(spec.corpus().documents("train")))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_nothing_has_locks_the_line_says_what_needs_them(
    spec: Files, stream: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    without_locks(monkeypatch, number)
    for asked in (spec, stream):
        line = error_of(partial(asked.open, gpt(), 0, str(tmp_path / "cache")))
        assert "\n" not in line and os.strerror(number) in line
        assert line.endswith(f"; {huggingface.LOCKS}")


def test_locks_of_before_are_not_waited_for_where_there_are_none_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "rows" / "train.parquet")
    hub = huggingface.HubSource(str(tmp_path / "rows"))
    assert len(cast(Any, hub.load(streaming=False))) == 2
    old = list((tmp_path / "datasets").rglob("*.lock"))
    assert old, "datasets leaves its locks"
    without_locks(monkeypatch, errno.ENOSYS)
    for ask in (partial(hub.load, streaming=False), partial(hub.json_files, streaming=False)):
        line = error_of(ask)
        assert str(tmp_path / "datasets") in line and "remove these empty files, or " in line
    for path in old:
        path.unlink()
    with pytest.warns(UserWarning, match="falling back to SoftFileLock"):
        assert len(cast(Any, hub.load(streaming=False))) == 2


def test_marks_that_are_damaged_or_gone_change_nothing(stream, tmp_path: Path) -> None:
    whole = next(stream.open(gpt(), 0, str(tmp_path / "one")).batches(500, 40))
    source = stream.open(gpt(), 0, str(tmp_path / "two"))
    next(source.batches(500, 40))
    marks = sorted(source.blocks.folder.glob("*.json"))
    cut(marks[-1])
    marks[-2].write_text(marks[-2].read_text().replace('"skip": ', '"skip": 1'))
    marks[-3].write_text("{}")
    assert equal(next(source.batches(500, 40)), whole)
    shutil.rmtree(tmp_path / "two")
    assert equal(next(source.batches(500, 40)), whole)


def test_a_full_disk_for_the_marks_is_one_line(stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stream.open(gpt(), 0, str(tmp_path / "one"))

    def full(file: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(Broken, match="No space left on device: free some space"):
        next(source.batches(0, 1000))


def test_windows_are_read_like_slices(tmp_path: Path) -> None:
    from mlrun.data.text.token_files import TokenFile, write

    ids = np.arange(70_000, 70_100, dtype=np.uint32)
    write([ids[:30], ids[30:]], tmp_path / "x.bin")
    file = TokenFile(tmp_path / "x.bin", "uint32")
    assert len(file) == 100
    assert file.windows(np.array([0, 7, 90]), 10).tolist() == [ids[s : s + 10].tolist() for s in (0, 7, 90)]
