"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import sentences, write_lines

from mlrun.data.text.files import Files


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
