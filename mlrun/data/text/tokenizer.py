"""Tokenizers: trained on the corpus or given, and the special tokens that the objectives need."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from mlrun.data import cache
from mlrun.data.text import special_tokens
from mlrun.errors import UserError, mistake
from mlrun.files import expanded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What a trained tokenizer has besides the words, by objective.
SPECIAL: dict[str, tuple[str, ...]] = {
    "causal": ("<|endoftext|>",),
    "mlm": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "span": ("<pad>", "</s>", "<unk>"),
}
# RoBERTa's special tokens, which its vocab.json holds among the words.
_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_LONGEST = 1000  # characters of a word that a tokenizer is trained on; longer ones are cut, as are longer blanks
_LONG = re.compile(rf"\S{{{_LONGEST + 1},}}|\s{{{_LONGEST + 1},}}")
TELLS = 30.0  # seconds between two lines of progress
_ALPHABET = 256  # every byte is a token, so nothing is ever unknown

_WHERE = "a tokenizer.json, a vocab.json beside its merges.txt, a vocab.txt, a folder of these, or a hub name"
_REMEDY = "correct data.tokenizer, or set it to null to train one on the corpus"


@dataclass(frozen=True)
class Vocabulary:
    """The ids that objectives use; `limit` is the model's vocabulary, `size` the tokenizer's part of it.

    Sentinels count down from `first_sentinel`.
    """

    size: int
    limit: int
    special: tuple[int, ...]
    first_sentinel: int
    sentinels: int
    end: int
    start: int = -1
    mask: int = -1
    pad: int = -1


def vocabulary(tokenizer: Tokenizer, objective: str, limit: int, end: str | None = None) -> Vocabulary:
    """Find the special tokens of an objective; `end` names the one after each document, None for a known name.

    Raises:
        UserError: one is missing, or an id is beyond the model.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True)
    size = max(ids.values()) + 1
    if size > limit:
        raise UserError(too_small(size, limit))
    names = dict(special_tokens.NAMES[objective])
    if end is not None:
        if end not in ids:
            raise UserError(mistake("data.end", end, "a token of the tokenizer", "correct it"))
        names[special_tokens.NEEDED[objective]["end"]] = (end,)
    roles = {role: _find(ids, role, names[key]) for role, key in special_tokens.NEEDED[objective].items()}
    added = tokenizer.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special} | set(roles.values())
    first = ids.get("<extra_id_0>")
    if first is None:  # no sentinels of its own: the ids that the model has beyond the tokenizer's serve
        return Vocabulary(size, limit, tuple(sorted(special)), limit - 1, limit - size, **roles)
    own = takewhile(lambda n: ids.get(f"<extra_id_{n}>") == first - n, count())
    return Vocabulary(size, limit, tuple(sorted(special)), first, sum(1 for _ in own), **roles)


def too_small(size: int, limit: int) -> str:
    """Return the line for a tokenizer with more ids than the model."""
    return mistake("model.vocab", limit, f"at least {size}, the tokenizer's size", "set model.vocab or data.tokenizer")


def _find(ids: dict[str, int], role: str, names: Sequence[str]) -> int:
    found = [ids[name] for name in names if name in ids]
    if not found:
        remedy = f"name it with data.end=..., or {_REMEDY}" if role == "end" else _REMEDY
        raise UserError(f"data.tokenizer: it has no {role} token: allowed: one of {' '.join(names)}; {remedy}")
    return found[0]


def given_files(name: str) -> list[Path] | None:
    """Return the files of a tokenizer named by a path, vocabulary first; None for a hub name.

    Raises UserError for a path where nothing is.
    """
    path = expanded(name)
    if path.is_dir():
        known = [path / file for file in ("tokenizer.json", "vocab.json", "vocab.txt") if (path / file).is_file()]
        path = known[0] if known else path / "tokenizer.json"
    elif path.suffix not in {".json", ".txt"} and not name.startswith((".", "/", "~")) and not path.exists():
        return None
    merges = path.with_name(path.name.replace("vocab.json", "merges.txt"))
    files = [path, merges] if path.name.endswith("vocab.json") else [path]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise UserError(mistake("data.tokenizer", name, f"{_WHERE} ({', '.join(missing)} is missing)", _REMEDY))
    return files


def given_size(name: str) -> int | None:
    """Return how many ids a given tokenizer has, without building it; None when only the hub knows."""
    files = given_files(name)
    if files is None:
        return None
    try:
        if files[0].suffix == ".txt":
            return len(_lines(files[0]))
        content = json.loads(files[0].read_text(encoding="utf-8"))
        if len(files) == 2:
            return max(content.values()) + 1
        added = [token["id"] for token in content["added_tokens"]]
        words = content["model"]["vocab"]
        return max([len(words) - 1, *added, *(words.values() if isinstance(words, dict) else ())]) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(mistake("data.tokenizer", name, _WHERE, f"{files[0]} is not one; {_REMEDY}")) from None


