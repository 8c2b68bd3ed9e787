"""A corpus made countable: what turns its text into the windows of an objective, and back into a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlrun.data.text import token_files
from mlrun.data.text.objectives import Objective
from mlrun.data.text.tokenizer import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Tokenized:
    """A tokenizer with its special ids, the objective, and the JSON-able key that names the token files."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    objective: Objective
    key: dict[str, Any]

    @property
    def dtype(self) -> str:
        """Return the numpy type of stored ids."""
        return token_files.token_type(self.vocabulary.size)

    def windows(self, tokens: int) -> int:
        """Return how many whole windows that many tokens give."""
        return max(0, tokens - self.objective.window + self.objective.stride) // self.objective.stride

    def length(self, windows: int) -> int:
        """Return how many tokens that many windows take."""
        return windows * self.objective.stride + self.objective.window - self.objective.stride

    def gather(self, tokens_N: np.ndarray, number_B: np.ndarray) -> np.ndarray:
        """Return the windows (B, W), as int64, that have these numbers."""
        offset_BW = number_B[:, None] * self.objective.stride + np.arange(self.objective.window)
        return tokens_N[offset_BW].astype(np.int64)
