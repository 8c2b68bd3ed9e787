"""What every architecture is: axis sizes, declared parts, and how the parts make logits and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, get_args

from mlrun.errors import UserError, mistake
from mlrun.models.axes import Param, Sizes, depth_axis, depths
from mlrun.models.layers import Block, Flops, Layer, Stack
from mlrun.models.parametrization import COMPLETEP, STANDARD, completep, scaled_axes
from mlrun.own import kind

if TYPE_CHECKING:
    from torch import Tensor

    Batch = Mapping[str, Tensor]


class Parts(Protocol):
    """A built model as the architectures see it: its declared parts by name, and the loss that all share."""

    def __getattr__(self, name: str) -> Any: ...

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor: ...

    def vocabulary_loss(self, x: Tensor, head: tuple[Tensor, Tensor | None], labels: Tensor) -> Tensor | None: ...


Objective = Literal["causal", "mlm", "image", "span"]

# A matmul has one product going forward and two coming back: for its input and for its weight.
TRAIN = 3
# The first projection's input is data and needs no gradient.
TRAIN_ON_DATA = 2

# The label that no loss counts.
IGNORED = -100
# Above any axis of any model; listing the units of a longer one would take all memory.
LARGEST = 2**22
# The rates of dropping.
RATES = ("dropout", "attention_dropout", "drop_path")
# The settings that act in training alone, with what leaves them out.
IN_TRAINING: Mapping[str, Any] = {
    **dict.fromkeys(RATES, 0.0),
    "parametrization": STANDARD,
    "base": None,
}


@dataclass(frozen=True)
class Model(ABC):
    """An architecture at one size. Its fields are settings; those named in `axes` are axis sizes.

    dropout: of the embeddings and of what each residual branch adds (Vaswani et al. 2017, section 5.4).
    attention_dropout: of the attention weights.
    drop_path: a sample leaves a residual branch out (stochastic depth, Huang et al. 2016) with a probability that
        rises linearly from 0 at the first block to this at the last; so a block of a coarser level has that of its
        relative depth.

    The three are probabilities, act in training alone, and are those of level 1 at every level.

    parametrization: how initial values and the optimizer's rates follow from the sizes: standard | completep (see
        `mlrun.models.parametrization`). Neither changes what the model computes with given weights.
    base: of completep, the sizes by axis at which it is the standard one, and the rates are right; an axis that is
        not named has that of level 1, but a decoder's depth has that of `layer`, where this is named.

    No torch at import: `forward` uses the built parts and the methods of their tensors.
    """

    axes: ClassVar[tuple[str, ...]]
    objective: ClassVar[Objective]
    # Whether `forward` keeps the documents of a sample apart (see mlrun.models.documents).
    within_documents: ClassVar[bool] = False
    parametrizations: ClassVar[tuple[str, ...]] = (STANDARD, COMPLETEP)

    dropout: float = field(default=0.0, kw_only=True)
    attention_dropout: float = field(default=0.0, kw_only=True)
    drop_path: float = field(default=0.0, kw_only=True)
    parametrization: str = field(default=STANDARD, kw_only=True)
    base: dict[str, int] | None = field(default=None, kw_only=True, hash=False)

    @abstractmethod
    def parts(self) -> Mapping[str, Layer]:
        """Return the declared top-level parts by attribute name."""

    @abstractmethod
    def forward(self, net: Parts, batch: Batch) -> Tensor:
        """Return the logits of a batch, computed with the built parts in `net`."""

    def hidden(self, net: Parts, batch: Batch) -> Tensor:
        """Return what the head of a text model reads, of every token of the batch: (B, S, E).

        Its FLOPs are those of `flops` with no targets.

        Raises:
            NotImplementedError: the architecture does not say.
        """
        raise NotImplementedError(f"{type(self).__name__} has no hidden")

    @abstractmethod
    def flops(self, sequence: int, targets: int) -> Flops:
        """Return the matmul and attention FLOPs of one sample's forward and backward pass.

        `sequence` tokens are read and the head runs on `targets` of them (span: the decoder's length).
        Equal to `FlopCounterMode` with the math attention.
        """

    def block_flops(self, sequence: int, targets: int) -> dict[str, int]:
        """Return by stack the training FLOPs of one block for one sample, the arguments as in `flops`."""
        sizes, rows = self.sizes(), self.tokens(sequence)
        return {n: TRAIN * part.block.flops(sizes, rows) for n, part in self.parts().items() if isinstance(part, Stack)}

    def head_flops(self, rows: int, outputs: int) -> int:
        """Return the training FLOPs of projecting `rows` hidden states onto `outputs` words or classes."""
        return TRAIN * 2 * rows * self.sizes()["embed"] * outputs

    def sizes(self) -> dict[str, int]:
        """Return the size of every axis."""
        return {axis: getattr(self, axis) for axis in self.axes}

    def resize(self, sizes: Sizes) -> Self:
        """Return the same architecture with other axis sizes; KeyError for an axis that it has not."""
        unknown = set(sizes) - set(self.sizes())
        if unknown:
            raise KeyError(f"{type(self).__name__} has no axis {', '.join(sorted(unknown))}")
        resized = self._with(sizes, self._kept_base())
        assert self.sizes() | dict(sizes) == resized.sizes(), "an axis that follows from others was resized"
        return resized

    def as_evaluated(self) -> Self:
        """Return the same architecture without what acts in training alone: what decides shapes and logits."""
        return replace(self, **IN_TRAINING)

    def params(self) -> dict[str, Param]:
        """Return every learned tensor by its name in the state dict, depth as `{layer}`."""
        if self.parametrization == STANDARD:
            return self._declared()
        base = self.base_sizes()
        return completep(self._with(base, None)._declared(), self.sizes(), base)

    def _with(self, sizes: Sizes, base: dict[str, int] | None) -> Self:
        """Return the same architecture at these sizes of its axes."""
        changed: dict[str, Any] = {axis: sizes[axis] for axis in self.axes if axis in sizes}
        return replace(self, **changed, base=base)

    def _declared(self) -> dict[str, Param]:
        parts = self.parts().items()
        return {f"{part}.{name}": param for part, layer in parts for name, param in layer.params().items()}

    def base_sizes(self) -> dict[str, int]:
        """Return the size of every axis at which the parametrisation is the standard one."""
        named, sizes = self.base or {}, self.sizes()
        return sizes | depths(named, sizes) | named

    def _kept_base(self) -> dict[str, int] | None:
        """Return the base for another size of this model: what it does not name is this one's size."""
        if self.parametrization == STANDARD:
            return self.base
        base = self.base_sizes()
        return {axis: base[axis] for axis in scaled_axes(self._declared())}

    def stack(self, axis: str, block: Block) -> Stack:
        """Return the declared stack of a block, with the model's rates of dropping."""
        attention = replace(block.attention, dropout=self.attention_dropout)
        cross = None if block.cross is None else replace(block.cross, dropout=self.attention_dropout)
        dropped = replace(block, attention=attention, cross=cross, dropout=self.dropout, drop_path=self.drop_path)
        return Stack(axis, dropped)

    def tokens(self, sequence: int) -> int:
        """Return the tokens that one sample of `sequence` positions counts for."""
        return sequence

    def loss_and_logits(self, net: Parts, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the batch's labels, a scalar, and the logits; 0 where there are no labels."""
        logits = self._fitting(self.forward(net, batch), batch["labels"])
        return net.cross_entropy(logits, batch["labels"]), logits

    def loss(self, net: Parts, batch: Batch) -> Tensor:
        """Return the mean loss alone, as training needs it."""
        return self.loss_and_logits(net, batch)[0]

    def _fitting(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return logits; UserError unless each label has a row of them, as wide as the vocabulary or the classes."""
        sizes = self.sizes()
        width = sizes.get("vocab", sizes.get("classes"))
        rows = [*(labels.shape[:-1] if labels.is_floating_point() else labels.shape)]
        given = [*getattr(logits, "shape", ())]
        if not given or given[:-1] != rows or (width is not None and given[-1] != width):
            told = f"a tensor {given}" if given else kind(logits)
            allowed = f"logits {[*rows, width or 'classes']}, a row for each label"
            where = f"{told} from {type(self).__name__}.forward"
            raise UserError(mistake("model", where, allowed, "correct what it returns"))
        return logits

    def label_count(self, batch: Batch) -> int:
        """Return how many labels the loss of a batch is the mean over; a distribution over classes is one."""
        labels = batch["labels"]
        if labels.is_floating_point():
            return labels.numel() // labels.shape[-1]
        return int((labels != IGNORED).sum())

    def problems(self) -> list[str]:
        """Return what is wrong with the sizes and the rates, one line each."""
        if self.objective not in get_args(Objective):
            known, name = ", ".join(get_args(Objective)), type(self).__name__
            return [mistake("model", f"{name}.objective={self.objective}", known, "correct it in that class")]
        if lacking := [axis for axis in self.axes if not hasattr(self, axis)]:
            known = ", ".join(sorted(vars(self)))
            given, remedy = f"{type(self).__name__}.axes has {lacking[0]}", "declare it, or leave it out of axes"
            return [mistake("model", given, f"fields of the class ({known})", remedy)]
        rates = [
            mistake(f"model.{rate}", value, "a number of at least 0 and under 1", "correct the value")
            for rate, value in ((rate, getattr(self, rate)) for rate in RATES)
            if not 0 <= value < 1
        ]
        allowed = f"an integer from 1 to {LARGEST}"
        sizes = [
            mistake(f"model.{axis}", size, allowed, f"correct {axis} or the ratio that made it")
            for axis, size in ((axis, getattr(self, axis)) for axis in self.axes)
            if not _size(size)
        ]
        return rates + sizes + ([] if sizes else self._axis_problems() or self._base_problems())

    def _axis_problems(self) -> list[str]:
        """Return a line for each axis that a part names and the class does not."""
        declared = self._declared()
        named = {factor.axis for param in declared.values() for factor in param.factors}
        unknown = (named | {axis for axis in map(depth_axis, declared) if axis is not None}) - self.sizes().keys()
        return [
            mistake("model", f"axis {axis} of a part", ", ".join(self.axes), f"name it in {type(self).__name__}.axes")
            for axis in sorted(unknown)
        ]

    def _base_problems(self) -> list[str]:
        """Return what is wrong with the parametrisation; the sizes are right."""
        given, known, base = self.parametrization, self.parametrizations, self.base or {}
        if given not in known:
            family = f"{type(self).__name__} has no other" if len(known) == 1 else "choose one"
            return [mistake("model.parametrization", given, ", ".join(known), family)]
        if given == STANDARD:
            remedy = "set model.parametrization=completep, or model.base=null"
            return [] if self.base is None else [mistake("model.base", base, "null with standard", remedy)]
        axes = scaled_axes(self._declared())
        unknown = [axis for axis in base if axis not in axes]
        wrong = [axis for axis in base if axis in axes and not _size(base[axis])]
        return [mistake("model.base", axis, ", ".join(axes), "name an axis that is scaled") for axis in unknown] + [
            mistake(f"model.base.{axis}", base[axis], f"an integer from 1 to {LARGEST}", "give the size that it had")
            for axis in wrong
        ]


class TextModel(Model):
    """A model whose logits are the product of its hidden states with a vocabulary head."""

    def before_head(self, net: Parts, batch: Batch) -> Tensor:
        """Return what the head multiplies, one row (last dim: embed) for each label."""
        return self.hidden(net, batch)

    def unembed(self, net: Parts, x: Tensor) -> Tensor:
        """Return the logits of hidden states: by the head, or the table of tokens where it is tied to that."""
        logits: Tensor = net.head(x) if hasattr(net, "head") else net.token.unembed(x)
        return logits

    def head_tensors(self, net: Parts) -> tuple[Tensor, Tensor | None]:
        """Return the head's weight (V, E) and bias (V), if it has one."""
        return (net.head if hasattr(net, "head") else net.token).weight, None

    def forward(self, net: Parts, batch: Batch) -> Tensor:
        return self.unembed(net, self.before_head(net, batch))

    def loss(self, net: Parts, batch: Batch) -> Tensor:
        """Return the mean loss; where the logits are many they are never all held (`mlrun.models.vocabulary_loss`)."""
        x = self.before_head(net, batch)
        wide = net.vocabulary_loss(x, self.head_tensors(net), batch["labels"])
        if wide is not None:
            return wide
        return net.cross_entropy(self._fitting(self.unembed(net, x), batch["labels"]), batch["labels"])


def _size(value: object) -> bool:
    """Return whether a value can be the size of an axis."""
    return type(value) is int and 1 <= value <= LARGEST
