"""The last word of a passage, as LAMBADA asks for it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from omegaconf import MISSING

from mlrun.data.paths import resolve
from mlrun.errors import UserError, mistake
from mlrun.evaluate import lines
from mlrun.evaluate.base import Benchmark, Context, Result, Results
from mlrun.evaluate.proportion import proportion
from mlrun.models.base import Model

if TYPE_CHECKING:
    from mlrun.evaluate.scoring import Row
    from mlrun.evaluate.words import Words
    from mlrun.models.network import Network

# A passage, and its last word with the blank before it.
_LAST = re.compile(r"(.*\S)(\s+\S+)\s*", re.DOTALL)


@dataclass(frozen=True)
class Cloze(Benchmark):
    """`cloze`: the share of passages whose last word a causal model would write, token by token the likeliest.

    `cloze/bits`: the mean of -log2 of that word's probability (Paperno et al. 2016, LAMBADA). A file ending in .jsonl
    has an object a line with `text`, any other file a passage a line.
    """

    files: list[str] = MISSING

    def problems(self) -> list[str]:
        if found := lines.problems("evaluation.cloze.files", self.files):
            return found
        try:
            self.passages()
        except UserError as error:
            return error.problems
        return []

    def reads(self) -> list[str]:
        return resolve(self.files)

    def applies(self, model: Model) -> bool:
        return model.objective == "causal"

    def unfit(self, model: Model, words: Words | None) -> list[str]:
        assert words is not None, "looked at before"
        most, found = words.longest, []
        for where, *passage in self.passages():
            _, last = _cut(words, *passage)
            if not 1 <= len(last) <= most:
                allowed = f"1 to {most} tokens, which the model reads at once"
                found.append(mistake(f"{where}: last word", f"{len(last)} tokens", allowed, "remove the passage"))
        return found

    def passages(self) -> list[tuple[str, str, str]]:
        """Return (where, what comes before, last word with its blank); UserError for one that has no two words."""
        found = []
        for where, text in (pair for file in resolve(self.files) for pair in _texts(file)):
            cut = _LAST.fullmatch(text)
            if cut is None:
                raise UserError(f"{where}: needs a word before the last one; remove it")
            found.append((where, cut[1], cut[2]))
        if not found:
            raise UserError(f"{', '.join(self.files)}: no passage in it; give one a line")
        return found

    def measure(self, net: Network, context: Context) -> Results:
        from mlrun.evaluate.scoring import score

        words = context.words
        assert words is not None, "looked at before"
        scores = score(net, [_row(words, *passage) for _, *passage in self.passages()], context)
        bits, n = [-one.log_probability / math.log(2) for one in scores], len(scores)
        error = stdev(bits) / math.sqrt(n) if n > 1 and all(map(math.isfinite, bits)) else None
        return {
            "cloze": proportion("accuracy", sum(one.greedy for one in scores) / n, n, self.version),
            "cloze/bits": Result("bits_per_word", fmean(bits), error, n, self.version),
        }


def _texts(file: str) -> Iterator[tuple[str, str]]:
    """Yield (where it stands, passage)."""
    if not file.endswith(".jsonl"):
        return lines.texts(file)
    return ((where, row["text"]) for where, row in lines.objects(file, "text"))


def _row(words: Words, before: str, last: str) -> Row:
    """Return the row that predicts the last word."""
    from mlrun.evaluate.scoring import continuation

    read, predicted = _cut(words, before, last)
    return continuation(words, [words.before, *read], predicted)


def _cut(words: Words, before: str, last: str) -> tuple[list[int], list[int]]:
    """Return the ids of the whole, cut where they are no longer those of what comes before."""
    whole, read = words.ids(before + last), words.ids(before)
    shared = next((i for i, (a, b) in enumerate(zip(whole, read, strict=False)) if a != b), len(read))
    return whole[:shared], whole[shared:]
