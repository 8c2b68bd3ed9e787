"""A head on a text model, and texts as its batches.

Shapes: B examples, S tokens of the longest one in a batch, E embed, C classes (1 for a number).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlrun.models.base import TRAIN, Model
from mlrun.models.documents import DOCUMENTS
from mlrun.models.seeds import seed_of

if TYPE_CHECKING:
    from mlrun.evaluate.base import Batch
    from mlrun.evaluate.words import Words
    from mlrun.models.network import Network

STD = 0.02


class Classifier(nn.Module):
    """Answers from one token: of a masked model the first, through a projection and tanh (Devlin et al. 2018); of a
    causal one the last (Radford et al. 2018). The head is new; without next-sentence task the projection is too.
    """

    def __init__(self, net: Network, outputs: int, dropout: float, seed: int) -> None:
        super().__init__()
        width = net.model.sizes()["embed"]
        self.net, self.drop = net, nn.Dropout(dropout)
        self.pool = nn.Linear(width, width) if net.model.objective == "mlm" else None
        self.out = nn.Linear(width, outputs)
        generator = torch.Generator().manual_seed(seed_of(seed, "classifier"))
        for layer in (self.pool, self.out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=STD, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the logits (B, C): cross-entropy of classes, squared error of a number."""
        x_BSE = self.net.model.hidden(self.net, batch)
        x_BE = x_BSE[torch.arange(len(x_BSE), device=x_BSE.device), batch["at"]]
        if self.pool is not None:
            x_BE = torch.tanh(self.pool(x_BE))
        logits_BC = self.out(self.drop(x_BE)).float()
        answers_B = batch["labels"]
        if logits_BC.shape[-1] == 1:
            return F.mse_loss(logits_BC[:, 0], answers_B), logits_BC
        return F.cross_entropy(logits_BC, answers_B.long()), logits_BC

    @staticmethod
    def flops(model: Model, batch: Batch, outputs: int) -> int:
        """Return the FLOPs of forward and backward pass of a batch, places that only fill it up included."""
        rows, sequence = batch["tokens"].shape
        width = model.sizes()["embed"]
        head = width * outputs + (width * width if model.objective == "mlm" else 0)
        return rows * (model.flops(sequence, 0).total + TRAIN * 2 * head)


@dataclass(frozen=True)
class Encoded:
    """The tokens of an example, which of them its answer is read from, the answer, and whether it was shortened."""

    tokens: Sequence[int]
    at: int
    answer: float
    shortened: bool


def encoded(words: Words, objective: str, texts: Sequence[Sequence[int]], answer: float, longest: int) -> Encoded:
    """Return one or two texts as the model reads them; of too long ones the longer loses its end, token by token.

    A masked model reads [CLS] A [SEP] B [SEP], all of token type 0; a causal one A and B, each after the token that
    begins a document, and that token once more, from which the answer is read (Radford et al. 2018, section 3.3).
    """
    room, lengths = longest - len(texts) - 1, [len(text) for text in texts]
    while sum(lengths) > room:
        lengths[lengths.index(max(lengths))] -= 1
    kept = [list(text[:length]) for text, length in zip(texts, lengths, strict=True)]
    first, after = (words.before, words.before)
    if objective == "mlm":
        first, after = words.vocabulary.start, words.vocabulary.end
    tokens = [first, *(token for text in kept for token in (*text, after))]
    at = 0 if objective == "mlm" else len(tokens) - 1
    return Encoded(tokens, at, answer, sum(lengths) < sum(map(len, texts)))


def batch(examples: Sequence[Encoded], masked: bool) -> Batch:
    """Return examples as one batch: the shorter ones are filled up, and `masked` tells the filling apart.

    A causal model needs no such mask: what comes later is not read.
    """
    longest = max(len(one.tokens) for one in examples)
    filled = [[*one.tokens, *([0] * (longest - len(one.tokens)))] for one in examples]
    found = {
        "tokens": torch.tensor(filled),
        "at": torch.tensor([one.at for one in examples]),
        "labels": torch.tensor([one.answer for one in examples], dtype=torch.float32),
    }
    if masked:
        lengths_B = torch.tensor([len(one.tokens) for one in examples])
        found[DOCUMENTS] = (torch.arange(longest) >= lengths_B[:, None]).long()
    return found


def shuffled(examples: Sequence[Encoded], size: int, masked: bool, seed: int) -> Iterator[Batch]:
    """Yield batches for ever, in another order every epoch; the last one of an epoch is what is left."""
    generator = torch.Generator().manual_seed(seed_of(seed, "examples"))
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield batch([examples[number] for number in order[start : start + size]], masked)
