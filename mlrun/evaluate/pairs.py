"""Minimal pairs: does a model give more probability to the sentence that is right?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlrun.data.paths import resolve
from mlrun.errors import UserError
from mlrun.evaluate import grammar, lines
from mlrun.evaluate.base import Benchmark, Context, Result, Results
from mlrun.evaluate.proportion import proportion
from mlrun.models.base import Model

if TYPE_CHECKING:
    from mlrun.evaluate.words import Words
    from mlrun.models.network import Network

GOOD, BAD, NAME = "sentence_good", "sentence_bad", "UID"


@dataclass(frozen=True)
class Pairs(Benchmark):
    """`pairs`: the share of pairs whose right sentence is the likelier one (Warstadt et al. 2020, BLiMP, section 4).

    `pairs/NAME` is that of one phenomenon: what a row calls `UID`, as BLiMP's do, or else its file. Of a causal model a
    sentence has the sum of its tokens' log-probabilities, after the token that stands before a document; of a masked
    one the pseudo-log-likelihood, each token from all others (Salazar et al. 2020). Equal ones count as wrong.
    """

    files: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        if not self.files:
            return []
        if found := lines.problems("evaluation.pairs.files", self.files):
            return found
        try:
            self.pairs()
        except UserError as error:
            return error.problems
        return []

    def reads(self) -> list[str]:
        return resolve(self.files)

    def applies(self, model: Model) -> bool:
        return model.objective in ("causal", "mlm")

    def unfit(self, model: Model, words: Words | None) -> list[str]:
        assert words is not None, "looked at before"
        # A sentence without a token would be certain: likelier than any other.
        return [
            f"evaluation.pairs: {name}: no token in the sentence {sentence!r}; remove the pair"
            for name, pairs in self.pairs().items()
            for pair in pairs
            for sentence in pair
            if not words.ids(sentence)
        ]

    def pairs(self) -> dict[str, list[grammar.Pair]]:
        """Return by phenomenon its pairs (right, wrong); UserError for a line that holds none."""
        if not self.files:
            return grammar.pairs()
        found: dict[str, list[grammar.Pair]] = {}
        for file in resolve(self.files):
            for _, row in lines.objects(file, GOOD, BAD):
                name = Path(file).stem if row.get(NAME) is None else str(row[NAME])
                found.setdefault(name, []).append((row[GOOD], row[BAD]))
        if not found:
            raise UserError(f"{', '.join(self.files)}: no pair in it; give an object a line with {GOOD}, {BAD}")
        return found

    def measure(self, net: Network, context: Context) -> Results:
        from mlrun.evaluate.scoring import log_probabilities

        assert context.words is not None, "looked at before"
        named, ids = self.pairs(), context.words.ids
        texts = [ids(sentence) for pairs in named.values() for pair in pairs for sentence in pair]
        scores = iter(log_probabilities(net, texts, context))
        right = {name: [next(scores) > next(scores) for _ in pairs] for name, pairs in named.items()}
        every = [hit for hits in right.values() for hit in hits]
        return {"pairs": self._share(every)} | {f"pairs/{name}": self._share(hits) for name, hits in right.items()}

    def _share(self, hits: list[bool]) -> Result:
        return proportion("accuracy", sum(hits) / len(hits), len(hits), self.version)
