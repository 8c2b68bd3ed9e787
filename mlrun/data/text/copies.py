"""Exact copies across the held-out split: documents that are trained on and measured with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b


class Copies:
    """Counts held-out documents whose text is also a training document; the held-out ones must pass first."""

    def __init__(self) -> None:
        self._held_out: Counter[bytes] = Counter()
        self._seen: set[bytes] = set()

    def held_out(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield the texts, and remember a hash of each."""
        for text in texts:
            if text.strip():
                self._held_out[_hash(text)] += 1
            yield text

    def train(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield the texts, and remember which of them are held out too."""
        for text in texts:
            if (name := _hash(text)) in self._held_out:
                self._seen.add(name)
            yield text

    @property
    def documents(self) -> int:
        """Return how many documents are held out; empty ones do not count."""
        return self._held_out.total()

    @property
    def count(self) -> int:
        """Return how many of them are copies."""
        return sum(self._held_out[name] for name in self._seen)


def _hash(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
