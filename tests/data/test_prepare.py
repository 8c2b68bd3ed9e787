"""From documents to token files: nothing lost, nothing twice, in constant memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora import ROOT, WIDTH, equal, gpt, sentences, write_lines

from mlrun.data.held_out import held_out
from mlrun.data.text import token_files
from mlrun.data.text.files import Files


def test_packed_ids_are_the_documents_with_an_end_after_each(spec: Files, cache: str, corpus: Path) -> None:
    source = spec.open(gpt(), 0, cache)
    lines = corpus.read_text().splitlines()
    for part, wanted in (("train", False), ("validation", True)):
        ids = np.fromfile(source.folder / f"{part}.bin", source.made.dtype).tolist()
        text = source.made.tokenizer.decode(ids, skip_special_tokens=False)
        kept = [line for number, line in enumerate(lines) if held_out(number, 0.05) == wanted]
        assert text == "".join(f"{line}<|endoftext|>" for line in kept)


def test_special_tokens_written_in_a_document_stay_text(tmp_path: Path, cache: str) -> None:
    lines = [f"{line} <|endoftext|> [MASK]" for line in sentences(50)]
    data = Files(sequence=8, files=[str(write_lines(tmp_path / "x.txt", lines))], format="text", document="line")
    source = data.open(gpt(), 0, cache)
    ids = np.fromfile(source.folder / "validation.bin", source.made.dtype)
    assert (ids == source.made.vocabulary.end).sum() == 2


@pytest.mark.parametrize("limit", [30, 1500])
def test_cutting_a_long_document_changes_no_token(spec: Files, cache: str, limit: int) -> None:
    encode = spec.open(gpt(), 0, cache).made.tokenizer.encode
    text = "\n\n ".join(sentences(60)) + "  \n x" * 20
    parts = list(token_files.pieces(text, limit))
    assert "".join(parts) == text and max(map(len, parts)) <= limit and len(parts) > 2
    assert [i for part in parts for i in encode(part).ids] == encode(text).ids


@pytest.mark.parametrize("format", ["json", "parquet"])
def test_formats_give_the_same_samples(format: str, tmp_path: Path, cache: str, spec: Files) -> None:
    import pyarrow
    import pyarrow.parquet

    documents, file = sentences(400), tmp_path / f"x.{format}"
    if format == "json":
        write_lines(file, [json.dumps({"body": d, "n": n}) for n, d in enumerate(documents)])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"n": range(400), "body": documents}), file, row_group_size=50)
    other = Files(sequence=16, files=[str(tmp_path / f"*.{format}")], format=format, column="body").open(
        gpt(), 0, cache
    )
    assert equal(next(other.batches(0, 32)), next(spec.open(gpt(), 0, cache).batches(0, 32)))


def test_validation_files_are_not_trained_on(tmp_path: Path, cache: str) -> None:
    for name, start in (("train", 0), ("validation", 100)):
        write_lines(tmp_path / f"{name}.txt", sentences(200)[start : start + 100])
    files = {"files": [str(tmp_path / "train.txt")], "validation_files": [str(tmp_path / "validation.txt")]}
    source = Files(sequence=16, format="text", document="line", **files).open(gpt(), 0, cache)
    counts = json.loads((source.folder / "meta.json").read_text())["tokens"]
    ids = {part: np.fromfile(source.folder / f"{part}.bin", "uint16") for part in counts}
    assert all((ids[part] == source.made.vocabulary.end).sum() == 100 for part in counts)
    assert source.made.tokenizer.decode(ids["validation"][:8].tolist()).startswith("d100 ")


def test_a_changed_file_is_packed_anew_and_an_equal_one_is_not(tmp_path: Path) -> None:
    file, cache = tmp_path / "x.txt", str(tmp_path / "cache")
    data = Files(sequence=16, files=[str(file)], format="text", document="line")
    write_lines(file, sentences(100))
    first = data.open(gpt(), 0, cache)
    built = first.folder.stat().st_ino
    os.utime(file, (1, 1))
    assert data.open(gpt(), 0, cache).folder.stat().st_ino == built
    before = file.stat()
    text = file.read_text()
    file.write_text(text[:-5] + text[-5:].swapcase())  # same length
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = data.open(gpt(), 0, cache)
    assert second.folder != first.folder and second.describe()["content"] != first.describe()["content"]


def test_two_processes_may_prepare_at_once(spec: Files, corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from mlrun.data.text.files import Files; from mlrun.models.gpt import GPT\n"
        f"model = GPT(vocab=320, position=64, **{WIDTH})\n"
        f"data = Files(sequence=16, files=[{str(corpus)!r}], format='text', document='line')\n"
        f"s = data.open(model, 0, {str(tmp_path)!r}); print(next(s.batches(0, 8))['tokens'].sum().item())"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    sums = [run.communicate()[0] for run in runs]
    assert sums[0] == sums[1] != b"" and [run.returncode for run in runs] == [0, 0]
    assert len([f for f in (tmp_path / "text").iterdir() if f.is_dir()]) == 1  # no half-made folder either


def test_packing_a_large_corpus_takes_constant_memory(tmp_path: Path) -> None:
    """60 MB of text; its ids as Python objects alone would be over ten times the bound."""
    rng, words = random.Random(0), [f"transformational{n:02d}" for n in range(100)]
    with (tmp_path / "large.txt").open("w") as stream:
        for _ in range(60 * 5):
            stream.write(" ".join(rng.choices(words, k=10_000)) + "\n\n")
    assert (tmp_path / "large.txt").stat().st_size > 57e6
    code = f"""
import resource, datasets, tokenizers, torch
from mlrun.data.text.files import Files
from mlrun.models.gpt import GPT
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
data = Files(sequence=64, files=['large.txt'], format='text', tokenizer_characters=500_000)
source = data.open(GPT(vocab=400, position=64, **{WIDTH}), 0, 'cache')
assert source.samples > 40_000, source.samples
next(source.batches(0, 8))
print((peak() - before) / 1024)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAYON_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert float(out.stdout.split()[-1]) < 180
