"""A causal and a masked Hugging Face model, made once for each file of tests that asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hf_folders import make


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("gpt"), "causal")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("bert"), "mlm")
