"""The executor: a loop over the plan's stages. Resuming is an index into that list plus a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from mlrun import files
from mlrun.config.load import Config
from mlrun.data import ahead
from mlrun.data.source import Broken, same_content
from mlrun.errors import UserError, mistake
from mlrun.evaluate import words
from mlrun.evaluate.base import Benchmark, Context, measure, recorded, unfit
from mlrun.interop import initial, ledger, published, tokenizers
from mlrun.log import jsonl, log
from mlrun.log.doing import evaluating
from mlrun.models.network import Network, blocks, initials
from mlrun.multilevel import cost
from mlrun.multilevel.transition import Transition, copy_similarity
from mlrun.plan import begun, rule
from mlrun.plan.auto import Decision
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.plan.rule import Course, Look, Verdict
from mlrun.plan.stages import Plan, Stage
from mlrun.train import compiled, counted, health, loop, machine, memory, pruning, summary
from mlrun.train.checkpoint import layout, store, tensor_files
from mlrun.train.clock import PURPOSES, Clock
from mlrun.train.divergence import Diverged
from mlrun.train.lock import claimed
from mlrun.train.loop import Evaluate, Fork, Job, Save, Trainee, my_rows, record
from mlrun.train.model_folder import save_model
from mlrun.train.optimizers.stepping import Stepping
from mlrun.train.parallel import processes
from mlrun.train.parallel.placement import like
from mlrun.train.parallel.processes import Lost, Ranks
from mlrun.train.pruning import Pruned
from mlrun.train.signals import STOP, Signals, Stopped
from mlrun.train.snapshot import Progress, Snapshot


def train(config: Config, plan: Plan, folder: Path) -> dict[str, Any]:
    """Train a whole cycle in a run folder, or go on where it stopped; return the summary.

    Raises:
        UserError: the device, the data or the folder cannot serve this run, or the disk is full.
        Diverged: the loss is no longer finite.
        Broken: the data can no longer be read; the same command goes on from the last checkpoint.
        Lost: another process of the run is gone; the same command goes on from the last checkpoint.
        Stopped: a signal came; the same command goes on from there.
        Pruned: the run is hopeless beside others of its sweep; with find.prune=null it goes on from there.
    """
    signals = Signals()
    try:
        return _train(config, plan, folder, signals)
    except Stopped:
        signals.pass_on()
        raise
    except torch.OutOfMemoryError as error:
        remedy = "lower hardware.micro_batch or eval.batch, or give hardware.activation_checkpointing=true"
        raise UserError(f"the memory of the GPU ran out ({str(error).partition('. ')[0]}): {remedy}") from None
    except RuntimeError as error:
        if (reason := processes.lost(error)) is None:
            raise
        raise Lost(reason) from None
    except OSError as error:
        if (reason := files.reason(error, folder)) is not None:
            raise UserError(reason) from None
        raise


def _train(config: Config, plan: Plan, folder: Path, signals: Signals) -> dict[str, Any]:
    ranks = processes.start(config.settings.hardware)
    try:
        processes.same_settings(ranks, config.resolved)
        if config.settings.hardware.compile:
            compiled.keep_in(config.settings.cache)
        _refuse_uneven(config, plan, ranks)
        most = max(stage.samples.read for stage in plan.stages)
        opened = config.data.open(config.model, config.settings.seed, config.settings.cache, most)
        source = ahead.served(opened, config.settings.hardware.workers, ranks.device)
        said = counted.notes(plan.levels, lambda: next(iter(source.validation(1))))
        said += cost.notes(config.growth, config.probes, plan, lambda pieces: _first(source, pieces))
        for note in [*source.describe().get("notes", []), *said] if ranks.first else []:
            print(f"mlrun: {note}", flush=True)
        known = words.of_source(source, config.model, config.data.sequence)
        if problems := unfit(config.evaluation.values(), config.model, known):
            raise UserError(problems)
        with claimed(folder, ranks) as still_ours:
            return Run(config, plan, folder, ranks, source, signals, still_ours, known).go()
    finally:
        processes.stop(ranks)


def _first(source: Any, pieces: int) -> Any:
    """Return the first of the data's samples, each cut into so many, as a batch."""
    cut = source if pieces == 1 else source.in_pieces(pieces)
    return next(iter(cut.batches(0, pieces, slice(0, 1))))


