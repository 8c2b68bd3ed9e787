"""Hub data sets, packed and streamed: any place resumes, a lost connection is opened again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from corpora import ROOT, equal, error_of, gpt, hub_folder, problem, sentences

from mlrun.data import shuffled_blocks as data_stream
from mlrun.data.huggingface import HubSource
from mlrun.data.text.files import Files
from mlrun.data.text.hub import Hub
from mlrun.data.text.sotu import Sotu


def test_hub_data_packs_like_local_files(tmp_path: Path, cache: str, hub_cache: None, spec: Files) -> None:
    lines = sentences(400)
    names = [hub_folder(tmp_path / "a", lines[:150], 1), hub_folder(tmp_path / "b", lines[150:], 1)]
    data = Hub(sequence=16, sources=[HubSource(path=name) for name in names], held_out=0.05)
    source = data.open(gpt(), 0, cache)
    assert equal(next(source.batches(0, 32)), next(spec.open(gpt(), 0, cache).batches(0, 32)))


def test_a_folder_in_the_home_of_the_user_is_one_like_any_other(
    tmp_path: Path, cache: str, hub_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = hub_folder(tmp_path / "a", sentences(400), 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    there, at_home = (Hub(sequence=16, sources=[HubSource(path=path)]).open(gpt(), 0, cache) for path in (name, "~/a"))
    assert equal(next(there.batches(0, 32)), next(at_home.batches(0, 32)))
    assert there.describe()["content"] == at_home.describe()["content"]


def test_weights_mix_the_sources_each_document_once(tmp_path: Path, hub_cache: None) -> None:
    lines = sentences(90)
    names = [hub_folder(tmp_path / "a", lines[:30], 1), hub_folder(tmp_path / "b", lines[30:], 2)]
    data = Hub(sources=[HubSource(path=name) for name in names], weights=[1, 2], held_out=0.01)
    texts = [row["text"] for row in data.corpus().rows()]
    assert sorted(texts) == sorted(lines) and texts != lines
    assert 5 < sum(text in lines[:30] for text in texts[:45]) < 25


def test_a_stream_resumes_anywhere_with_and_without_its_marks(stream: Hub, tmp_path: Path) -> None:
    source = stream.open(gpt(), 0, str(tmp_path / "cache"))
    assert source.samples is None
    run = source.batches(0, 10)
    whole = {k: np.concatenate(v) for k, v in _columns(islice(run, 100)).items()}  # more than an epoch
    for cache in ("cache", "elsewhere"):
        for start in (0, 7, 64, 333, 900):
            batch = next(stream.open(gpt(), 0, str(tmp_path / cache)).batches(start, 25))
            assert equal({k: v[start : start + 25] for k, v in whole.items()}, {k: v.numpy() for k, v in batch.items()})


def _columns(batches) -> dict[str, list]:
    columns: dict[str, list] = {}
    for batch in batches:
        for name, values in batch.items():
            columns.setdefault(name, []).append(values.numpy())
    return columns


def test_resuming_a_stream_reads_from_the_nearest_mark(stream: Hub, tmp_path: Path) -> None:
    source = stream.open(gpt(), 0, str(tmp_path))
    read: list[int] = []
    expand = source.blocks.expand
    source.blocks.expand = lambda rows, carry: (read.extend(rows), expand(rows, carry))[1]
    next(source.batches(3000, 1))
    from_the_beginning = len(read)
    next(source.batches(3000, 1))
    assert from_the_beginning > 250 and len(read) - from_the_beginning <= 128


def test_a_stream_stores_no_copy_and_never_trains_on_what_it_holds_out(stream: Hub, tmp_path: Path) -> None:
    source = stream.open(gpt(), 0, str(tmp_path / "cache"))
    corpus = stream.corpus()
    held, kept = (set(corpus.documents(part)) for part in ("validation", "train"))
    seen = source.made.tokenizer.decode(np.concatenate(list(source.blocks._from(0).__next__())).tolist())
    assert len(held) == 12 and not held & kept and not any(text in seen for text in held)
    assert sum(len(batch["tokens"]) for batch in source.validation(4)) == 6
    files = [f for f in source.folder.rglob("*") if f.suffix == ".bin"]
    assert [f.name for f in files] == ["validation.bin"] and files[0].stat().st_size < 1000


class Flaky:
    """A stream whose connection is lost after so many rows of each opening, as many times as it is told."""

    def __init__(self, dataset: Any, rows: int, times: list[int]) -> None:
        self.dataset, self.rows, self.times = dataset, rows, times

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self.dataset):
            if number == self.rows and self.times[0] > 0:
                self.times[0] -= 1
                raise ConnectionError("Server Disconnected")
            yield row

    def state_dict(self) -> dict[str, Any]:
        return self.dataset.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dataset.load_state_dict(state)


def test_a_stream_that_breaks_off_is_opened_again_where_it_was(
    stream: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(data_stream.time, "sleep", waited.append)
    whole = list(islice(stream.open(gpt(), 0, str(tmp_path / "one")).batches(0, 32), 100))
    source = stream.open(gpt(), 0, str(tmp_path / "two"))
    load, times = source.blocks.load, [3]
    source.blocks.load = lambda: Flaky(load(), 70, times)
    broken = list(islice(source.batches(0, 32), 100))
    assert times == [0] and waited == [data_stream.WAITS[0]] * 3, "rows that arrive end the patience of before"
    assert capsys.readouterr().err.count("trying again in") == 3
    assert all(equal(a, b) for a, b in zip(whole, broken, strict=True))


def test_a_stream_that_stays_away_is_given_up(stream: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(data_stream.time, "sleep", waited.append)
    source = stream.open(gpt(), 0, str(tmp_path))
    load = source.blocks.load
    source.blocks.load = lambda: Flaky(load(), 0, [10**9])
    with pytest.raises(data_stream.Broken, match="Server Disconnected") as caught:
        next(source.batches(0, 10))
    assert waited == list(data_stream.WAITS) and "\n" not in str(caught.value)


def test_a_shard_that_cannot_be_read_is_not_tried_again(
    stream: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_stream.time, "sleep", lambda seconds: pytest.fail("it waits"))
    source = stream.open(gpt(), 0, str(tmp_path / "cache"))
    (tmp_path / "a" / "train-0.jsonl").write_text('{"text": "a"}\n{"te')
    with pytest.raises(data_stream.Broken, match=r"train-0\.jsonl cannot be read \(line 2: .*; repair or replace it"):
        list(islice(source.batches(0, 10), 60))


def test_json_on_the_hub_is_read_like_json_here(tmp_path: Path) -> None:
    """Only the named column matters and nothing is converted; once read, it is there without the hub too."""
    program = [sys.executable, str(Path(__file__).with_name("loopback_hub.py")), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for read in found.values():
        assert read["texts"] == ["a", "b", "2024-01-01"]
    assert found["streamed"]["facts"]["commit"] == "1" * 40
    assert found["packed"] == found["away"]
    assert [file["name"] for file in found["packed"]["facts"]["files"]] == ["a.jsonl", "b.jsonl"]


def test_hub_settings_are_checked() -> None:
    source = [HubSource(path="a/b")]
    assert "data.weights=[1.0, 2.0]" in problem(Hub(sequence=16, sources=source, weights=[1.0, 2.0]))
    assert "data.validation_samples=null" in problem(Hub(sequence=16, sources=source, streaming=True))
    assert "data.sources=[]" in problem(Hub(sequence=16, sources=[]))


@pytest.mark.parametrize("streaming", [False, True])
def test_offline_is_one_line_with_the_remedy(streaming: bool, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    sources = [HubSource(path="nobody/nothing", name="x")]
    data = Hub(sequence=16, sources=sources, streaming=streaming, validation_samples=4)
    assert "nobody/nothing x train cannot be loaded" in (line := error_of(lambda: data.open(gpt(), 0, cache)))
    assert "go online" in line
    named = Sotu(sequence=16, tokenizer="nobody/nothing")
    assert named.problems(gpt()) == [] and "go online once" in error_of(lambda: named.open(gpt(), 0, cache))


def answer(status: int) -> Exception:
    """Return what `huggingface_hub` raises for an answer of the hub, without the packages that it talks through."""
    error = OSError(f"{status} Client Error")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ConnectionError("no route"), "go online"),
        (TimeoutError("read timed out"), "go online"),
        (type("ConnectError", (Exception,), {"__module__": "httpx"})("no address"), "go online"),
        (answer(429), "go online"),
        (answer(503), "go online"),
        (answer(404), "correct its path, name, split or revision"),
    ],
)
def test_a_revision_that_the_hub_does_not_tell_is_one_line(
    error: Exception, remedy: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data set opens, and then the hub is gone, or does not know the revision."""

    def asked(self: object, path: str, revision: str | None, timeout: float) -> None:
        raise error

    for opens in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(f"datasets.{opens}", lambda *args, **settings: None)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", asked)
    sources = [HubSource(path="nobody/nothing", revision="v9")]
    data = Hub(sequence=16, sources=sources, streaming=True, validation_samples=4)
    line = error_of(lambda: data.open(gpt(), 0, cache))
    assert line.startswith("data.sources: nobody/nothing train cannot be loaded (") and remedy in line


def test_without_a_network_a_streamed_run_ends_before_it_begins(tmp_path: Path) -> None:
    small = ["model.layer=2", "model.embed=16", "model.head=2", "model.head_dim=8", "model.ffn=32", "model.vocab=280"]
    given = ["data=openwebtext", "data.streaming=true", "data.validation_samples=8", "data.tokenizer=null"]
    command = [sys.executable, "-m", "mlrun", *small, *given, "data.sequence=16", "budget=20 steps", "run=a/b"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    (tmp_path / "work").mkdir()
    done = subprocess.run(command, cwd=tmp_path / "work", env=env, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "Skylion007/openwebtext train cannot be loaded" in line and "go online" in line
    assert list((tmp_path / "work").iterdir()) == []
