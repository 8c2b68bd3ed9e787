"""Tokenizers travel with the weights: files are copied, and what one side lacks is made from what the other has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mlrun.data.text.special_tokens import NAMES
from mlrun.files import read_json
from mlrun.models.base import Model

OURS, THEIRS = "tokenizer.json", "tokenizer_config.json"
FILES = (
    OURS,
    THEIRS,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "preprocessor_config.json",
)


def copy(source: Path, target: Path) -> None:
    """Copy the tokenizer's files, and make tokenizer.json where there is only a vocabulary.

    Raises:
        UserError: the vocabulary cannot be read.
    """
    from mlrun.data.text import tokenizer

    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    has = {name for name in FILES if (source / name).is_file()}
    if OURS not in has and ({"vocab.json", "merges.txt"} <= has or "vocab.txt" in has):
        tokenizer.load(str(source)).save(str(target / OURS))


def describe(folder: Path, model: Model) -> None:
    """Write what Hugging Face needs beside tokenizer.json, unless it is there; a folder without one stays so."""
    if not (folder / OURS).is_file() or (folder / THEIRS).is_file():
        return
    settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if "position" in model.sizes():
        settings["model_max_length"] = model.sizes()["position"]
    special = special_tokens(folder, model)
    (folder / THEIRS).write_text(json.dumps(settings | special, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def special_tokens(folder: Path, model: Model) -> dict[str, str]:
    """Return the token of each role that the folder's tokenizer has."""
    known = vocabulary(folder)
    found = {role: next((n for n in names if n in known), None) for role, names in NAMES[model.objective].items()}
    return {role: name for role, name in found.items() if name is not None}


def special_ids(folder: Path, model: Model) -> dict[str, int]:
    """Return the id of each role that the folder's tokenizer has."""
    known = vocabulary(folder)
    return {role: known[name] for role, name in special_tokens(folder, model).items()}


def vocabulary(folder: Path) -> dict[str, int]:
    """Return the ids of the special tokens in tokenizer.json; empty if there is none."""
    if not (folder / OURS).is_file():
        return {}
    added = read_json(folder / OURS).get("added_tokens")
    return {token["content"]: token["id"] for token in added} if isinstance(added, list) else {}