def _refuse_uneven(config: Config, plan: Plan, ranks: Ranks) -> None:
    """Raise UserError for a batch that the processes cannot share out evenly."""
    keys = {s.samples.batch: "batch" if s.samples.batch == config.settings.batch else f"cycle.stages.{s.index}.batch"
            for s in plan.trunk}  # fmt: skip
    remedy = f"choose a multiple of {ranks.world}, the number of processes"
    allowed = f"a multiple of {ranks.world}"
    if found := [mistake(key, batch, allowed, remedy) for batch, key in keys.items() if batch % ranks.world]:
        raise UserError(found)


class Run:
    """One cycle in one folder. What a stage needs is handed to it; this object only holds what outlives a stage."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        folder: Path,
        ranks: Ranks,
        source: Any,
        signals: Signals,
        still_ours: Callable[[], None],
        known: words.Words | None = None,
    ) -> None:
        self.still_ours = still_ours
        self.config, self.plan, self.folder, self.ranks, self.source = config, plan, folder, ranks, source
        self.words = known
        settle = torch.cuda.synchronize if ranks.device.type == "cuda" else (lambda: None)
        self.clock = Clock(settle)
        self.signals = signals
        self.checkpoints = store.Checkpoints(folder / files.CHECKPOINTS, self._planned, ranks)
        # Notes that no plan has of its settings: what this machine made of them.
        deciding = config.settings.cycle.auto is not None
        self.beside = plan.notes[len(make_plan(config, False).notes) :] if deciding else ()
        self.progress = Progress()
        self.kept: dict[int, Snapshot] = {}
        self.hopeless: str | None = None  # why, on the first process
        self.carried: initial.Carried | None = None

    def go(self) -> dict[str, Any]:
        """Run every stage that is left, then write the model and the summary."""
        written = self.folder / files.SUMMARY
        before = files.read_json(written, "remove it, and the run goes on") if written.exists() else {}
        if before.get("status") == "finished":
            return self._finished(before)
        if before.get("status") == "pruned" and self.config.settings.find.prune is not None:
            raise Pruned(before["reason"])
        self._charge()
        self.carried = self._carried()
        self.ranks.together(lambda: self._same_plan() if self.ranks.first else None)
        found = self.checkpoints.load()
        if found is None:
            if (note := self.checkpoints.begin()) is not None and self.ranks.first:
                print(f"mlrun: {note}", flush=True)
            self.current = self._fresh()
            self.progress.content = self.source.describe().get("content")
        else:
            self.progress, self.plan, self.current, self.kept, warning = found
            self._same_data()
            self.clock.totals = {p: self.progress.seconds.get(p, 0.0) for p in PURPOSES}
            if warning is not None and self.ranks.first:
                print(f"mlrun: {warning}; going on from the checkpoint before it", flush=True)
        with self._log() as self.log, self.signals.listening():
            self.fit = memory.Fit(self.config.settings.hardware, self.ranks, self._micro_batches())
            self._write_start(self._job())
            try:
                while self.progress.stage < len(self.plan.stages):
                    self._stage(self.plan.stages[self.progress.stage])
            except (Diverged, Broken) as error:
                told = f"{error}; {self._last_good()}"
                self._leave("failed", told)
                raise type(error)(told) from None
            except Stopped as error:
                pruned = self.ranks.most(int(self.hopeless is not None))
                reason = self.hopeless or str(error)
                self._leave("pruned" if pruned else "interrupted", reason)
                raise Pruned(reason) if pruned else error from None
            return self._finish()

    def _finished(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Return the summary of a run that had ended before."""
        if self.config.settings.init_flops is not None:
            self._charge()
        if self.ranks.first and not (self.folder / files.MODEL / tensor_files.SINGLE).is_file():
            print(f"mlrun: {self.folder}: the run is finished, but its model is gone", flush=True)
        return summary

    def _charge(self) -> None:
        """Put into the plan what the start had cost; what a run learns of it only now is written where it tells it."""
        self.plan = initial.charged(self.plan, self.config.settings, self.folder)
        if self.ranks.first:
            initial.declare(self.folder, self.plan, self.config.resolved)

    def _carried(self) -> initial.Carried | None:
        """Return what the model that the run starts from hands on; read now, as its folder may be gone at the end."""
        init, model = self.config.settings.init, self.config.model
        if init is None or model.objective == "image":
            return None
        chosen = model.objective == "causal" and getattr(self.config.data, "end", None) is not None
        found = initial.carried(init, self.source.describe().get("end") if chosen else None)
        if found is None and self.ranks.first:
            print(f"mlrun: init={init}: it is gone; special ids will be those that the tokenizer names", flush=True)
        return found

    def _planned(self, decisions: Sequence[Decision]) -> Plan:
        """Return the plan of this run with what it has decided."""
        if not decisions:
            return self.plan
        found = make_plan(self.config, False, decisions)
        return replace(found, source=self.plan.source, notes=(*found.notes, *self.beside))

    def _job(self) -> Job:
        return Job(self.plan, self.config.settings, self.ranks, self.clock, self._write, self.signals, self.fit)

    def _write_start(self, job: Job) -> None:
        """Log what this start, the first or a later one, runs on."""
        if not self.ranks.first:
            return
        stage = self.plan.stages[min(self.progress.stage, len(self.plan.stages) - 1)]
        facts = machine.facts(self.ranks, self.config.settings.hardware)
        before = jsonl.records(self.folder / files.LOG, self.progress.log_bytes)
        started = [found for found in before if found["kind"] == "start"]
        if changed := machine.changed(started[-1], facts) if started else []:
            print(f"mlrun: goes on otherwise than before ({'; '.join(changed)}): last digits may differ", flush=True)
        self._write(record(job, stage, self.progress.step, "start", **facts, overrides=self.config.overrides))

    def _micro_batches(self) -> dict[int, int]:
        """Return what memory had left of the micro-batches before a resume, by level; every process the same."""
        return self.ranks.together(lambda: memory.logged(self.folder / files.LOG) if self.ranks.first else {})[0]

    def _same_plan(self) -> None:
        """Raise UserError if a run that has begun was planned otherwise, or own code of it has changed since."""
        path = self.folder / files.PLAN
        begins = not layout.present(self.folder / files.CHECKPOINTS, layout.LAST, layout.BEFORE)
        if begins or not path.exists():
            return
        there = files.read_json(path, "restore it, or remove it: it is written anew")
        if problems := begun.problems(there, self.plan, self.config, path):
            raise UserError(problems)

    def _same_data(self) -> None:
        """Raise UserError if the data is no longer what the run began with."""
        same_content(self.progress.content, self.source.describe().get("content"), "this run began with")

    def _stage(self, stage: Stage) -> None:
        """Make the transfer into a stage, if it is due, then train it and leave its model in `current`."""
        progress, job = self.progress, self._job()
        began = self.clock.read()["training"] - (progress.stage_seconds[stage.index :] or [0.0])[0]
        if not progress.entered:
            with self.clock.during("transfer"):
                self._enter(job, stage)
            progress.entered, progress.unevaluated = True, stage.in_trunk
        trainee = self._trainee(stage)
        with self.clock.during("training"), closing(self._batches(stage, progress.step)) as batches:
            for event in loop.train(job, stage, trainee, batches, progress.step, progress.unevaluated):
                progress.stage_seconds[stage.index :] = [self.clock.read()["training"] - began]
                match event:
                    case Evaluate(step):
                        progress.unevaluated = True  # until it is, as a signal may come
                        with self.clock.during("evaluation"):
                            self._evaluate(job, stage, trainee, step)
                        if not progress.unevaluated and self._grows(job, stage, step):
                            break
                    case Fork(step):
                        with self.clock.during("checkpoint"):
                            self._fork(step, trainee.at_rest(self.ranks.placement))
                    case Save(step):
                        with self.clock.during("checkpoint"):
                            progress.step = step
                            self._save(trainee.at_rest(self.ranks.placement))
        progress.stage_seconds[stage.index :] = [self.clock.read()["training"] - began]
        self._leave_stage(self._job(), self.plan.stages[stage.index], trainee)

    def _batches(self, stage: Stage, step: int) -> Generator[Any]:
        """Return this process's rows of a stage's global batches from that of a step on."""
        batch, pieces = stage.samples.batch, stage.samples.pieces
        source = self.source if pieces == 1 else self.source.in_pieces(pieces)
        found = source.batches(stage.cursor(step) * pieces, batch, my_rows(batch, self.ranks))
        return ahead.beside(found, self.config.settings.hardware.workers, self.ranks.device)

    def _held_out(self) -> Iterator[Any]:
        return iter(self.source.validation(self.config.settings.eval.batch))

    def _enter(self, job: Job, stage: Stage) -> None:
        """Move `current` to the stage's level, and log the receipt.

        A branch starts from its fork as it was there, a probe grows from what all probes grow from, and the stage after
        them starts where the one that was kept ended.
        """
        if stage.start is not None:
            self.current = self.checkpoints.load_fork(stage.start)
            if stage.probe is None:
                self.kept.pop(stage.level, None)
                return
        # What waits for its return waits for every probe.
        config, kept = (self.config, self.kept) if stage.probe is None else (self._probing(stage.probe), {**self.kept})
        transition = Transition(
            config, self.plan, self.ranks, self.clock, kept, self._batches, self._held_out, job.pause, self._tell
        )
        self.current, receipt = transition.enter(stage, self.current, self.progress.step)
        if receipt is not None:
            self._write(record(job, stage, self.progress.step, "transfer", **receipt))
            self.progress.receipts.append({"stage": stage.index, **receipt})

    def _probing(self, number: int) -> Config:
        """Return the configuration that grows as a probe does."""
        return replace(self.config, growth=self.config.probes[number])

    def _grows(self, job: Job, stage: Stage, step: int) -> bool:
        """Take the look that an evaluation gave in a stage whose end is open; return whether the stage ends here.

        All processes decide by the same numbers, those of the first.
        """
        if not stage.watched(step):
            return False
        finer = self.plan.level(stage.level - 1).step_flops(stage.samples.batch)
        course = Course(stage.place(stage.end), stage.flops_of_a_step / finer)
        auto = self.config.settings.cycle.auto
        assert auto is not None
        verdict = rule.decide(self.progress.looks, course, auto.early)
        if verdict.grow:
            verdict = self._settle(Decision(step - stage.first), verdict)
        said = {"decided": "grow" if verdict.grow else "go on", "reason": verdict.reason, **verdict.numbers()}
        self._write(record(job, stage, step, "decision", **said))
        return verdict.grow

    def _settle(self, decision: Decision, verdict: Verdict) -> Verdict:
        """Make the rest of the plan anew from a decision to grow; go on where its branches do not fit to that."""
        decisions = [*self.progress.decisions, decision]
        try:
            self._replan(decisions)
        except UserError as error:
            return replace(verdict, grow=False, reason=f"{verdict.reason}; but not yet, as then {error.problems[0]}")
        return verdict

    def _replan(self, decisions: list[Decision]) -> None:
        """Go on by the plan that follows from all decisions, and tell it."""
        self.plan = self._planned(decisions)
        self.progress.decisions, self.progress.looks = decisions, []
        if self.ranks.first:
            self.log.replan(self._write_plan())

    def _choose(self, job: Job, stage: Stage) -> None:
        """Keep, of the probes that ended with `stage`, the one of the lowest held-out loss; the first of equals."""
        losses = [look.loss for look in self.progress.looks]
        if not any(map(math.isfinite, losses)):
            raise Diverged(f"no probe up to step {stage.end} has a finite loss")
        kept = min(range(len(losses)), key=lambda n: losses[n] if math.isfinite(losses[n]) else math.inf)
        told = f"the lowest held-out loss of {len(losses)} probes after {stage.steps} steps each"
        said = {"kept": self.plan.probes[kept], "losses": dict(zip(self.plan.probes, losses, strict=True))}
        made = record(job, stage, stage.end, "decision", decided="keep", reason=told, **said)
        self._write({key: value for key, value in made.items() if key != "probe"})  # it is of all of them
        *before, last = self.progress.decisions
        self._replan([*before, replace(last, kept=kept)])

    def _leave_stage(self, job: Job, stage: Stage, trainee: Trainee) -> None:
        """Log that a stage is done, and save where it led to."""
        progress = self.progress
        self._write(record(job, stage, stage.end, "stage", stage_seconds=progress.stage_seconds[-1]))
        self.current = trainee.at_rest(self.ranks.placement)
        if self.config.growth.keeps_teacher:
            self.kept.pop(stage.level + 1, None)
        progress.stage, progress.step, progress.entered = stage.index + 1, stage.end, False
        if stage.probe == len(self.plan.probes) - 1:
            self._choose(job, stage)
        with self.clock.during("checkpoint"):
            self.still_ours()
            if stage.probe is not None or any(s.probe == 0 and s.start == stage.end for s in self.plan.stages):
                self.checkpoints.save_fork(stage.end, self.current)
            # First: a checkpoint of the trunk's end says that its model is written.
            if stage == self.plan.trunk[-1]:
                model, beside = self.config.resolved["model"], self.source.model_files()
                save_model(self.folder / files.MODEL, model, self.current, beside, self.ranks)
                if self.ranks.first:
                    self._save_ledger(stage)
                    self._save_facts(self.source.describe())
            self._save(self.current)

    def _save_ledger(self, stage: Stage) -> None:
        """Write beside the model what it cost: where it started from, and this run up to here."""
        spent, data = self.plan.spent(stage.end, stage.index), self.source.describe()
        own = ledger.own(
            self.folder.resolve().name,
            flops=spent.flops,
            flops_body=spent.flops_body,
            seconds=self.clock.read()["training"],
            tokens=spent.tokens,
            machine=machine.words(self.ranks),
            recipe=ledger.recipe(self.config.resolved, data),
            data=ledger.read_of(data),
        )
        before = () if self.plan.source is None else ledger.of_source(self.plan.source)
        ledger.write(self.folder / files.MODEL, (*before, own))

    def _save_facts(self, described: dict[str, Any]) -> None:
        """Write beside the model what an export says of it: special ids as they were published, or classes."""
        folder, model = self.folder / files.MODEL, self.config.model
        if model.objective == "image":
            facts = published.of_classes(described["labels"]) if "labels" in described else {}
        else:
            facts = tokenizers.facts_of_run(folder, model, described.get("end"))
            if self.carried is not None:
                facts = self.carried.facts or facts
                for name, content in self.carried.files.items():
                    files.write_bytes(folder / name, content)
        if facts:
            published.write(folder, facts)

    def _fork(self, step: int, current: Snapshot) -> None:
        """Keep the state that a branch will start from once the trunk is done."""
        self.still_ours()
        self.progress.forks[str(step)] = self.clock.read()["training"]
        self.checkpoints.save_fork(step, current)

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
        spec, hardware = self.config.optimizer, self.config.settings.hardware
        model = self.plan.level(stage.level).model
        net = self.ranks.placement.network(model, self.current.weights, self.ranks.device, hardware.precision)
        for block in blocks(net):
            block.recompute = hardware.activation_checkpointing
        stage_loss = None
        if stage.transfer == "decoalesce":
            coarse = self.plan.level(stage.level + 1)
            stage_loss = self.config.growth.stage_loss(net, stage, coarse, self.kept.get(coarse.number))
        optimizer = Stepping(spec, net)
        optimizer.load(self.current.tensors, self.current.optimizer_steps)
        start = self.current.tensors.get("ema", self.current.weights)
        ema = {n: like(p, start[n]) for n, p in net.named_parameters()} if spec.ema is not None else None
        return Trainee(net, optimizer, ema, stage_loss)

    def _evaluate(self, job: Job, stage: Stage, trainee: Trainee, step: int) -> None:
        """Log the held-out loss; of a branch with what a run would have cost that had this as its end."""
        self.progress.unevaluated = True
        try:
            values = self._measured(job, trainee, step == stage.end)
        except Stopped:
            return  # the loop saves and stops; `unevaluated` says what is still due
        if stage.probe is not None or stage.watched(step):
            self._take(Look(stage.place(step), values["loss"]))
        if stage.fork is not None:
            own = self.plan.own(stage, step)
            values |= {f"own_{name}": getattr(own, name) for name in ("step", "tokens", "flops", "flops_body")}
            values["own_seconds"] = self.progress.forks[str(stage.fork)] + self.progress.stage_seconds[stage.index]
        elif stage.transfer == "decoalesce":
            values |= copy_similarity(trainee.net, self.plan.pair(stage), self.ranks.placement)
        self._write(record(job, stage, step, "val", **values))
        if self.config.settings.health:
            self._look(job, stage, trainee, step)
        self.progress.unevaluated = False
        if stage.in_trunk and stage.level == 1:
            self._keep_best(trainee.net, values["loss"], step)
            self._judge(stage, step)

    def _look(self, job: Job, stage: Stage, trainee: Trainee, step: int) -> None:
        """Log how large everything is in each layer, on the first held-out batch, and what it cost to find out."""
        batch = next(self._held_out())
        found = health.look(trainee.net, batch, self.config.settings.hardware, self.ranks)
        if found is not None:
            passes = loop.samples(batch) * self.plan.level(stage.level).flops.total
            cost = passes + found.pop("score_flops")
            self._write(record(job, stage, step, "health", **found, health_flops=cost))

    def _judge(self, stage: Stage, step: int) -> None:
        """Ask the loop to save and stop where the run is hopeless; at the trunk's end it is what it is."""
        find, last = self.config.settings.find, self.plan.trunk[-1]
        if find.prune is not None and self.ranks.first and (stage, step) != (last, last.end):
            self.hopeless = pruning.hopeless(self.folder, self.config.settings.cycle.name, find)
            if self.hopeless is not None:
                self.signals.asked = STOP

    def _take(self, look: Look) -> None:
        """Keep a look for the decision that it is for; that of the first process is every process's."""
        self.progress.looks.append(self.ranks.together(lambda: look)[0])

    def _keep_best(self, net: Network, loss: float, step: int) -> None:
        """Write the weights if their held-out loss is the lowest so far."""
        best = self.progress.best
        if math.isfinite(loss) and (best is None or loss < best):
            self.still_ours()
            self.progress.best = loss
            meta = {"step": str(step), "val_loss": repr(loss)}
            self.checkpoints.save_best(net.state_dict(), meta)

    def _measured(self, job: Job, trainee: Trainee, ends: bool) -> dict[str, Any]:
        """Return what the evaluations say of the network, and as `ema_...` of its averaged weights.

        Where the stage ends, those with data of their own are among them, and `results` has all with their errors.
        """
        settings, ranks, placement = self.config.settings, self.ranks, self.ranks.placement
        context = Context(
            self.source, settings.eval.batch, settings.hardware, ranks, job.pause, self.words, settings.cache,
            tell=lambda what, done, of: self._tell(evaluating(what), done, of),
        )  # fmt: skip
        due = [one for one in self.config.evaluation.values() if ends or not isinstance(one, Benchmark)]
        found = {"": measure(due, trainee.net, context)}
        if trainee.ema is not None:
            averaged = placement.network(trainee.net.model, trainee.ema, ranks.device, settings.hardware.precision)
            found["ema_"] = measure(due, averaged, replace(context, what="ema_"))
        return recorded(found, whole=ends)

    def _save(self, current: Snapshot) -> None:
        self.still_ours()
        self.progress.seconds = self.clock.read()
        if self.ranks.first:
            self.progress.log_bytes = self.log.offset()
        self.checkpoints.save(self.progress, current, self.kept)

    def _last_good(self) -> str:
        newest = self.checkpoints.newest()
        if newest is None:
            return "no checkpoint was due before that"
        return f"the last good checkpoint is {newest}, of step {self.progress.step}"

    def _leave(self, status: str, reason: str) -> None:
        """Say in summary.json why the run ended before its time."""
        if self.ranks.first:
            said = {"status": status, "reason": reason, "val_loss": summary.last_val(self.folder / files.LOG)}
            files.write_json(self.folder / files.SUMMARY, said)

    def _finish(self) -> dict[str, Any]:
        """Write summary.json; the loss is that of the trunk's last evaluation."""
        log, facts = self.folder / files.LOG, {"data": self.source.describe(), "machine": machine.words(self.ranks)}
        self.still_ours()
        said = summary.finished(self.plan, self.progress, self.clock.read(), log) | facts
        if self.ranks.first:
            files.write_json(self.folder / files.SUMMARY, said)
            self.log.finish(said)
        self.checkpoints.drop_forks()
        return said

    def _write(self, values: dict[str, Any]) -> None:
        if self.ranks.first:
            self.log.write(values)

    def _tell(self, what: str, done: int, of: int | None) -> None:
        """Tell those who listen how far an evaluation or a transfer is; no record says it."""
        if self.ranks.first:
            self.log.doing(what, done, of)

    @contextmanager
    def _log(self) -> Iterator[Any]:
        if not self.ranks.first:
            yield None
            return
        files.write_text(self.folder / files.CONFIG, yaml.safe_dump(self.config.resolved, sort_keys=False))
        plan, keep = self._write_plan(), self.progress.log_bytes
        with log.start(self.folder, self.config.logger, self.config.resolved, plan, keep=keep) as opened:
            yield opened

    def _write_plan(self) -> dict[str, Any]:
        """Write plan.json, which has all that is decided; return what it says."""
        own = begun.code(self.config)
        plan = as_dict(self.plan) | {"data": self.source.describe()} | ({begun.CODE: own} if own else {})
        files.write_json(self.folder / files.PLAN, plan)
        return plan
