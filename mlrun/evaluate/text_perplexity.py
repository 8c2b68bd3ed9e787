"""The perplexity of any text, by word and by byte, so that tokenizers do not matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from mlrun.data.paths import resolve
from mlrun.errors import UserError, mistakes
from mlrun.evaluate import lines
from mlrun.evaluate.base import Benchmark, Context, Result, Results
from mlrun.evaluate.perplexity import exponential
from mlrun.models.base import Model

if TYPE_CHECKING:
    from mlrun.evaluate.words import Words
    from mlrun.models.network import Network


@dataclass(frozen=True)
class TextPerplexity(Benchmark):
    """`text_perplexity`: exp(nats of all tokens / words); blanks set words apart, as WikiText's are counted.

    `text_perplexity/bits_per_byte`: the same in bits over the bytes of the text in UTF-8. `text_perplexity/tokens`:
    over its tokens, the one that does depend on the tokenizer. A file is one document, read in windows (see
    `scoring.windows`): every token is predicted once, after at least `window - stride` others or the document's
    beginning. Of causal models: a masked one gives no probability to a text. Tokens of one text hang together, so
    there is no standard error.
    """

    files: list[str] = MISSING
    window: int | None = None
    stride: int | None = None

    def problems(self) -> list[str]:
        key, window, stride = "evaluation.text_perplexity.", self.window, self.stride
        found = mistakes(
            key,
            [
                ("window", window, window is None or window >= 1, "null or at least 1 token"),
                ("stride", stride, stride is None or 1 <= stride <= (window or stride), "null, or from 1 to window"),
            ],
        )
        found += lines.problems(f"{key}files", self.files)
        return found or [line for file in resolve(self.files) for line in _without_words(file)]

    def reads(self) -> list[str]:
        return resolve(self.files)

    def applies(self, model: Model) -> bool:
        return model.objective == "causal"

    def unfit(self, model: Model, words: Words | None) -> list[str]:
        assert words is not None, "looked at before"
        window, stride = self._sizes(words.longest)
        fine = f"null, or at most the {words.longest} tokens that the model reads at once"
        checks = [
            ("window", window, window <= words.longest, fine),
            ("stride", stride, stride <= window, f"null, or at most the {window} tokens of a window"),
        ]
        return mistakes("evaluation.text_perplexity.", checks)

    def measure(self, net: Network, context: Context) -> Results:
        from mlrun.evaluate.scoring import score, windows

        words = context.words
        assert words is not None, "looked at before"
        window, stride = self._sizes(words.longest)
        texts = [lines.read(file) for file in resolve(self.files)]
        ids = [words.ids(text) for text in texts]
        rows = [row for document in ids for row in windows(words, document, window, stride)]
        nats = -sum(one.log_probability for one in score(net, rows, context))
        counts = [sum(map(len, parts)) for parts in ([t.split() for t in texts], [t.encode() for t in texts], ids)]
        by_word, by_byte, by_token = (nats / count for count in counts)
        found = (
            ("text_perplexity", "word_perplexity", exponential(by_word)),
            ("text_perplexity/bits_per_byte", "bits_per_byte", by_byte / math.log(2)),
            ("text_perplexity/tokens", "token_perplexity", exponential(by_token)),
        )
        return {
            task: Result(metric, value, None, n, self.version)
            for (task, metric, value), n in zip(found, counts, strict=True)
        }

    def _sizes(self, longest: int) -> tuple[int, int]:
        """Return window and stride for a model that reads `longest` tokens."""
        window = longest if self.window is None else self.window
        return window, max(1, window // 2) if self.stride is None else self.stride


def _without_words(file: str) -> list[str]:
    """Return a line about a file that holds no word, or no text."""
    try:
        return [] if lines.read(file).strip() else [f"{file}: no word in it; remove it"]
    except UserError as error:
        return error.problems
