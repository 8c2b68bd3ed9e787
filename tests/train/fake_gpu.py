"""Whole runs on a GPU that is not there: torch's fake tensors know where each tensor lies, and refuse what mixes.

Nothing is computed. A number that the code asks for is answered with 1, so that every branch which needs one goes on.
Backward passes need a device that torch is built for, and a torch for processors knows no `cuda`: the device here is
torch's stand-in for one that is written in Python. It stays for the life of a process, so this is a program:
`python fake_gpu.py OUT.json` writes {case: what went wrong, or null}.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from mlrun import run as runs
from mlrun.config.settings import Cycle, Eval, Hardware, Row
from mlrun.evaluate.accuracy import Accuracy
from mlrun.evaluate.held_out import HeldOut
from mlrun.evaluate.perplexity import Perplexity
from mlrun.models.base import IGNORED, Model
from mlrun.models.bert import BERT
from mlrun.models.deit import DeiT
from mlrun.models.gpt import GPT
from mlrun.models.llama import Llama
from mlrun.models.network import Network
from mlrun.models.t5 import T5
from mlrun.multilevel.coarsening.fpi import FPI
from mlrun.multilevel.coarsening.kept import Kept
from mlrun.multilevel.coarsening.shallow import Shallow
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.multilevel.growth.aki import AKI
from mlrun.multilevel.growth.expand import Expand
from mlrun.multilevel.growth.fresh import Fresh
from mlrun.multilevel.growth.inherit import Inherit
from mlrun.multilevel.growth.ligo import LiGO
from mlrun.multilevel.growth.mslt import MSLT
from mlrun.multilevel.growth.restore import Restore
from mlrun.multilevel.growth.staged import Staged
from mlrun.plan.make import make_plan
from mlrun.running import trained
from mlrun.train.divergence import Guard
from mlrun.train.optimizers.adamw import AdamW
from mlrun.train.optimizers.muon import Muon
from mlrun.train.parallel.processes import Ranks
from mlrun.train.reading import Reading
from mlrun.train.signals import Signals
from mlrun.train.snapshot import Snapshot

DIMS = {"embed": 16, "head": 2, "head_dim": 8, "ffn": 32, "layer": 2}
DROPS = {"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.1}
LLAMA = {"embed": 16, "kv_head": 2, "group": 2, "head_dim": 8, "ffn": 32, "layer": 2, "eps": 1e-5}
T5_SIZES = {"bucket": 8, "distance": 9, "mlp": "gated", "tied": False, "head_scale": 1.0, "decoder_layer": 2}
FAMILIES: dict[str, Model] = {
    "gpt": GPT(vocab=toy.WORDS, position=toy.SEQUENCE, **DIMS, **DROPS),
    "bert": BERT(vocab=toy.WORDS, position=toy.SEQUENCE, token_type=2, **DIMS, **DROPS),
    "llama": Llama(vocab=toy.WORDS, position=toy.SEQUENCE, qk_norm=True, **LLAMA, **DROPS),
    "t5": T5(vocab=toy.WORDS, **T5_SIZES, **DIMS, **DROPS),
    "deit": DeiT(image=8, channel=3, patch=4, classes=5, distillation=True, **DIMS, **DROPS),
}
V_CYCLE = (Row(1, "20%"), Row(2, "30%"), Row(3, "20%"), Row(2, "20%"), Row(1, "20%"))
GROW = (Row(2, "30%"), Row(1, "40%"), Row(1, "20%"))
DEPTH, STACK = Uniform(depth=2), Uniform(depth=2, layers="strided")
GROWTHS: dict[str, tuple[Any, Any]] = {
    "aki": (AKI(), FPI(width=2, ffn=2, head=2)),
    "two stages": (AKI(substructures=1), FPI(width=2, ffn=2, head=2, depth=2)),
    "expand": (Expand(), DEPTH),
    "fresh": (Fresh(), Shallow(layers=1)),
    "copies": (Fresh(source="copy", noise=0.1), Shallow(layers=1)),
    "inherit": (Inherit(), Uniform(width=2, ffn=2, head=2)),
    "ligo": (LiGO(steps=2), STACK),
    "mslt": (MSLT(), STACK),
    "restore": (Restore(), Kept()),
    "staged": (Staged(), Uniform(width=2, ffn=2, head=2)),
}


NAME = "gpu"


class Module(_DummyBackendModule):
    """What torch asks of a device; autocast does so even where it is off."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Answers(TorchDispatchMode):
    """Says 1 where the value of a fake tensor is asked for, and takes masks to choose one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype is torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten.index.Tensor:
            args = args[0], [found for index in args[1] for found in chosen(index)]
        return func(*args, **(kwargs or {}))


def chosen(index: Tensor | None) -> list[Tensor | None]:
    """Return an index as it is, and of a mask the place of one value, on its device."""
    if index is None or index.dtype is not torch.bool:
        return [index]
    return [index.new_empty(1, dtype=torch.long)] * index.dim()


class Nothing:
    """Checkpoints that write nothing, but keep what a branch starts from."""

    def __init__(self, *_: Any) -> None:
        self.forks: dict[int, Snapshot] = {}

    def save_fork(self, step: int, snapshot: Snapshot) -> None:
        self.forks[step] = snapshot

    def load_fork(self, step: int) -> Snapshot:
        return self.forks[step]

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Samples:
    """The same batch again and again, as fake tensors on the processor."""

    def __init__(self, batch: Mapping[str, Tensor], mode: FakeTensorMode) -> None:
        self.batch = {key: mode.from_tensor(value) for key, value in batch.items()}

    def batches(self, start: int, size: int, rows: slice | None = None) -> Iterator[Mapping[str, Tensor]]:
        while True:
            yield self.batch

    def validation(self, size: int) -> Iterator[Mapping[str, Tensor]]:
        yield self.batch

    def describe(self) -> dict[str, Any]:
        return {"name": "fake"}

    def model_files(self) -> dict[str, str]:
        return {}


def batch_of(model: Model) -> dict[str, Tensor]:
    """Return three samples, of text one without labels."""
    words = torch.zeros(3, toy.SEQUENCE, dtype=torch.long)
    if model.objective == "image":
        return {"images": torch.zeros(3, 3, 8, 8), "labels": words[:, 0]}
    words[0] = IGNORED
    batch = {"tokens": words, "labels": words}
    if model.objective == "mlm":
        return batch | {"positions": words[:, :3], "labels": words[:, :3]}
    return batch | ({"decoder_tokens": words} if model.objective == "span" else {})


def moved(module: nn.Module, move: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Do what `nn.Module._apply` does; it would swap tensors, which fake ones that something else knows refuse."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(move(parameter.detach()), parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, move(buffer))
    return module


def made(data: Any, dtype: torch.dtype | None = None, device: Any = "cpu", real: Any = torch.tensor) -> Tensor:
    """Do what `torch.tensor` does, which would want memory of the device."""
    known = real(data, dtype=dtype)
    return torch.empty(known.shape, dtype=known.dtype, device=device)


def live(folder: Path, config: Any, patch: pytest.MonkeyPatch) -> None:
    """Go through a whole run on the device: training, transfers, receipts, evaluations, averages, forks."""
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    source = Samples(batch_of(config.model), mode)
    patch.setattr(nn.Module, "_apply", moved)
    patch.setattr(torch, "tensor", made)
    patch.setattr(runs.store, "Checkpoints", Nothing)
    patch.setattr(trained, "save_model", lambda path, *_: path.mkdir())
    patch.setattr(trained.Trained, "_save_facts", lambda *_: None)
    patch.setattr(Guard, "check", lambda *_: None)
    patch.setattr("mlrun.multilevel.receipt.TOLERANCE", 2.0)  # every change is 1 here
    data = Reading(source, config.settings, Ranks(0, 1, torch.device(NAME, 0)))
    with mode, Answers():
        summary = runs.Run(config, make_plan(config), folder, data, Signals(), lambda: None).go()
    assert summary["status"] == "finished"


def config(model: Model, rows: tuple[Row, ...] = V_CYCLE, **changes: Any) -> Any:
    cycle = Cycle(
        **{"name": "fake", "stages": list(rows), "noise": 0.1, "optimizer_policy": "carry"} | changes.pop("cycle", {})
    )
    base = {"coarsening": Uniform(width=2, ffn=2, head=2, depth=2), "optimizer": AdamW(lr=1e-2, ema=0.9)}
    base |= {"budget": "5 steps", "eval": Eval(every="100%", batch=8)}
    made = toy.make(model=model, cycle=cycle, **base | changes)
    return replace(made, evaluation={"held_out": HeldOut(), "perplexity": Perplexity(), "accuracy": Accuracy()})


TWO = (Row(1, "20%"), Row(2, "40%"), Row(1, "30%"))


def planted(patch: pytest.MonkeyPatch) -> None:
    """Leave a tensor on the processor in every loss."""
    real = Network.loss_and_logits

    def left(net: Network, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, logits = real(net, batch)
        return (loss + torch.zeros(1)).sum(), logits

    patch.setattr(Network, "loss_and_logits", left)


def grown(name: str) -> Any:
    growth, coarsening = GROWTHS[name]
    carries = growth.stateless_because is None and not growth.partial_gradients
    cycle = {"noise": 0.0, "optimizer_policy": "carry" if carries else "reset"}
    rows = TWO if name == "restore" else GROW
    return config(FAMILIES["gpt"], rows, growth=growth, coarsening=coarsening, cycle=cycle)


PIECES = Hardware(micro_batch=2, activation_checkpointing=True)
BRANCHED = toy.BRANCHED | {"cycle": {"branches": ["46%", "54%"]}, "budget": "20 steps"}
CASES: dict[str, Callable[[], Any]] = {
    **{name: partial(config, model, TWO) for name, model in FAMILIES.items()},
    "three levels": partial(config, replace(FAMILIES["gpt"], head=4, layer=4)),
    **{name: partial(grown, name) for name in GROWTHS},
    "muon": partial(config, FAMILIES["gpt"], TWO, optimizer=Muon(lr=1e-2, ema=0.9)),
    "pieces": partial(config, FAMILIES["bert"], TWO, hardware=PIECES, on_divergence="skip"),
    "branches": partial(config, FAMILIES["gpt"], TWO, **BRANCHED),
    "planted": partial(config, FAMILIES["gpt"], TWO),
}


def main(out: Path) -> None:
    """Go through every case."""
    _setup_privateuseone_for_python_backend(NAME, Module())
    found: dict[str, str | None] = {}
    for name, make in CASES.items():
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            if name == "planted":
                planted(patch)
            try:
                live(Path(folder), make(), patch)
                found[name] = None
            except Exception:
                found[name] = traceback.format_exc()
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
