"""The executor: a loop over the plan's stages. Resuming is an index into that list plus a step."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from mlrun import files
from mlrun.config import Config
from mlrun.data.shuffled_blocks import Broken
from mlrun.errors import UserError, mistake
from mlrun.interop import initial, ledger
from mlrun.log import log
from mlrun.models.network import Network, blocks, initials
from mlrun.multilevel import operators, transfer
from mlrun.multilevel.growth.base import Context
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan, Stage
from mlrun.train.checkpoint import sharded, store
from mlrun.train.clock import PURPOSES, Clock
from mlrun.train.loop import Diverged, Job, Stopped, Trainee, held_out_loss, my_rows, record
from mlrun.train.loop import train as train_stage
from mlrun.train.optimizers import adamw
from mlrun.train.parallel import processes
from mlrun.train.parallel.placement import Placement, like
from mlrun.train.parallel.processes import Ranks
from mlrun.train.signals import Signals
from mlrun.train.snapshot import Progress, Snapshot


def train(config: Config, plan: Plan, folder: Path) -> dict[str, Any]:
    """Train a whole cycle in a run folder, or go on where it stopped; return the summary.

    Raises:
        UserError: the device, the data or the folder cannot serve this run, or the disk is full.
        Diverged: the loss is no longer finite.
        Broken: the data can no longer be read; the same command goes on from the last checkpoint.
        Stopped: a signal came; the same command goes on from there.
    """
    signals = Signals()
    try:
        return _train(config, plan, folder, signals)
    except Stopped:
        signals.pass_on()
        raise
    except OSError as error:
        if error.errno in files.FULL_OR_FORBIDDEN:
            raise UserError(files.reason(error, folder)) from None
        raise


def _train(config: Config, plan: Plan, folder: Path, signals: Signals) -> dict[str, Any]:
    ranks = processes.start(config.settings.hardware)
    try:
        if config.settings.batch % ranks.world:
            remedy = f"choose a multiple of {ranks.world}, the number of processes"
            raise UserError(mistake("batch", config.settings.batch, f"a multiple of {ranks.world}", remedy))
        source = config.data.open(config.model, config.settings.seed, config.settings.cache, config.settings.batch)
        with claimed(folder, ranks):
            return Run(config, plan, folder, ranks, source, signals).go()
    finally:
        processes.stop(ranks)


@contextmanager
def claimed(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold a run folder; a second process that wants it is refused."""
    if not ranks.first:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(mistake("run", folder, "a folder that no other process uses", "wait for it")) from None
        yield


