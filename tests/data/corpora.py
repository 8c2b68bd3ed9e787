"""Small corpora, and models to open them for."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from mlrun.data.text import tokenizer
from mlrun.data.text.files import Files
from mlrun.data.text.hub import Hub
from mlrun.data.text.sotu import Sotu
from mlrun.errors import UserError
from mlrun.models.bert import BERT
from mlrun.models.gpt import GPT
from mlrun.models.t5 import T5

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
WIDTH = {"embed": 8, "head": 1, "head_dim": 8, "ffn": 8, "layer": 1}


def gpt(vocab: int = 320, position: int = 64) -> GPT:
    return GPT(vocab=vocab, position=position, **WIDTH)


def bert(vocab: int = 320) -> BERT:
    return BERT(vocab=vocab, position=64, token_type=2, **WIDTH)


def t5(vocab: int = 340) -> T5:
    return T5(vocab=vocab, decoder_layer=1, bucket=8, distance=16, **WIDTH)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return documents that differ from each other, each named by its number."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 8))) for _ in range(200)]
    return [f"d{number} " + " ".join(rng.choices(words, k=rng.randint(20, 60))) for number in range(count)]


def write_lines(file: Path, documents: list[str]) -> Path:
    file.write_text("\n".join(documents) + "\n")
    return file


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


def error_of(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def problem(data: Files | Hub | Sotu, model: object = None) -> str:
    (line,) = data.problems(gpt() if model is None else model)
    assert "\n" not in line
    return line


def hub_folder(folder: Path, documents: list[str], shards: int = 3) -> str:
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.array(documents), shards)):
        write_lines(folder / f"train-{number}.jsonl", [json.dumps({"text": str(d)}) for d in part])
    return str(folder)


def given_tokenizer(folder: Path) -> str:
    tokenizer.train(iter(sentences(50)), 300, "causal").save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")
