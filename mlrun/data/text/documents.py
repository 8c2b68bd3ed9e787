"""Where the documents of a window begin and end. Shapes: B samples, S tokens in a row."""

from __future__ import annotations

import numpy as np


def numbers(ends_BS: np.ndarray) -> np.ndarray:
    """Return the number of each token's document in its window, from 0; `ends_BS` marks each one's last token."""
    return np.cumsum(np.pad(ends_BS[:, :-1], ((0, 0), (1, 0))), axis=1, dtype=np.int64)


def places(documents_BS: np.ndarray) -> np.ndarray:
    """Return where in its document each token stands, from 0: how many neighbours before it have its number."""
    at_S = np.arange(documents_BS.shape[1])
    starts_BS = np.pad(documents_BS[:, 1:] != documents_BS[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return at_S - np.maximum.accumulate(np.where(starts_BS, at_S, 0), axis=1)
