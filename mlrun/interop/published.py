"""What config.json says beside architecture and sizes: special ids and class names. It goes where the weights go.

Our own folders keep it in `published.json`, word for word: an id that is a list stays one, an absent key stays absent.
A run writes the file too; without it, an export can only go by what the tokenizer's special tokens are called.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlrun.errors import UserError
from mlrun.files import read_json, write_json

FILE = "published.json"
GENERATION = "generation_config.json"
IDS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "cls_token_id",
    "sep_token_id",
    "mask_token_id",
    "decoder_start_token_id",
    "forced_eos_token_id",
)
# Those of them that generating asks for.
GENERATING = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_eos_token_id")
LABELS = ("id2label", "label2id", "num_labels")

Facts = Mapping[str, Any]


def of_config(config: Mapping[str, Any]) -> Facts:
    """Return what a Hugging Face config.json says."""
    return {key: config[key] for key in (*IDS, *LABELS) if key in config}


def read(folder: Path) -> Facts | None:
    """Return what a folder of ours says, None if nothing.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    facts = read_json(path)
    if unknown := [key for key in facts if key not in (*IDS, *LABELS)]:
        raise UserError(f"{path}: {unknown[0]}: allowed: {', '.join((*IDS, *LABELS))}; restore the file, or remove it")
    return facts


def of_classes(names: list[str]) -> Facts:
    """Return what is said of classes with these names."""
    numbered = {str(index): name for index, name in enumerate(names)}
    return {"id2label": numbered, "label2id": {name: index for index, name in enumerate(names)}}


def write(folder: Path, facts: Facts) -> None:
    """Write what our own folder says."""
    write_json(folder / FILE, facts)


def generation(folder: Path, config: Mapping[str, Any]) -> None:
    """Write where generation begins and ends as `transformers` would, unless the folder has it from its publishers."""
    said = {key: config[key] for key in GENERATING if config.get(key) is not None}
    if said and not (folder / GENERATION).exists():
        (folder / GENERATION).write_text(json.dumps({"_from_model_config": True} | said, indent=2) + "\n")
