"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import given_tokenizer, hub_folder, sentences, write_lines

from mlrun.data.huggingface import HubSource
from mlrun.data.text.files import Files
from mlrun.data.text.hub import Hub


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("corpus") / "lines.txt", sentences(400))


@pytest.fixture
def spec(corpus: Path) -> Files:
    return Files(sequence=16, files=[str(corpus)], format="text", document="line")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def stream(tmp_path: Path, hub_cache: None) -> Hub:
    names = [hub_folder(tmp_path / "a", sentences(150)), hub_folder(tmp_path / "b", sentences(100, seed=1))]
    return Hub(
        sequence=16,
        sources=[HubSource(path=name) for name in names],
        weights=[3, 2],
        held_out=0.05,
        streaming=True,
        block=64,
        validation_samples=6,
        tokenizer=given_tokenizer(tmp_path),
    )
