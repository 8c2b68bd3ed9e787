"""Attention that stays inside documents, where several of them share a sample. No torch at import.

A batch then has the number of each token's document: `documents` (B, S), and `decoder_documents` (B, T) for a decoder;
`places` (B, S) says where in its document each token stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.models.base import Batch, Parts

DOCUMENTS = "documents"


def mask(batch: Batch, reads: str = DOCUMENTS, read: str = DOCUMENTS, causal: bool = False) -> Tensor | None:
    """Return which tokens attend to which: (B, 1, S, T), true inside one document.

    `reads` and `read` name the numbers of the rows that attend and of those that are attended to; `causal` hides the
    later ones. None if the batch does not tell documents apart.
    """
    if reads not in batch:
        return None
    inside_B1ST = batch[reads][:, None, :, None] == batch[read][:, None, None, :]
    return inside_B1ST.tril() if causal else inside_B1ST


def hide(bias_1HST: Tensor, mask_B1ST: Tensor | None) -> Tensor:
    """Return a bias of attention scores that is minus infinity outside of a mask: (B, H, S, T)."""
    return bias_1HST if mask_B1ST is None else bias_1HST.masked_fill(~mask_B1ST, float("-inf"))


def positions(net: Parts, batch: Batch) -> Tensor:
    """Return the learned position of each token: (B, S, E), or (S, E) where they are the same in every sample."""
    if "places" in batch:
        found: Tensor = net.position(batch["places"])
        return found
    rows: Tensor = net.position.weight[: batch["tokens"].shape[1]]
    return rows
