"""The executor: a loop over the plan's stages. Resuming is an index into that list plus a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mlrun import files
from mlrun.config.load import Config
from mlrun.data import ahead
from mlrun.data.source import Broken, same_content
from mlrun.errors import UserError
from mlrun.evaluate import words
from mlrun.evaluate.base import unfit
from mlrun.interop import initial
from mlrun.models.network import Network
from mlrun.multilevel import cost
from mlrun.multilevel.transition import Transition, copy_similarity
from mlrun.plan import rule
from mlrun.plan.auto import Decision
from mlrun.plan.make import make_plan
from mlrun.plan.rule import Course, Look, Verdict
from mlrun.plan.stages import Plan, Stage
from mlrun.running import beginning, beside
from mlrun.running.assessment import Assessment
from mlrun.running.records import Records
from mlrun.train import compiled, counted, loop, machine, memory, pruning, summary
from mlrun.train.checkpoint import store, tensor_files
from mlrun.train.clock import PURPOSES, Clock
from mlrun.train.divergence import Diverged
from mlrun.train.lock import claimed
from mlrun.train.loop import Evaluate, Fork, Job, Save, Trainee, my_rows, record
from mlrun.train.model_folder import save_model
from mlrun.train.parallel import processes
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
        beginning.refuse_uneven(config, plan, ranks)
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
        self.records = Records(config, folder, ranks, source.describe)
        self.assessment = Assessment(config, ranks, source, known, self.records.tell)
        settle = torch.cuda.synchronize if ranks.device.type == "cuda" else (lambda: None)
        self.clock = Clock(settle)
        self.signals = signals
        self.checkpoints = store.Checkpoints(folder / files.CHECKPOINTS, self._planned, ranks)
        # Notes that no plan has of its settings: what this machine made of them.
        deciding = config.settings.cycle.auto is not None
        self.extra_notes = plan.notes[len(make_plan(config, False).notes) :] if deciding else ()
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
        self.carried = beginning.carried(self.config, self.source.describe().get("end"), self.ranks.first)
        self.ranks.by_first(lambda: beginning.same_plan(self.config, self.plan, self.folder))
        found = self.checkpoints.load()
        if found is None:
            if (note := self.checkpoints.begin()) is not None and self.ranks.first:
                print(f"mlrun: {note}", flush=True)
            self.current = beginning.fresh(self.config, self.plan, self.ranks)
            self.progress.content = self.source.describe().get("content")
        else:
            self.progress, self.plan, self.current, self.kept, warning = found
            self._same_data()
            self.clock.totals = {p: self.progress.seconds.get(p, 0.0) for p in PURPOSES}
            if warning is not None and self.ranks.first:
                print(f"mlrun: {warning}; going on from the checkpoint before it", flush=True)
        with self.records.opened(self.plan, self.progress.log_bytes), self.signals.listening():
            self.fit = memory.Fit(self.config.settings.hardware, self.ranks, self._micro_batches())
            self._write_start()
            try:
                while self.progress.stage < len(self.plan.stages):
                    self._stage(self.plan.stages[self.progress.stage])
            except (Diverged, Broken) as error:
                told = f"{error}; {self._last_good()}"
                self.records.leave("failed", told)
                raise type(error)(told) from None
            except Stopped as error:
                pruned = self.ranks.most(int(self.hopeless is not None))
                reason = self.hopeless or str(error)
                self.records.leave("pruned" if pruned else "interrupted", reason)
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

    def _planned(self, decisions: Sequence[Decision]) -> Plan:
        """Return the plan of this run with what it has decided."""
        if not decisions:
            return self.plan
        found = make_plan(self.config, False, decisions)
        return replace(found, source=self.plan.source, notes=(*found.notes, *self.extra_notes))

    def _job(self) -> Job:
        return Job(self.plan, self.config.settings, self.ranks, self.clock, self.records.write, self.signals, self.fit)

    def _write_start(self) -> None:
        """Log what this start, the first or a later one, runs on."""
        if self.ranks.first:
            stage = self.plan.stages[min(self.progress.stage, len(self.plan.stages) - 1)]
            facts = self.records.runs_on(self.progress.log_bytes)
            self.records.write(record(self._job(), stage, self.progress.step, "start", **facts))

    def _micro_batches(self) -> dict[int, int]:
        """Return what memory had left of the micro-batches before a resume, by level; every process the same."""
        return self.ranks.together(lambda: memory.logged(self.folder / files.LOG) if self.ranks.first else {})[0]

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
        trainee = beginning.trainee(self.config, self.plan, stage, self.current, self.kept, self.ranks)
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
            config, self.plan, self.ranks, self.clock, kept, self._batches, self.assessment.held_out, job.pause,
            self.records.tell,
        )  # fmt: skip
        self.current, receipt = transition.enter(stage, self.current, self.progress.step)
        if receipt is not None:
            self.records.write(record(job, stage, self.progress.step, "transfer", **receipt))
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
        self.records.write(record(job, stage, step, "decision", **said))
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
        self.records.replan(self.plan)

    def _choose(self, job: Job, stage: Stage) -> None:
        """Keep, of the probes that ended with `stage`, the one of the lowest held-out loss; the first of equals."""
        losses = [look.loss for look in self.progress.looks]
        if not any(map(math.isfinite, losses)):
            raise Diverged(f"no probe up to step {stage.end} has a finite loss")
        kept = min(range(len(losses)), key=lambda n: losses[n] if math.isfinite(losses[n]) else math.inf)
        told = f"the lowest held-out loss of {len(losses)} probes after {stage.steps} steps each"
        said = {"kept": self.plan.probes[kept], "losses": dict(zip(self.plan.probes, losses, strict=True))}
        made = record(job, stage, stage.end, "decision", decided="keep", reason=told, **said)
        self.records.write({key: value for key, value in made.items() if key != "probe"})  # it is of all of them
        *before, last = self.progress.decisions
        self._replan([*before, replace(last, kept=kept)])

    def _leave_stage(self, job: Job, stage: Stage, trainee: Trainee) -> None:
        """Log that a stage is done, and save where it led to."""
        progress = self.progress
        self.records.write(record(job, stage, stage.end, "stage", stage_seconds=progress.stage_seconds[-1]))
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
                self._write_model(stage)
            self._save(self.current)

    def _write_model(self, stage: Stage) -> None:
        """Write the model that a stage has led to, what it cost, and what an export says of it."""
        model, readers = self.config.resolved["model"], self.source.model_files()
        save_model(self.folder / files.MODEL, model, self.current, readers, self.ranks)
        if self.ranks.first:
            said, took = self.source.describe(), self.clock.read()["training"]
            beside.cost(self.folder, self.config, self.plan, stage, said, took, machine.words(self.ranks))
            beside.facts(self.folder, self.config, said, self.carried)

    def _fork(self, step: int, current: Snapshot) -> None:
        """Keep the state that a branch will start from once the trunk is done."""
        self.still_ours()
        self.progress.forks[str(step)] = self.clock.read()["training"]
        self.checkpoints.save_fork(step, current)

    def _evaluate(self, job: Job, stage: Stage, trainee: Trainee, step: int) -> None:
        """Log the held-out loss; of a branch with what a run would have cost that had this as its end."""
        self.progress.unevaluated = True
        try:
            values = self.assessment.of(trainee, job.pause, step == stage.end)
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
        self.records.write(record(job, stage, step, "val", **values))
        if self.config.settings.health:
            found = self.assessment.look(trainee.net, self.plan.level(stage.level).flops.total)
            if found is not None:
                self.records.write(record(job, stage, step, "health", **found))
        self.progress.unevaluated = False
        if stage.in_trunk and stage.level == 1:
            self._keep_best(trainee.net, values["loss"], step)
            self._judge(stage, step)

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

    def _save(self, current: Snapshot) -> None:
        self.still_ours()
        self.progress.seconds = self.clock.read()
        if self.ranks.first:
            self.progress.log_bytes = self.records.offset()
        self.checkpoints.save(self.progress, current, self.kept)

    def _last_good(self) -> str:
        newest = self.checkpoints.newest()
        if newest is None:
            return "no checkpoint was due before that"
        return f"the last good checkpoint is {newest}, of step {self.progress.step}"

    def _finish(self) -> dict[str, Any]:
        """Write summary.json; the loss is that of the trunk's last evaluation."""
        log, facts = self.folder / files.LOG, {"data": self.source.describe(), "machine": machine.words(self.ranks)}
        self.still_ours()
        said = summary.finished(self.plan, self.progress, self.clock.read(), log) | facts
        self.records.finish(said)
        self.checkpoints.drop_forks()
        return said
