"""How a text becomes the ids of one model, in a run and in a folder. No torch at import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mlrun.data.text import tokenizer as tokenizers
from mlrun.data.text.token_files import pieces
from mlrun.files import read_json
from mlrun.interop.published import GENERATION
from mlrun.interop.read import Checkpoint
from mlrun.interop.tokenizers import OURS, has_one
from mlrun.models.base import Model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from mlrun.data.text.tokenizer import Vocabulary

# Of a model whose positions have no end.
LONGEST = 1024


@dataclass(frozen=True)
class Words:
    """Tokenizer and special ids of one model.

    before: the id that stands in front of a document for a causal model: what follows is its first word.
    ends: the ids that end a document, as the folder's publishers name them; empty where nobody named any.
    longest: the most tokens that the model reads at once, special ones included.
    """

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    before: int
    longest: int
    ends: frozenset[int] = frozenset()

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text alone, nothing around it; a long one is encoded in parts, as the data is."""
        encoded = (self.tokenizer.encode(piece, add_special_tokens=False) for piece in pieces(text))
        return [number for part in encoded for number in part.ids]

    def text(self, ids: list[int]) -> str:
        """Return the text of ids, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @cached_property
    def widths(self) -> np.ndarray | None:
        """Return the bytes of text that each id of the model stands for, int64, special ids for none.

        None where a tokenizer does not tell them: only byte-level ones give a text back byte by byte, those that
        change it first (lower case, blanks in front) do not.
        """
        said = json.loads(self.tokenizer.to_str())
        if not _keeps_bytes(said):
            return None
        added = {id: token.content for id, token in self.tokenizer.get_added_tokens_decoder().items()}
        widths = np.zeros(self.vocabulary.limit, np.int64)
        for token, id in self.tokenizer.get_vocab(with_added_tokens=True).items():
            # A character of a byte-level token is a byte; an added one is written as it is.
            widths[id] = len(added[id].encode()) if id in added else len(token)
        widths[list(self.vocabulary.special)] = 0
        return widths


def _keeps_bytes(said: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer.json is of the byte-level kind, and adds nothing to a text."""
    decoder, steps = said.get("decoder") or {}, said.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers", [steps])
    prefixed = any(part.get("add_prefix_space") for part in parts)
    return decoder.get("type") == "ByteLevel" and said.get("normalizer") is None and not prefixed


def of_source(source: Any, model: Model, sequence: int) -> Words | None:
    """Return the words of a run: the tokenizer of its data, and windows as long as it trains on; None without one."""
    written = source.model_files().get(OURS)
    if written is None:
        return None
    from tokenizers import Tokenizer

    made = tokenizers.plain(Tokenizer.from_str(written))
    return _words(made, model, source.describe().get("end"), sequence)


def of_folder(found: Checkpoint, sequence: int | None = None) -> Words | None:
    """Return the words of a model folder, ours or Hugging Face's; None where no tokenizer lies in it.

    Raises:
        UserError: it lacks a token that the model's objective needs.
    """
    if not has_one(found.folder):
        return None
    facts = found.facts or {}
    known = (facts.get(key) for key in ("bos_token_id", "eos_token_id"))
    before = next((number for number in known if type(number) is int), None)
    made = _words(tokenizers.load(str(found.folder)), found.model, before, sequence)
    return replace(made, ends=_ends(found))


def _ends(found: Checkpoint) -> frozenset[int]:
    """Return the ids that end a document: as transformers, those of generation_config.json or else config.json."""
    path = found.folder / GENERATION
    told = read_json(path).get("eos_token_id") if path.is_file() else None
    told = (found.facts or {}).get("eos_token_id") if told is None else told
    return frozenset(number for number in (told if isinstance(told, list) else [told]) if type(number) is int)


def _words(made: Tokenizer, model: Model, before: int | None, sequence: int | None) -> Words:
    """Return the words of a model whose documents follow the token `before`, None for the one that ends them."""
    sizes, causal = model.sizes(), model.objective == "causal"
    end = made.id_to_token(before) if causal and before is not None else None
    words = tokenizers.vocabulary(made, model.objective, sizes["vocab"], end)
    longest = min(n for n in (sizes.get("position", sequence or LONGEST), sequence) if n is not None)
    return Words(made, words, words.end if before is None else before, longest)
