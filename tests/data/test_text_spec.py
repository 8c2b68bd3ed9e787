"""Mistakes in the settings of text are one line each, and every YAML names every setting."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from composed import choice
from corpora import ROOT, WIDTH, bert, error_of, given_tokenizer, gpt, problem, sentences, t5
from omegaconf import OmegaConf

from mlrun.config import choices
from mlrun.data.text.files import Files
from mlrun.models.deit import DeiT


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert "data.files=none*.txt" in problem(Files(sequence=16, files=["none*.txt"], format="text"))
    assert "it is empty" in problem(Files(sequence=16, files=[str(tmp_path / "empty.txt")], format="text"))
    assert "data.files=[]" in problem(Files(sequence=16, files=[], format="text"))
    given = {"files": [str(ROOT / "pyproject.toml")], "format": "text"}
    assert "data.validation_files=no" in problem(Files(sequence=16, validation_files=["no"], **given))
    assert "not in data.files" in problem(Files(sequence=16, validation_files=given["files"], **given))
    # Of a file that is read twice, a part would be held out that is trained on.
    assert "each file once" in problem(Files(sequence=16, **{**given, "files": given["files"] * 2}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sequence": 65}, "model.position=64"),
        ({"sequence": 2}, "data.sequence=2"),
        ({"mask_rate": 1.0}, "data.mask_rate=1.0"),
        ({"mask_span": 0.5}, "data.mask_span=0.5"),
        ({"held_out": 0.0}, "data.held_out=0.0"),
        ({"validation_samples": 0}, "data.validation_samples=0"),
        ({"tokenizer_characters": 0}, "data.tokenizer_characters=0"),
        ({"format": "jsn"}, "did you mean json?"),
        ({"document": "lines"}, "did you mean line?"),
        ({"tokenizer": "nothing/vocab.txt"}, "nothing/vocab.txt is missing"),
    ],
)
def test_wrong_settings_are_one_line_each(corpus: Path, change: dict, expected: str) -> None:
    given = {"sequence": 16, "files": [str(corpus)], "format": "text", **change}
    assert expected in problem(Files(**given))


def test_the_model_must_fit(spec: Files, corpus: Path, tmp_path: Path) -> None:
    assert "model.vocab=100" in problem(spec, gpt(100))
    given = Files(sequence=16, files=[str(corpus)], format="text", tokenizer=given_tokenizer(tmp_path))
    assert "at least 300" in problem(given, gpt(299))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "is not one" in problem(given, gpt(299))
    pictures = DeiT(image=8, channel=1, patch=4, classes=2, **WIDTH)
    assert "image data set" in problem(spec, pictures)
    assert "keep text between" in problem(Files(sequence=16, files=[str(corpus)], format="text", mask_rate=0.9), t5())
    assert "enough to mask" in problem(Files(sequence=16, files=[str(corpus)], format="text", mask_rate=0.01), bert())


def test_what_only_reading_shows(tmp_path: Path, cache: str, spec: Files) -> None:
    def opened(name: str, content: str, format: str, batch: int = 1, **change) -> str:
        (tmp_path / name).write_text(content)
        data = Files(sequence=16, files=[str(tmp_path / name)], format=format, **change)
        return error_of(lambda: data.open(gpt(), 0, cache, batch))

    rows = "\n".join(json.dumps({"body": d}) for d in sentences(100))
    assert "has the columns body" in opened("a.jsonl", rows, "json")
    assert "fewer than one batch=10000" in opened("b.jsonl", rows, "json", 10000, column="body")
    assert "do not fill one window" in opened("c.jsonl", rows, "json", column="body", held_out=0.001)
    assert "cannot be" in opened("d.jsonl", '{"text": "a"}\n{"te', "json")
    assert "cannot be" in opened("e.parquet", "no parquet", "parquet")
    (tmp_path / "f.txt").write_bytes(b"caf\xe9 \n\n" * 100)
    latin = Files(sequence=16, files=[str(tmp_path / "f.txt")], format="text")
    assert "cannot be read" in error_of(lambda: latin.open(gpt(), 0, cache))
    assert not [f for f in Path(cache).rglob(".making-*")]


@pytest.mark.parametrize("name", ["sotu", "text", "json", "parquet", "wikibooks", "openwebtext"])
def test_every_text_yaml_builds_its_spec_and_names_every_setting(name: str, corpus: Path) -> None:
    node = choice("data", name)
    if OmegaConf.is_missing(node, "files"):
        node.files = [str(corpus)]
    data = choices.build(node, "data")
    assert data.problems(gpt(position=2048)) == []
    assert {str(key) for key in node} - {"_target_"} == {field.name for field in fields(data)}


def test_specs_import_no_torch() -> None:
    specs = ("text.files", "text.hub", "text.sotu", "images.hub", "images.files", "images.digits")
    code = f"import sys, {', '.join(f'mlrun.data.{name}' for name in specs)}; "
    code += "sys.exit(bool({'torch', 'datasets', 'tokenizers', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
