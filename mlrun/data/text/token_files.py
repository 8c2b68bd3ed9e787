"""Documents become one flat file of token ids, in constant memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlrun.data.source import Broken

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PIECE = 1 << 17  # characters of a document encoded at once; longer ones are cut
CHUNK = 1 << 20  # characters encoded in one call, over several documents

# GPT-2's pattern gives a word the one space before it, so a cut in front of that space changes no token.
_CUT = re.compile(r"\s(?=\S)")
_NEAR_END = 1000


def token_type(size: int) -> str:
    """Return the smallest numpy type that holds ids below `size`."""
    return "uint16" if size <= 1 << 16 else "uint32"


def pieces(text: str, limit: int = PIECE) -> Iterator[str]:
    """Yield the parts of a document, cut between words, none longer than `limit` characters."""
    start = 0
    while len(text) - start > limit:
        near = max(start + 1, start + limit - _NEAR_END)
        cuts = [match.start() for match in _CUT.finditer(text, near, start + limit)]
        end = cuts[-1] if cuts else start + limit
        yield text[start:end]
        start = end
    yield text[start:]


def chunks(texts: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Yield lists of (piece, whether it ends its document) of about `CHUNK` characters; empty documents vanish."""
    chunk: list[tuple[str, bool]] = []
    size = 0
    for text in texts:
        parts = list(pieces(text)) if text.strip() else []
        for number, part in enumerate(parts, start=1):
            chunk.append((part, number == len(parts)))
            size += len(part)
            if size >= CHUNK:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def encode(texts: Iterable[str], tokenizer: Tokenizer, end: int, dtype: str) -> Iterator[np.ndarray]:
    """Yield arrays of ids: the documents in order, each followed by the `end` token."""
    for chunk in chunks(texts):
        encoded = tokenizer.encode_batch_fast([piece for piece, _ in chunk], add_special_tokens=False)
        rows = ([*row.ids, end] if last else row.ids for row, (_, last) in zip(encoded, chunk, strict=True))
        yield np.concatenate([np.asarray(row, dtype) for row in rows])


def write(arrays: Iterable[np.ndarray], file: Path, limit: int | None = None) -> int:
    """Write ids until `limit` of them are there (None: all); return how many."""
    written = 0
    with file.open("wb") as stream:
        for array in arrays:
            part = array if limit is None else array[: limit - written]
            stream.write(part.tobytes())  # numpy's own tofile does not tell why a write failed
            written += len(part)
            if limit is not None and written >= limit:
                break
    return written


class TokenFile:
    """The ids of a file, read where they are asked for.

    Not mapped into memory: to read a mapping whose file was cut kills the process without a word.
    """

    def __init__(self, file: Path, dtype: str) -> None:
        self.file, self.dtype = file, np.dtype(dtype)
        self._stream = file.open("rb", buffering=0)
        self._length = os.fstat(self._stream.fileno()).st_size // self.dtype.itemsize

    def __len__(self) -> int:
        return self._length

    def windows(self, start_B: np.ndarray, width: int) -> np.ndarray:
        """Return (B, width) int64: that many ids from each start on; Broken if the file has lost them."""
        return np.stack([self._read(int(start), width) for start in start_B]).astype(np.int64)

    def _read(self, start: int, count: int) -> np.ndarray:
        size = self.dtype.itemsize
        try:
            content = os.pread(self._stream.fileno(), count * size, start * size)
        except OSError as error:
            raise Broken(f"{self.file} cannot be read ({error.strerror})") from error
        if len(content) < count * size:
            raise Broken(f"{self.file} was cut while the run read it")
        return np.frombuffer(content, self.dtype)
