"""The trained model as a folder: weights, their moving average, configuration, and how data is read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mlrun.train.checkpoint import sharded, store
from mlrun.train.parallel.processes import Ranks
from mlrun.train.snapshot import Snapshot


def save_weights(path: Path, weights: Mapping[str, Tensor], meta: Mapping[str, str], ranks: Ranks) -> None:
    """Write a model's weights as one file, atomically; all processes call it."""
    if ranks.placement.collective:
        sharded.save_weights(path, weights, meta, ranks)
    elif ranks.first:
        store.save_weights(path, weights, meta)


def save_model(
    folder: Path, model: Mapping[str, Any], final: Snapshot, described: Mapping[str, Any], ranks: Ranks
) -> None:
    """Write a model folder; all processes call it.

    Args:
        model: its configuration, `_target_` and sizes.
        described: the data's facts, among them the tokenizer's file or how pixels are made (Source.describe).
    """
    save_weights(folder / "model.safetensors", final.weights, {}, ranks)
    if "ema" in final.tensors:
        save_weights(folder / "ema.safetensors", final.tensors["ema"], {}, ranks)
    if not ranks.first:
        return
    write_text(folder / "config.json", json.dumps(model, indent=2) + "\n")
    if "tokenizer" in described:
        write_text(folder / "tokenizer.json", Path(described["tokenizer"]).read_text())
    if "preprocessor" in described:
        write_text(folder / "preprocessor_config.json", json.dumps(described["preprocessor"], indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