def _lines(vocab: Path) -> list[str]:
    """Return the lines of a vocab.txt: only \\n ends one, since U+2028 and the like are words of some."""
    return vocab.read_bytes().decode("utf-8").removesuffix("\n").split("\n")


def load(name: str) -> Tokenizer:
    """Return a given tokenizer; UserError when it cannot be found or read."""
    from tokenizers import Tokenizer

    files = given_files(name)
    try:
        if files is None:
            tokenizer = Tokenizer.from_pretrained(name)
        elif len(files) == 2:
            tokenizer = _byte_level(*files)
        elif files[0].suffix == ".txt":
            tokenizer = _word_piece(files[0])
        else:
            tokenizer = Tokenizer.from_file(str(files[0]))
    except Exception as error:  # the library raises bare Exceptions
        reason = str(error).splitlines()[0]
        remedy = "go online once, or give a local file" if files is None else _REMEDY
        raise UserError(mistake("data.tokenizer", name, f"{_WHERE} ({reason})", remedy)) from error
    return plain(tokenizer)


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer set to encode text as text: nothing cut, padded, or taken for a special token."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _byte_level(vocab: Path, merges: Path) -> Tokenizer:
    """Return GPT-2's and RoBERTa's kind of tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = (*SPECIAL["causal"], *_ROBERTA)
    tokenizer.add_special_tokens([name for name in names if tokenizer.token_to_id(name) is not None])
    return tokenizer


def _word_piece(vocab: Path) -> Tokenizer:
    """Return BERT's kind of tokenizer; it lowers the case if no word of the vocabulary has an upper-case letter."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    words = _lines(vocab)
    cased = any(re.search("[A-Z]", word) for word in words if not re.fullmatch(r"\[.*\]", word))
    tokenizer = Tokenizer(models.WordPiece.from_file(str(vocab), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([name for name in SPECIAL["mlm"] if name in words])
    return tokenizer


def smallest(objective: str, sentinels: int) -> int:
    """Return the fewest ids that a trained tokenizer of this objective can have."""
    return _ALPHABET + len(SPECIAL[objective]) + sentinels


def train(texts: Iterable[str], size: int, objective: str) -> Tokenizer:
    """Return a byte-level BPE of at most `size` ids learned from `texts`; the same texts give the same ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL[objective]),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    with _progress(texts) as read:
        tokenizer.train_from_iterator(chain.from_iterable(map(_bounded, read)), trainer)
    return tokenizer


@contextmanager
def _progress(texts: Iterable[str]) -> Iterator[Iterator[str]]:
    """Give the texts to read; without a terminal, whose bar the library draws, a line says now and then how far it is.

    A thread tells, since the library learns for minutes without asking for a text.
    """
    characters, ended, done, began = 0, False, threading.Event(), time.monotonic()

    def counted() -> Iterator[str]:
        nonlocal characters, ended
        for text in texts:
            characters += len(text)
            yield text
        ended = True

    def tell() -> None:
        while not done.wait(TELLS):
            doing = "learning from" if ended else "reading, so far"
            passed = time.monotonic() - began
            line = f"mlrun: training the tokenizer: {doing} {characters:,} characters, after {passed:.0f} s"
            print(line, file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    if not sys.stderr.isatty():
        teller.start()
    try:
        yield counted()
    finally:
        done.set()
        if teller.is_alive():
            teller.join()


def _bounded(text: str) -> Iterator[str]:
    """Yield a text in parts without words, or blanks, of over _LONGEST: learning takes the square of their length."""
    start = 0
    for word in _LONG.finditer(text):
        for cut in range(word.start() + _LONGEST, word.end(), _LONGEST):
            yield text[start:cut]
            start = cut
    yield text[start:]


def trained(folder: Path, texts: Iterable[str], size: int, objective: str) -> Tokenizer:
    """Return the tokenizer kept in `folder`, trained and written first if it is not there."""
    from tokenizers import Tokenizer

    made = cache.build(folder, lambda new: train(texts, size, objective).save(str(new / "tokenizer.json")))
    return plain(Tokenizer.from_file(str(made / "tokenizer.json")))


def first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Yield texts until `limit` characters have been seen."""
    seen = 0
    for text in texts:
        if seen >= limit:
            return
        seen += len(text)
        yield text


def content_hash(tokenizer: Tokenizer) -> str:
    """Return the sha256 of everything that decides how text becomes ids."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
