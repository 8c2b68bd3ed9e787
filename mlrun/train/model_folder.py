"""The trained model as a folder: weights, their moving average, configuration, and how data is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.train.checkpoint import store, tensor_files
from mlrun.train.parallel.processes import Ranks
from mlrun.train.snapshot import Snapshot


def save_model(
    folder: Path, model: Mapping[str, Any], final: Snapshot, beside: Mapping[str, str], ranks: Ranks
) -> None:
    """Write a model folder; all processes call it.

    Args:
        model: its configuration, `_target_` and sizes.
        beside: the text of each file that says how data is read, by its name (Source.model_files).
    """
    ranks.by_first(lambda: folder.mkdir(exist_ok=True))
    store.save_weights(folder / tensor_files.SINGLE, final.weights, {}, ranks)
    if "ema" in final.tensors:
        store.save_weights(folder / "ema.safetensors", final.tensors["ema"], {}, ranks)
    if not ranks.first:
        return
    files.write_json(folder / "config.json", model)
    for name, text in beside.items():
        files.write_text(folder / name, text)
