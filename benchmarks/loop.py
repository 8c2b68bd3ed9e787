"""The training loop beside a bare PyTorch loop and Hugging Face's Trainer: GPT-2, BERT and ViT on one thread.

All three start from the same weights and see the same batches, which are ready in memory, with AdamW of the same
settings, the same clipping, a line of the log every 5 steps, and one evaluation at the end. The bare loop has our
network, the Trainer the network of `transformers` of the same sizes. They take turns, so that what else the machine
does falls on all; ratios are of processor time, the medians over the turns.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import ours
from benchmarks.ours import Batch, Work
from benchmarks.table import Report, Target, table
from mlrun.config.load import Config
from mlrun.interop.folders import export_hf
from mlrun.models.base import IGNORED
from mlrun.models.network import build
from mlrun.train.model_folder import save_model
from mlrun.train.parallel.processes import Ranks
from mlrun.train.snapshot import Snapshot

STEPS, TURNS, EVERY = 15, 5, 5
FAMILIES = {
    "GPT-2": ["model=gpt_tiny", "batch=8"],
    "BERT": ["model=bert_tiny", "batch=8"],
    "ViT": ["model=deit_digits", "data=digits", "batch=32"],
}
WAYS = ("ours", "bare", "Trainer")
BARE, TRAINER = 0.98, 1.15
HEAD = ["family", *(f"{way}: s (wall)" for way in WAYS), "bare / ours", "Trainer / ours", "held-out losses apart"]
WANTED = ("transformers", "accelerate")


@dataclass(frozen=True)
class Turn:
    """One training of one way: seconds of the processor, seconds on the wall, held-out loss."""

    processor: float
    wall: float
    loss: float | None


def bare(given: Work) -> Callable[[Path], float | None]:
    """Return a loop that one would write by hand, around our network."""
    spec, net = given.config.optimizer, build(given.config.model, 0)
    matrices, vectors = ([p for p in net.parameters() if (p.ndim >= 2) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)
    parameters = list(net.parameters())

    def train(folder: Path) -> float:
        folder.mkdir(parents=True)
        with open(folder / "log.jsonl", "w") as log:
            net.train()
            for step, batch in enumerate(given.batches[: given.stage().steps], 1):
                loss = net(batch)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(parameters, spec.clip)
                adamw.step()
                adamw.zero_grad(set_to_none=True)
                if step % EVERY == 0:
                    said = {"step": step, "loss": loss.item(), "grad_norm": norm.item()}
                    print(json.dumps(said), file=log, flush=True)
            net.eval()
            with torch.no_grad():
                losses = [(net(batch).item(), net.model.label_count(batch)) for batch in given.held_out.ready]
            return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)

    return train


def theirs(batch: Batch) -> dict[str, Tensor]:
    """Return a batch as the networks of `transformers` take it."""
    if "images" in batch:
        return {"pixel_values": batch["images"], "labels": batch["labels"]}
    tokens, labels = batch["tokens"], batch["labels"]
    if "positions" in batch:
        whole = torch.full_like(tokens, IGNORED)
        return {"input_ids": tokens, "labels": whole.scatter(1, batch["positions"], labels)}
    # It shifts them itself: the label of the last token, which it cannot see, is left out on both sides.
    shifted = torch.cat([torch.full_like(tokens[:, :1], IGNORED), labels[:, :-1]], dim=1)
    return {"input_ids": tokens, "labels": shifted}


def without_last(batch: Batch) -> Batch:
    """Return a causal batch without the label of the last token."""
    if "tokens" not in batch or "positions" in batch:
        return batch
    labels = batch["labels"].clone()
    labels[:, -1] = IGNORED
    return {**batch, "labels": labels}


def exported(config: Config, folder: Path) -> Any:
    """Return the network of `transformers` with the same sizes and weights."""
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    snapshot = Snapshot({"weights": build(config.model, 0).state_dict()})
    folder.mkdir(parents=True)
    save_model(folder / "model", config.resolved["model"], snapshot, {}, Ranks(0, 1, torch.device("cpu")))
    export_hf(folder / "model", folder / "theirs")
    (name,) = json.loads((folder / "theirs" / "config.json").read_text())["architectures"]
    return getattr(transformers, name).from_pretrained(folder / "theirs")


def trainer(given: Work, scratch: Path) -> Callable[[Path], float | None]:
    """Return a training by Hugging Face's Trainer; its batches are ready too."""
    from transformers import Trainer, TrainingArguments

    spec, settings, steps = given.config.optimizer, given.config.settings, given.stage().steps
    batches, held_out = ([theirs(batch) for batch in some] for some in (given.batches, given.held_out.ready))
    network = exported(given.config, scratch)

    class Ready(Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(batches, batch_size=None)

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            return torch.utils.data.DataLoader(held_out, batch_size=None)

    def train(folder: Path) -> float:
        with open(os.devnull, "w") as console, contextlib.redirect_stdout(console):
            made.train()
        return float([said for said in made.state.log_history if "eval_loss" in said][-1]["eval_loss"])

    arguments = TrainingArguments(
        output_dir=str(scratch / "trainer"), use_cpu=True, max_steps=steps,
        per_device_train_batch_size=settings.batch, per_device_eval_batch_size=settings.eval.batch,
        learning_rate=spec.lr, weight_decay=spec.weight_decay, adam_beta1=spec.beta1, adam_beta2=spec.beta2,
        adam_epsilon=spec.eps, max_grad_norm=spec.clip, optim="adamw_torch_fused", lr_scheduler_type="constant",
        logging_steps=EVERY, eval_strategy="steps", eval_steps=steps, save_strategy="no", report_to=[],
        disable_tqdm=True, prediction_loss_only=True, remove_unused_columns=False,
    )  # fmt: skip
    made = Ready(model=network, args=arguments, train_dataset=batches, eval_dataset=held_out)
    return train


def makers(given: Work) -> Mapping[str, Callable[[Path], Callable[[Path], float | None]]]:
    """Return by its name what prepares each way that there is here."""

    def own(scratch: Path) -> Callable[[Path], float | None]:
        one = ours.trainee(given)
        return lambda folder: ours.train(given, one, folder)

    found = {"ours": own, "bare": lambda scratch: bare(given)}
    if all(map(importlib.util.find_spec, WANTED)):
        found["Trainer"] = lambda scratch: trainer(given, scratch)
    return found


def turns(given: Work, count: int) -> dict[str, list[Turn]]:
    """Let all ways train in turn, a first time that does not count and then so often."""
    made = makers(given)
    found: dict[str, list[Turn]] = {way: [] for way in made}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(count + 1):
            for way, make in made.items():
                folder = Path(scratch) / f"{way}-{turn}"
                took = timed(make(folder), folder / "run")
                found[way] += [took] if turn else []
    return found


def timed(train: Callable[[Path], float | None], folder: Path) -> Turn:
    """Time one training; what prepares it is not in it."""
    processor, wall = time.process_time(), time.perf_counter()
    loss = train(folder)
    return Turn(time.process_time() - processor, time.perf_counter() - wall, loss)


def work(overrides: Sequence[str], steps: int = STEPS) -> Work:
    """Compose a family's run."""
    given = ours.work([*overrides, "cycle=scratch", f"budget={steps} steps", f"log_every={EVERY}"])
    held_out = ours.HeldOut([without_last(batch) for batch in given.held_out.ready])
    return Work(given.config, given.plan, [without_last(batch) for batch in given.batches], held_out)


def against(found: Mapping[str, list[Turn]], way: str) -> float | None:
    """Return the processor time of a way over ours: the median of the turns' ratios."""
    if way not in found:
        return None
    return median(other.processor / mine.processor for mine, other in zip(found["ours"], found[way], strict=True))


def row(family: str, found: Mapping[str, list[Turn]]) -> list[str]:
    """Return a family's cells."""
    times = [
        f"{median(t.processor for t in found[way]):.2f} ({median(t.wall for t in found[way]):.2f})"
        if way in found
        else "n/a"
        for way in WAYS
    ]
    ratios = ["n/a" if (ratio := against(found, way)) is None else f"{ratio:.3f}" for way in WAYS[1:]]
    losses = [taken[0].loss for taken in found.values()]
    return [family, *times, *ratios, f"{max(losses) - min(losses):.1e}"]


def main(families: Mapping[str, Sequence[str]] = FAMILIES, count: int = TURNS, steps: int = STEPS) -> Report:
    """Return the table of medians."""
    rows, targets = [], []
    for family, overrides in families.items():
        found = turns(work(overrides, steps), count)
        rows.append(row(family, found))
        for way, bound in (("bare", BARE), ("Trainer", TRAINER)):
            targets.append(
                Target(f"loop: {way} / ours, {family}", bound, against(found, way), at_least=True, unit=" x")
            )
    lacking = [name for name in WANTED if importlib.util.find_spec(name) is None]
    note = f" Trainer: n/a without {', '.join(lacking)}." if lacking else ""
    how = f"{steps} steps and an evaluation, one thread, processor seconds (wall beside), medians of {count} in turn."
    return Report(f"{table(HEAD, rows)}\n\n{how}{note}", tuple(targets))
