"""What a run says of its data: equal when it is the same data, whatever the files are called, and never otherwise."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
from corpora import bert, gpt, sentences, write_lines

from mlrun.data.text.files import Files
from mlrun.data.text.hub import Hub
from mlrun.models.gpt import GPT


def identity(data: Any, folder: Path, model: Any = None) -> dict[str, str]:
    found: dict[str, str] = data.open(gpt() if model is None else model, 0, str(folder / "cache")).describe()[
        "identity"
    ]
    assert found.keys() == {"train", "held_out", "tokenizer", "preprocessing"}
    return found


def differing(a: dict[str, str], b: dict[str, str]) -> set[str]:
    return {key for key in a if a[key] != b[key]}


def files(file: Path, documents: list[str], **changes: Any) -> Files:
    file.parent.mkdir(exist_ok=True)
    write_lines(file, documents)
    return Files(**{"sequence": 16, "files": [str(file)], "format": "text", "document": "line", **changes})


def test_two_corpora_of_one_name_differ_and_one_corpus_of_two_names_does_not(tmp_path: Path) -> None:
    first = identity(files(tmp_path / "a" / "corpus.txt", sentences(100)), tmp_path)
    again = identity(files(tmp_path / "b" / "other.txt", sentences(100)), tmp_path)
    assert first == again
    other = identity(files(tmp_path / "b" / "corpus.txt", sentences(100, seed=1)), tmp_path)
    assert differing(first, other) == {"train", "held_out", "tokenizer"}


def test_each_part_tells_what_changed(spec: Files, tmp_path: Path) -> None:
    plain = identity(spec, tmp_path)
    assert differing(plain, identity(replace(spec, validation_samples=3), tmp_path)) == {"held_out"}
    assert differing(plain, identity(replace(spec, sequence=8), tmp_path)) == {"held_out", "preprocessing"}
    masked = identity(spec, tmp_path, bert())
    assert differing(masked, identity(replace(spec, mask_rate=0.3), tmp_path, bert())) == {"preprocessing"}
    assert "train" in differing(plain, identity(replace(spec, held_out=0.1), tmp_path))


def test_a_stream_has_an_identity_too(stream: Hub, tmp_path: Path) -> None:
    plain = identity(stream, tmp_path)
    assert differing(plain, identity(replace(stream, weights=[1, 1]), tmp_path)) >= {"train"}
    assert plain == identity(stream, tmp_path / "elsewhere")
    assert differing(plain, identity(replace(stream, block=32), tmp_path)) == {"train"}, "another order"


def test_copies_across_the_split_are_counted_and_told(tmp_path: Path) -> None:
    documents = sentences(100)
    documents[19] = documents[39] = documents[3]  # 19 and 39 are held out
    documents[59] = documents[99]  # both are held out
    told = files(tmp_path / "x.txt", documents).open(gpt(), 0, str(tmp_path / "cache")).describe()
    assert (told["copies"], told["held_out_documents"]) == (2, 5)
    assert told["notes"] == [
        "data: 2 of 5 held-out documents are exact copies of training documents, which flatters the held-out loss; "
        "remove them"
    ]
    clean = files(tmp_path / "y.txt", sentences(100)).open(gpt(), 0, str(tmp_path / "cache")).describe()
    assert (clean["copies"], clean["held_out_documents"], clean["notes"]) == (0, 5, [])


def test_a_run_tells_its_data_from_the_start_and_needs_no_cache_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = files(tmp_path / "x.txt", [*sentences(101), *sentences(100)])
    model = GPT(vocab=320, position=16, embed=16, head=2, head_dim=8, ffn=32, layer=2)
    config = replace(toy.make(model=model, cache=str(tmp_path / "cache")), data=data)
    source = data.open(model, 0, str(tmp_path / "cache"))
    real, told = type(source).batches, []

    def batches(self: Any, *where: Any) -> Any:
        told.append(json.loads((tmp_path / "run" / "plan.json").read_text())["data"])
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        return real(self, *where)

    monkeypatch.setattr(type(source), "batches", batches)
    toy.run(tmp_path / "run", config)
    assert told[0] == json.loads((tmp_path / "run" / "summary.json").read_text())["data"] == source.describe()
    assert "held-out documents are exact copies" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "tokenizer.json").read_text() == source.model_files()["tokenizer.json"]
