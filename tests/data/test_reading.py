"""Texts of files are read some rows at a time: the same as row by row."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlrun.data import huggingface
from mlrun.errors import UserError

ROWS = [{"text": f"row {n}" if n % 7 else None, "doc": {"text": f"in {n}", "n": n}} for n in range(250)]


def stream(folder: Path):
    file = folder / "x.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=60)
    return huggingface.stream_files("data.files", "x", "parquet", [str(file)])


@pytest.mark.parametrize("column", ["text", "doc.text"])
def test_texts_of_files_are_those_of_their_rows(column: str, tmp_path: Path) -> None:
    rows = huggingface.text_rows(stream(tmp_path), column, "data.column", "x")
    found = list(huggingface.file_texts(stream(tmp_path), column, "data.column", "data.files", "x"))
    assert found == list(huggingface.texts(rows, "data.files", "x")) and len(found) == len(ROWS)


@pytest.mark.parametrize(("column", "told"), [("txt", "did you mean text"), ("doc.txt", "doc.text"), ("doc", "fields")])
def test_a_column_without_text_is_one_line(column: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as caught:
        list(huggingface.file_texts(stream(tmp_path), column, "data.column", "data.files", "x"))
    assert len(caught.value.problems) == 1
