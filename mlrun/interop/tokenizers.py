"""Tokenizers travel with the weights: files are copied, and what one side lacks is made from what the other has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from mlrun.data.text.special_tokens import NAMES
from mlrun.files import read_json
from mlrun.interop.published import Facts
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
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
)
# What says of a tokenizer.json how it is used.
BESIDE = (THEIRS, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
# SentencePiece, and half of a pair: words of these alone have no reader here.
UNREAD = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt")


def has_one(folder: Path) -> bool:
    """Return whether a tokenizer that we can read lies in a folder."""
    has = {name for name in FILES if (folder / name).is_file()}
    return OURS in has or {"vocab.json", "merges.txt"} <= has or "vocab.txt" in has


def copy(source: Path, target: Path, model: Model) -> None:
    """Copy the tokenizer's files, and make tokenizer.json where there is only a vocabulary.

    Raises:
        UserError: the vocabulary cannot be read.
    """
    from mlrun.data.text import tokenizer

    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if not (source / OURS).is_file() and has_one(source):
        made = tokenizer.load(str(source)).to_str(pretty=True)
        (target / OURS).write_text(made, encoding="utf-8")
        special = special_tokens(target, model)
        _frame(target, special)
        _mask(target, special.get("mask_token"))


def describe(folder: Path, model: Model, facts: Facts | None) -> None:
    """Write what Hugging Face needs beside tokenizer.json, unless it is there; a folder without one stays so.

    A tokenizer trained here puts nothing around the text, since the objective does that; published ones do.
    """
    if not (folder / OURS).is_file() or (folder / THEIRS).is_file():
        return
    settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if "position" in model.sizes():
        settings["model_max_length"] = model.sizes()["position"]
    special = special_tokens(folder, model) | _named(folder, facts or {})
    _frame(folder, special)
    _mask(folder, special.get("mask_token"))
    (folder / THEIRS).write_text(json.dumps(settings | special, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def _named(folder: Path, facts: Facts) -> dict[str, str]:
    """Return the tokens whose ids are known."""
    names = {number: name for name, number in vocabulary(folder).items()}
    given = {role: facts.get(f"{role}_id") for role in ("bos_token", "eos_token", "pad_token")}
    return {role: names[number] for role, number in given.items() if type(number) is int and number in names}


def _frame(folder: Path, special: Mapping[str, str]) -> None:
    """Have tokenizer.json put around a text what models of its kind are given: [CLS] and [SEP], or an end."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(folder / OURS))
    cls, sep = special.get("cls_token"), special.get("sep_token")
    end = special.get("eos_token") if "pad_token" in special else None  # a decoder alone is given nothing
    if tokenizer.post_processor is not None or (None in (cls, sep) and end is None):
        return
    used: tuple[str, ...]
    if cls is not None and sep is not None:
        second = f"{sep} $B {sep}" if cls == "<s>" else "$B:1 " + f"{sep}:1"  # RoBERTa has one type
        single, pair, used = f"{cls} $A {sep}", f"{cls} $A {sep} {second}", (cls, sep)
    else:
        single, pair, used = f"$A {end}", f"$A {end} $B {end}", (str(end),)
    ids = [(name, tokenizer.token_to_id(name)) for name in used]
    tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    (folder / OURS).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def _mask(folder: Path, mask: str | None) -> None:
    """Have the mask of a byte-level tokenizer.json stand for the blank in front of it too, as RoBERTa's does.

    There the blank in front of a word belongs to the word's token, and a mask in training stands for the whole token.
    """
    said = read_json(folder / OURS)
    steps = said.get("pre_tokenizer") or {}
    if mask is None or "ByteLevel" not in {step.get("type") for step in (steps, *steps.get("pretokenizers", ()))}:
        return
    for token in said.get("added_tokens", ()):
        token["lstrip"] = token["lstrip"] or token["content"] == mask
    (folder / OURS).write_text(json.dumps(said, indent=2, ensure_ascii=False), encoding="utf-8")


def facts_of_run(folder: Path, model: Model, end: int | None) -> Facts:
    """Return what is said of a model trained here: `end` is the token after each of its documents."""
    ids: dict[str, int | None] = dict(special_ids(folder, model))
    if end is not None and model.objective != "mlm":
        ids["eos_token"] = end
    pad, last = ids.get("pad_token"), ids.get("eos_token")
    said = {
        # A document follows the end of another.
        "causal": {"bos_token_id": last, "eos_token_id": last},
        "mlm": {"bos_token_id": ids.get("cls_token"), "eos_token_id": ids.get("sep_token"), "pad_token_id": pad},
        "span": {"decoder_start_token_id": pad, "eos_token_id": last, "pad_token_id": pad},
        "image": {},
    }
    return {key: number for key, number in said[model.objective].items() if number is not None}


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
