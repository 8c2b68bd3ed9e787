"""What a model gives to tokens: their log-probabilities, of many rows at once.

Rows of one length go together: nothing is padded, so no number depends on what else is measured.
Shapes: B rows, S tokens that the model reads, M places of it whose prediction is looked at, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mlrun.errors import UserError, mistake
from mlrun.train.loop import autocast

if TYPE_CHECKING:
    from mlrun.evaluate.base import Context
    from mlrun.evaluate.words import Words
    from mlrun.models.network import Network


@dataclass(frozen=True)
class Row:
    """What the model reads, the places whose prediction is looked at, and the token that each should predict."""

    tokens: Sequence[int]
    places: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class Score:
    """Of a row: the sum of its labels' log-probabilities in nats, and whether each label was the likeliest token."""

    log_probability: float
    greedy: bool


def score(net: Network, rows: Sequence[Row], context: Context) -> list[Score]:
    """Return the score of each row. All processes call it with the same rows, and return the same."""
    ranks, groups = context.ranks, list(_groups(rows, context.batch))
    seen: list[tuple[int, Score]] = []
    net.eval()
    try:
        for first in range(0, len(groups), ranks.world):
            context.reached(first, len(groups))
            mine = first + ranks.rank
            if mine < len(groups) or ranks.placement.collective:
                # Where forward passes are collective, a process that has none left takes part all the same.
                group = groups[min(mine, len(groups) - 1)]
                found = _scores(net, [rows[i] for i in group], context)
                seen += zip(group, found, strict=True) if mine < len(groups) else ()
    finally:
        ranks.placement.reshard(net.train())
    everywhere = dict(pair for part in ranks.together(lambda: seen) for pair in part)
    return [everywhere[number] for number in range(len(rows))]


def _groups(rows: Sequence[Row], size: int) -> Iterator[list[int]]:
    """Yield the numbers of rows that fit in one batch."""
    alike: dict[tuple[int, int], list[int]] = {}
    for number, row in enumerate(rows):
        alike.setdefault((len(row.tokens), len(row.places)), []).append(number)
    for _, numbers in sorted(alike.items()):
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def _scores(net: Network, rows: Sequence[Row], context: Context) -> list[Score]:
    logits_BMV = predictions(net, [row.tokens for row in rows], [row.places for row in rows], context)
    return [_judged(logits_MV, row.labels) for logits_MV, row in zip(logits_BMV, rows, strict=True)]


def predictions(
    net: Network, tokens: Sequence[Sequence[int]], places: Sequence[Sequence[int]], context: Context
) -> Tensor:
    """Return the logits (B, M, V) at these places of rows of one length."""
    device = context.ranks.device
    tokens_BS, places_BM = (torch.tensor(rows, device=device) for rows in (tokens, places))
    with torch.no_grad(), autocast(context.hardware, device):
        # A masked model reads the places and has logits for them alone; a causal one has them for every token.
        logits = net.logits({"tokens": tokens_BS, "positions": places_BM})
    if net.model.objective == "mlm":
        return logits
    return logits.take_along_dim(places_BM[..., None], dim=1)


def _judged(logits_MV: Tensor, labels: Sequence[int]) -> Score:
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    labels_M = torch.tensor(labels, device=logits_MV.device)
    nats = float(F.cross_entropy(logits_MV, labels_M, reduction="sum"))
    return Score(-nats, bool((logits_MV.argmax(-1) == labels_M).all()))


# Rows of texts


def continuation(words: Words, context: Sequence[int], ids: Sequence[int]) -> Row:
    """Return the row in which a causal model reads a context and predicts `ids`; a long context loses its beginning.

    Raises:
        UserError: the model cannot read that many at once.
    """
    if len(ids) > words.longest:
        allowed = f"at most the {words.longest} tokens that the model reads at once"
        raise UserError(mistake("evaluation", f"{len(ids)} tokens to predict", allowed, "shorten the text"))
    read = [*context, *ids][-(words.longest + 1) :]
    start = len(read) - len(ids)
    return Row(read[:-1], range(start - 1, len(read) - 1), ids)


def windows(words: Words, ids: Sequence[int], window: int, stride: int) -> Iterator[Row]:
    """Yield the rows in which a causal model predicts every token of a document once.

    The first one predicts a whole window; each further one ends `stride` tokens later and predicts those alone, so that
    each has `window - stride` tokens or more before it.
    """
    read = [words.before, *ids]  # read[i] predicts read[i + 1]
    done = 0
    while done < len(ids):
        end = min(len(ids), done + (window if done == 0 else stride))
        begin = max(0, end - window)
        yield Row(read[begin:end], range(done - begin, end - begin), read[done + 1 : end + 1])
        done = end


def masked(words: Words, ids: Sequence[int]) -> Iterator[Row]:
    """Yield the rows in which a masked model predicts each token of a text from all others (Salazar et al. 2020).

    Of a text that is longer than a window it sees the tokens around.
    """
    vocabulary, room = words.vocabulary, words.longest - 2
    for number in range(len(ids)):
        begin = max(0, min(number - room // 2, len(ids) - room))
        seen = list(ids[begin : begin + room])
        seen[number - begin] = vocabulary.mask
        yield Row([vocabulary.start, *seen, vocabulary.end], [number - begin + 1], [ids[number]])


def log_probabilities(net: Network, texts: Sequence[Sequence[int]], context: Context) -> list[float]:
    """Return the log-probability of each text in nats; of a masked model the pseudo-log-likelihood."""
    words = context.words
    assert words is not None, "looked at before"
    if net.model.objective == "mlm":
        rows = [list(masked(words, ids)) for ids in texts]
    else:
        rows = [list(windows(words, ids, words.longest, max(1, words.longest // 2))) for ids in texts]
    scores = iter(score(net, [row for own in rows for row in own], context))
    return [sum(next(scores).log_probability for _ in own) for own in rows]