class Run:
    """One cycle in one folder. What a stage needs is handed to it; this object only holds what outlives a stage."""

    def __init__(self, config: Config, plan: Plan, folder: Path, ranks: Ranks, source: Any, signals: Signals) -> None:
        self.config, self.plan, self.folder, self.ranks, self.source = config, plan, folder, ranks, source
        settle = torch.cuda.synchronize if ranks.device.type == "cuda" else (lambda: None)
        self.clock = Clock(settle)
        self.carry = config.settings.cycle.optimizer_policy == "carry"
        self.signals = signals
        self.progress = Progress()
        self.kept: dict[int, Snapshot] = {}

    def go(self) -> dict[str, Any]:
        """Run every stage that is left, then write the model and the summary."""
        finished = _read_json(self.folder / "summary.json")
        if finished is not None and finished["status"] == "finished":
            return finished
        self.plan = initial.charged(self.plan, self.config.settings, self.folder)
        found = store.load(self.folder / "checkpoints", self.ranks)
        if found is None:
            self.current = self._fresh()
            self.progress.content = self.source.describe().get("content")
        else:
            self.progress, self.current, self.kept, warning = found
            self._same_data()
            self.clock.totals = {p: self.progress.seconds.get(p, 0.0) for p in PURPOSES}
            if warning is not None and self.ranks.first:
                print(f"mlrun: {warning}; going on from the checkpoint before it", flush=True)
        with self._log() as self.log, self.signals.listening():
            job = Job(self.plan, self.config.settings, self.ranks, self.clock, self._write, self.signals)
            try:
                for stage in self.plan.stages[self.progress.stage :]:
                    self._stage(job, stage)
            except (Diverged, Broken) as error:
                told = f"{error}; {self._last_good()}"
                self._leave("failed", told)
                raise type(error)(told) from None
            except Stopped as error:
                self._leave("interrupted", str(error))
                raise
            return self._finish()

    def _same_data(self) -> None:
        """Raise UserError if the data is no longer what the run began with."""
        before, now = self.progress.content, self.source.describe().get("content")
        if before != now:
            allowed = f"the data that this run began with ({before})"
            raise UserError(mistake("data", now, allowed, "restore its files, or start a new folder with run=..."))

    def _stage(self, job: Job, stage: Stage) -> None:
        """Make the transfer into a stage, if it is due, then train it and leave its model in `current`."""
        progress = self.progress
        began = self.clock.read()["training"] - (progress.stage_seconds[stage.index :] or [0.0])[0]
        if not progress.entered:
            with self.clock.during("transfer"):
                self._enter(job, stage)
        trainee = self._trainee(stage)

        def took() -> None:
            progress.stage_seconds[stage.index :] = [self.clock.read()["training"] - began]

        def evaluate(step: int) -> None:
            with self.clock.during("evaluation"):
                took()
                (self._evaluate if stage.fork is None else self._evaluate_branch)(job, stage, trainee, step)

        def save(step: int) -> None:
            with self.clock.during("checkpoint"):
                progress.step = step
                took()
                self._save(_snapshot(trainee, self.ranks.placement))

        def fork(step: int) -> None:
            with self.clock.during("checkpoint"):
                self._fork(step, _snapshot(trainee, self.ranks.placement))

        if not progress.entered:
            progress.entered = True
            if stage.fork is None:
                evaluate(progress.step)
        rows = my_rows(self.plan.batch, self.ranks)
        batches = self.source.batches(stage.cursor(progress.step) * self.plan.batch, self.plan.batch, rows)
        with self.clock.during("training"):
            train_stage(job, stage, trainee, batches, progress.step, evaluate, save, fork)
        took()
        self._leave_stage(job, stage, trainee)

    def _leave_stage(self, job: Job, stage: Stage, trainee: Trainee) -> None:
        """Log that a stage is done, and save where it led to."""
        progress = self.progress
        self._write(record(job, stage, stage.end, "stage", stage_seconds=progress.stage_seconds[-1]))
        self.current = _snapshot(trainee, self.ranks.placement)
        if self.config.growth.keeps_teacher:
            self.kept.pop(stage.level + 1, None)
        progress.stage, progress.step, progress.entered = stage.index + 1, stage.end, False
        with self.clock.during("checkpoint"):
            # First: a checkpoint of the trunk's end says that its model is written.
            if stage == self.plan.trunk[-1]:
                save_model(self.folder / "model", self.config, self.current, self.source, self.ranks)
                self._save_ledger(stage)
            self._save(self.current)

    def _save_ledger(self, stage: Stage) -> None:
        """Write beside the model what it cost: where it started from, and this run up to here."""
        if not self.ranks.first:
            return
        spent, seconds = self.plan.spent(stage.end, stage.index), self.clock.read()["training"]
        name = self.folder.resolve().name
        own = ledger.own(name, spent.flops, spent.flops_body, seconds, spent.tokens, machine(self.ranks))
        before = () if self.plan.source is None else ledger.of_source(self.plan.source)
        ledger.write(self.folder / "model", (*before, own))

    def _fork(self, step: int, current: Snapshot) -> None:
        """Keep the state that a branch will start from once the trunk is done."""
        self.progress.forks[str(step)] = self.clock.read()["training"]
        folder = self.folder / "checkpoints"
        if self.ranks.placement.collective:
            sharded.save_fork(folder, step, current, self.ranks)
        elif self.ranks.first:
            store.save_fork(folder, step, current)
        self.ranks.wait()

    def _enter(self, job: Job, stage: Stage) -> None:
        """Move `current` to the stage's level, and log the receipt; a branch starts from its fork as it was there."""
        if stage.fork is not None:
            self.current = store.load_fork(self.folder / "checkpoints", stage.fork, self.ranks)
            return
        averaged = self.current.tensors.pop("ema", None)
        if stage.transfer is None:
            if not self.carry:
                self.current = Snapshot({"weights": self.current.weights})
            return
        before, level, placement = self.current, self.plan.level(stage.level), self.ranks.placement
        if stage.transfer == "coalesce":
            above = self.plan.level(stage.level - 1)
            self.kept[above.number] = before
            grown = after = transfer.coalesce(before, above, self.carry, placement)
            pair, coarse = above, level
        else:
            grown = self._grown(stage, before, averaged)
            after = self._blended(stage, grown)
            pair, coarse = level, self.plan.level(stage.level + 1)
        source_level, target_level = (pair, coarse) if stage.transfer == "coalesce" else (coarse, pair)
        batch = next(iter(self.source.validation(self.config.settings.eval.batch)))
        measured = tuple(
            transfer.loss_and_logits(at, snapshot.weights, batch, self.ranks.device, placement)
            for at, snapshot in ((source_level, before), (target_level, grown), (target_level, after))
        )
        receipt = transfer.receipt(stage.transfer, stage.alpha, pair, (measured[0], measured[1], measured[2][0]))
        self._write(record(job, stage, self.progress.step, "transfer", **receipt))
        self.progress.receipts.append({"stage": stage.index, **receipt})
        self.current = after

    def _grown(self, stage: Stage, coarse: Snapshot, averaged: dict[str, torch.Tensor] | None) -> Snapshot:
        """Return the coarse model at the stage's level; what learning a mapping takes is training time."""
        growth, size = self.config.growth, self.plan.batch
        rows, first = my_rows(size, self.ranks), self.progress.step * size
        context = Context(
            self.config.settings.seed,
            self.carry,
            self.ranks,
            self.config.settings,
            lambda: self.source.batches(first, size, rows),
        )
        if growth.keeps_teacher:
            self.kept[stage.level + 1] = Snapshot({"weights": coarse.weights})
        whole = Snapshot(coarse.tensors | ({"ema": averaged} if averaged is not None else {}), coarse.adam_steps)
        with self.clock.during("training" if stage.entry_flops.total > 0 else "transfer"):
            grown: Snapshot = growth.grow(whole, self.plan.level(stage.level), context)
        return grown

    def _blended(self, stage: Stage, grown: Snapshot) -> Snapshot:
        """Return the decoalesced model after noise and interpolation with the model kept at this level."""
        cycle, level = self.config.settings.cycle, self.plan.level(stage.level)
        if cycle.noise > 0:
            assert level.resize is not None
            seed, placement = self.config.settings.seed, self.ranks.placement
            weights, params = placement.gathering(grown.weights), level.model.params()
            noisy = placement.shard_all(operators.iter_noise(weights, params, level.resize, cycle.noise, seed))
            grown = Snapshot({**grown.tensors, "weights": noisy}, grown.adam_steps)
        kept = self.kept.pop(stage.level, None)
        if kept is None:
            return grown
        assert stage.alpha is not None
        return transfer.interpolate(kept, grown, stage.alpha)

    def _fresh(self) -> Snapshot:
        """Return the first stage's model, from its seed or from the folder `init`."""
        model, init = self.plan.level(self.plan.stages[0].level).model, self.config.settings.init
        keep = self.ranks.placement.shard_all
        if init is None:
            return Snapshot({"weights": keep(initials(model, self.config.settings.seed))})
        found = initial.opened(init)
        if problems := initial.unlike(init, found.model, model):
            raise UserError(problems)
        return Snapshot({"weights": keep((name, found[name].float()) for name in found)})

    def _trainee(self, stage: Stage) -> Trainee:
        spec, hardware = self.config.settings.optimizer, self.config.settings.hardware
        model = self.plan.level(stage.level).model
        net = self.ranks.placement.network(model, self.current.weights, self.ranks.device, hardware.precision)
        for block in blocks(net):
            block.recompute = hardware.activation_checkpointing
        stage_loss = None
        if stage.transfer == "decoalesce":
            coarse = self.plan.level(stage.level + 1)
            stage_loss = self.config.growth.stage_loss(net, stage, coarse, self.kept.get(coarse.number))
        optimizer = adamw.adamw(net, spec)
        if self.current.adam_steps > 0:
            adamw.load_moments(net, optimizer, self.current.tensors, self.current.adam_steps)
        start = self.current.tensors.get("ema", self.current.weights)
        ema = {n: like(p, start[n]) for n, p in net.named_parameters()} if spec.ema is not None else None
        return Trainee(net, optimizer, ema, stage_loss)

    def _evaluate(self, job: Job, stage: Stage, trainee: Trainee, step: int) -> None:
        """Log the held-out loss; at level 1 keep the best weights."""
        values: dict[str, Any] = self._losses(trainee)
        if stage.transfer == "decoalesce":
            values |= self._copies(stage, trainee.net)
        self._write(record(job, stage, step, "val", **values))
        best = self.progress.best
        if stage.level == 1 and math.isfinite(values["loss"]) and (best is None or values["loss"] < best):
            self.progress.best = values["loss"]
            meta = {"step": str(step), "val_loss": repr(values["loss"])}
            save_weights(self.folder / "checkpoints" / store.BEST, trainee.net.state_dict(), meta, self.ranks)

    def _evaluate_branch(self, job: Job, stage: Stage, trainee: Trainee, step: int) -> None:
        """Log the annealed held-out loss, and what a run would have cost that had this as its end."""
        own = self.plan.own(stage, step)
        values = {f"own_{name}": getattr(own, name) for name in ("step", "tokens", "flops", "flops_body")}
        values["own_seconds"] = self.progress.forks[str(stage.fork)] + self.progress.stage_seconds[stage.index]
        self._write(record(job, stage, step, "val", **self._losses(trainee), **values))

    def _losses(self, trainee: Trainee) -> dict[str, float]:
        """Return the held-out loss, and that of the averaged weights where there are any."""
        settings = self.config.settings

        def loss(net: Network) -> float:
            return held_out_loss(net, self.source.validation(settings.eval.batch), settings.hardware, self.ranks)

        values = {"loss": loss(trainee.net)}
        if trainee.ema is not None:
            model, device, precision = trainee.net.model, self.ranks.device, settings.hardware.precision
            values["ema_loss"] = loss(self.ranks.placement.network(model, trainee.ema, device, precision))
        return values

    def _copies(self, stage: Stage, net: Network) -> dict[str, Any]:
        """Return how alike the decoalesced copies still are, 1 for equal: the mean cosine, and that of each layer."""
        level = self.plan.level(stage.level)
        assert level.resize is not None
        state = self.ranks.placement.gathering({name: t.detach() for name, t in net.state_dict().items()})
        cosines = operators.similarity(state, level.model.params(), level.resize)
        if not cosines:
            return {}
        layers: dict[str, list[float]] = {}
        for name, cosine in cosines.items():
            place = re.match(r"\w+\.\d+", name)
            layers.setdefault(place.group() if place else "outside", []).append(cosine)
        means = {layer: sum(values) / len(values) for layer, values in layers.items()}
        return {"copy_similarity": sum(cosines.values()) / len(cosines), "copy_similarity_by_layer": means}

    def _save(self, current: Snapshot) -> None:
        self.progress.seconds = self.clock.read()
        if self.ranks.first:
            self.progress.log_bytes = self.log.offset()
        folder = self.folder / "checkpoints"
        if self.ranks.placement.collective:
            sharded.save(folder, self.progress, current, self.kept, self.ranks)
        elif self.ranks.first:
            store.save(folder, self.progress, current, self.kept)
        self.ranks.wait()

    def _last_good(self) -> str:
        found = store.present(self.folder / "checkpoints", "last")
        if not found:
            return "no checkpoint was due before that"
        return f"the last good checkpoint is {found[0]}, of step {self.progress.step}"

    def _leave(self, status: str, reason: str) -> None:
        """Say in summary.json why the run ended before its time."""
        if self.ranks.first:
            summary = {"status": status, "reason": reason, "val_loss": self.last_val}
            _write_text(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")

    def _finish(self) -> dict[str, Any]:
        """Write summary.json; the loss is that of the trunk's last evaluation."""
        summary = self._summary()
        if self.ranks.first:
            _write_text(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
            self.log.finish(summary)
            store.drop_forks(self.folder / "checkpoints")
        self.ranks.wait()
        return summary

    def _summary(self) -> dict[str, Any]:
        plan = as_dict(self.plan)
        keys = ("stage", "level", "branch", "steps", "tokens", "flops", "flops_body")
        stages = [
            {key: s[key] for key in keys if key in s} | {"seconds": seconds}
            for s, seconds in zip(plan["stages"], self.progress.stage_seconds, strict=True)
        ]
        return {
            "status": "finished",
            "val_loss": self.last_val,
            "best_val_loss": self.progress.best,
            "ledger": {"stages": stages, "total": plan["totals"], "seconds": self.clock.read()},
            "skipped_steps": self._skipped(),
            "receipts": self.progress.receipts,
            "data": self.source.describe(),
            "machine": machine(self.ranks),
        }

    @property
    def last_val(self) -> float | None:
        """The trunk's newest held-out loss in the log: it survives a restart between the last step and the summary."""
        with open(self.folder / "log.jsonl") as lines:
            losses = [r["loss"] for r in map(json.loads, lines) if r["kind"] == "val" and "branch" not in r]
        return losses[-1] if losses else None

    def _skipped(self) -> int:
        with open(self.folder / "log.jsonl") as lines:
            return sum("skipped" in json.loads(line) for line in lines)

    def _write(self, values: dict[str, Any]) -> None:
        if self.ranks.first:
            self.log.write(values)

    @contextmanager
    def _log(self) -> Iterator[Any]:
        if not self.ranks.first:
            yield None
            return
        plan = as_dict(self.plan)
        _write_text(self.folder / "config.yaml", yaml.safe_dump(self.config.resolved, sort_keys=False))
        _write_text(self.folder / "plan.json", json.dumps(plan, indent=2) + "\n")
        keep = self.progress.log_bytes
        with log.start(self.folder, self.config.logger, self.config.resolved, plan, keep=keep) as opened:
            yield opened


def _snapshot(trainee: Trainee, placement: Placement) -> Snapshot:
    """Return copies on the CPU of everything that a stage trains, as this process holds it."""
    moments, taken = adamw.moments(trainee.net, trainee.optimizer)
    kinds: dict[str, Any] = {"weights": trainee.net.state_dict(), **moments}
    if trainee.ema is not None:
        kinds["ema"] = trainee.ema
    return Snapshot({kind: {n: placement.to_cpu(t) for n, t in ts.items()} for kind, ts in kinds.items()}, taken)


def save_weights(path: Path, weights: Mapping[str, torch.Tensor], meta: Mapping[str, str], ranks: Ranks) -> None:
    """Write a model's weights as one file, atomically; all processes call it."""
    if ranks.placement.collective:
        sharded.save_weights(path, weights, meta, ranks)
    elif ranks.first:
        store.save_weights(path, weights, meta)


def save_model(folder: Path, config: Config, final: Snapshot, source: Any, ranks: Ranks) -> None:
    """Write the trained model: weights, their moving average if there is one, configuration, and how data is read."""
    save_weights(folder / "model.safetensors", final.weights, {}, ranks)
    if "ema" in final.tensors:
        save_weights(folder / "ema.safetensors", final.tensors["ema"], {}, ranks)
    if not ranks.first:
        return
    _write_text(folder / "config.json", json.dumps(config.resolved["model"], indent=2) + "\n")
    described = source.describe()
    if "tokenizer" in described:
        _write_text(folder / "tokenizer.json", Path(described["tokenizer"]).read_text())
    if "preprocessor" in described:
        _write_text(folder / "preprocessor_config.json", json.dumps(described["preprocessor"], indent=2) + "\n")


def machine(ranks: Ranks) -> str:
    """Return what the seconds were measured on, in words."""
    if ranks.device.type == "cuda":
        return f"{ranks.world} x {torch.cuda.get_device_name(ranks.device)}, torch {torch.__version__}"
    return f"{ranks.world} x CPU ({platform.machine()}), {torch.get_num_threads()} threads, torch {torch.__version__}"


def _write_text(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded
