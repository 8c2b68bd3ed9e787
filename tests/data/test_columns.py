"""Only the named column matters, and it is read as it is written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from corpora import ROOT, error_of, gpt, hub_folder, problem, sentences, write_lines

from mlrun.data.huggingface import HubSource
from mlrun.data.text.files import Files
from mlrun.data.text.hub import Hub


def texts(file: Path, format: str = "json", **changes: Any) -> list[str]:
    data = Files(**{"files": [str(file)], "format": format, "document": "line", **changes})
    return list(data.corpus()._texts([str(file)]))


def lines(file: Path, *rows: Any) -> Path:
    return write_lines(file, [row if isinstance(row, str) else json.dumps(row) for row in rows])


def test_rows_may_differ_in_all_but_the_text(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"text": "a", "lab": None}, {"text": "b", "lab": {"k": 1}}, {"lab": [1, "x"]},
                 {"text": None}, {"text": "e", "lab": 2.5})  # fmt: skip
    assert texts(file) == ["a", "b", "", "", "e"]


def test_a_date_stays_as_it_is_written(tmp_path: Path) -> None:
    written = ["2024-01-01", "2024-01-01T00:00:00Z", "12:30", "1e5"]
    assert texts(lines(tmp_path / "a.jsonl", *({"text": text} for text in written))) == written


def test_an_array_and_a_compressed_file_are_read_alike(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b", "n": 1}, {"text": "c"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert texts(tmp_path / "a.json") == texts(tmp_path / "a.jsonl.gz") == ["a\u2028b", "c"]


def test_half_a_character_is_one_line(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"text": "caf\u00e9 \U0001f600"}, '{"text": "a\\ud800b"}')
    told = error_of(lambda: texts(file))
    assert "a.jsonl, line 2, holds half a character, '\\ud800'; repair it" in told


DOCUMENTS = [{"doc": {"text": f"t{n}", "n": n}, "tags": ["x"], "number": n} for n in range(3)]


def stored(folder: Path, format: str) -> Path:
    if format == "json":
        return lines(folder / "a.jsonl", *DOCUMENTS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(DOCUMENTS), folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("format", ["json", "parquet"])
def test_a_field_is_read_and_what_is_no_text_is_one_line(tmp_path: Path, format: str) -> None:
    file = stored(tmp_path, format)
    assert texts(file, format, column="doc.text") == ["t0", "t1", "t2"]
    for column, expected in (
        ("doc", "has the fields text, n in it; name one, such as data.column=doc.text"),
        ("tags", "holds a list"),
        ("number", "holds 0; name another"),
        ("txt", "has the columns doc, tags, number"),
        ("doc.body", "has the columns"),
    ):
        line = error_of(lambda: texts(file, format, column=column))  # noqa: B023
        assert line.startswith(f"data.column={column}: ") and expected in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"text": "a"}\n{"te', "line 2: JSONDecodeError"),
        ('{"text": "a"}\n"b"\n', "line 2: ValueError: not an object"),
        ('{"text": "a", "deep": ' + "[" * 50_000 + "]" * 50_000 + "}", "line 1: RecursionError"),
    ],
)
def test_json_that_cannot_be_read_names_file_and_line(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    line = error_of(lambda: texts(tmp_path / "a.jsonl"))
    assert "a.jsonl cannot be read" in line and expected in line


def test_hub_rows_name_a_field_too(tmp_path: Path, hub_cache: None) -> None:
    name = hub_folder(tmp_path / "a", ["x"], 1)
    lines(tmp_path / "a" / "train-0.jsonl", *DOCUMENTS)
    for streaming in (False, True):
        made = Hub(sources=[HubSource(path=name, text="doc.text")], streaming=streaming)
        assert [row["text"] for row in made.corpus().rows()] == ["t0", "t1", "t2"]
        wrong = Hub(sources=[HubSource(path=name, text="doc")], streaming=streaming).corpus()
        assert "name one, such as data.sources.text=doc.text" in error_of(lambda: list(wrong.rows()))  # noqa: B023


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_data_set_may_differ_in_all_but_the_text_too(
    streaming: bool, tmp_path: Path, hub_cache: None
) -> None:
    name = hub_folder(tmp_path / "a", ["x"], 1)
    lines(tmp_path / "a" / "train-0.jsonl", {"text": "2024-01-01", "lab": None}, {"text": "b", "lab": {"k": 1}})
    lines(tmp_path / "a" / "train-1.jsonl", {"text": "c", "lab": [1, "x"], "more": 3}, {"text": None}, {"text": "e"})
    rows = Hub(sources=[HubSource(path=name)], streaming=streaming).corpus().rows()
    assert [row["text"] for row in rows] == ["2024-01-01", "b", "c", "", "e"]
    stream = iter(rows)
    for _ in range(3):
        next(stream)
    again = Hub(sources=[HubSource(path=name)], streaming=streaming).corpus().rows()
    again.load_state_dict(rows.state_dict())
    assert [row["text"] for row in again] == ["", "e"]
    wrong = Hub(sources=[HubSource(path=name, text="txt")], streaming=streaming).corpus()
    line = error_of(lambda: list(wrong.rows()))
    assert line.startswith("data.sources.text=txt: ") and "did you mean text?" in line


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_encodings_are_read_and_their_mark_is_not_text(tmp_path: Path, format: str, encoding: str) -> None:
    for name in "ab":
        content = f"café {name}" if format == "text" else json.dumps({"text": f"café {name}"}, ensure_ascii=False)
        (tmp_path / name).write_bytes(content.encode("utf-8-sig" if encoding == "utf-8" else encoding))
    data = Files(files=[str(tmp_path / "*")], format=format, document="line", encoding=encoding)
    assert list(data.corpus()._texts([str(tmp_path / name) for name in "ab"])) == ["café a", "café b"]


@pytest.mark.parametrize("encoding", ["utf-9", "base64"])
def test_an_unknown_encoding_is_one_line(encoding: str) -> None:
    data = Files(sequence=16, files=[str(ROOT / "pyproject.toml")], format="text", encoding=encoding)
    assert f"data.encoding={encoding}" in problem(data)


@pytest.mark.parametrize("format", ["text", "json", "parquet"])
def test_a_file_that_is_there_by_name_is_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Also where the working folder has such a name; d1/a is another file."""
    for folder, lines in (("d[1]", sentences(100)), ("d1", ["other"])):
        (tmp_path / folder).mkdir()
        kept = datasets.Dataset.from_dict({"text": lines})
        if format == "text":
            write_lines(tmp_path / folder / "a", lines)
        else:
            getattr(kept, f"to_{format}")(tmp_path / folder / "a")
    for working, name in ((tmp_path, "d[1]/a"), (tmp_path / "d[1]", "a"), (tmp_path, str(tmp_path / "d[1]" / "a"))):
        monkeypatch.chdir(working)
        data = Files(sequence=16, files=[name], format=format, document="line")
        assert data.problems(gpt()) == [] and data.corpus().files == [name]
        assert [*data.corpus().documents("train"), *data.corpus().documents("validation")] != []
        assert set(data.corpus()._texts([name])) == set(sentences(100))


def test_a_folder_laid_out_like_the_hub_is_never_another_one(tmp_path: Path, cache: str) -> None:
    for name in ("data[1]", "data1"):
        hub_folder(tmp_path / name, sentences(30), 1)
    data = Hub(sequence=16, sources=[HubSource(path=str(tmp_path / "data[1]"))])
    assert "data[1] has one of * ? [ in its name" in error_of(lambda: data.open(gpt(), 0, cache))
