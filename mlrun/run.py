"""The executor: a loop over the plan's stages. Resuming is an index into that list plus a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mlrun import files
from mlrun.config.load import Config
from mlrun.data.source import Broken, same_content
from mlrun.errors import UserError
from mlrun.evaluate.words import Words
from mlrun.models.network import Network
from mlrun.multilevel.transition import Transition
from mlrun.plan import deciding
from mlrun.plan.auto import Decision
from mlrun.plan.rule import Look
from mlrun.plan.stages import Plan, Stage
from mlrun.running import assessment, before, beginning
from mlrun.running.assessment import Assessment
from mlrun.running.records import Records
from mlrun.running.trained import Trained
from mlrun.train import compiled, loop, memory, pruning, reading
from mlrun.train.checkpoint import store, tensor_files
from mlrun.train.clock import PURPOSES, Clock
from mlrun.train.divergence import Diverged
from mlrun.train.lock import claimed
from mlrun.train.loop import Evaluate, Event, Fork, Job, Save, Trainee, record
from mlrun.train.parallel import processes
from mlrun.train.parallel.processes import Lost
from mlrun.train.pruning import Pruned
from mlrun.train.reading import Reading
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
        before.refuse_uneven(config, plan, ranks)
        data = reading.opened(config, plan, ranks)
        for note in before.notes(config, plan, data):
            ranks.say(note)
        known = before.words_of(config, data.source)
        with claimed(folder, ranks) as still_ours:
            ended = before.ended(config, folder)
            if ended is None or config.settings.init_flops is not None:
                plan = before.charged(config, plan, folder, ranks)
            if ended is None:
                return Run(config, plan, folder, data, signals, still_ours, known).go()
            if not (folder / files.MODEL / tensor_files.SINGLE).is_file():
                ranks.say(f"{folder}: the run is finished, but its model is gone")
            return ended
    finally:
        processes.stop(ranks)


class Run:
    """One cycle in one folder. It alone knows how far it has come; whoever does the work is handed what it takes."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        folder: Path,
        data: Reading,
        signals: Signals,
        still_ours: Callable[[], None],
        known: Words | None = None,
    ) -> None:
        self.config, self.plan, self.folder, self.data, self.ranks = config, plan, folder, data, data.ranks
        self.signals, self.still_ours = signals, still_ours
        self.clock = Clock.of(self.ranks.device)
        self.fit = memory.Fit(config.settings.hardware, self.ranks)
        self.planned = deciding.plans(config, plan)
        self.checkpoints = store.Checkpoints(folder / files.CHECKPOINTS, self.planned, self.ranks)
        self.records = Records(config, folder, self.ranks, data.source.describe)
        self.assessment = Assessment(config, data, known, self.records.tell)
        carried = beginning.carried(config, data.source.describe().get("end"), self.ranks)
        self.trained = Trained(folder, config, data.source, self.ranks, carried)
        self.progress = Progress()
        self.kept: dict[int, Snapshot] = {}
        self.hopeless: str | None = None  # why, on the first process

    def go(self) -> dict[str, Any]:
        """Run every stage that is left, then write the summary."""
        self.ranks.by_first(lambda: before.same_plan(self.config, self.plan, self.folder))
        self._begin()
        with self.records.opened(self.plan, self.progress.log_bytes), self.signals.listening():
            log = self.folder / files.LOG
            # What memory had left of the micro-batches before a resume; every process the same.
            self.fit.sizes = self.ranks.together(lambda: memory.logged(log) if self.ranks.first else {})[0]
            self._start()
            try:
                while self.progress.stage < len(self.plan.stages):
                    self._stage(self.plan.stages[self.progress.stage])
            except (Diverged, Broken) as error:
                told = f"{error}; {self.checkpoints.last_good(self.progress.step)}"
                self.records.leave("failed", told)
                raise type(error)(told) from None
            except Stopped as error:
                pruned = self.ranks.most(int(self.hopeless is not None))
                reason = self.hopeless or str(error)
                self.records.leave("pruned" if pruned else "interrupted", reason)
                raise Pruned(reason) if pruned else error from None
            self.still_ours()
            said = self.records.finish(self.plan, self.progress, self.clock.read())
            self.checkpoints.drop_forks()
            return said

    def _begin(self) -> None:
        """Take up the run at its newest checkpoint; without one, begin it.

        Raises:
            UserError: no checkpoint can be read, or the data is no longer what the run began with.
        """
        found = self.checkpoints.load()
        if found is None:
            if (note := self.checkpoints.begin()) is not None:
                self.ranks.say(note)
            self.current = beginning.fresh(self.config, self.plan, self.ranks)
            self.progress.content = self.data.source.describe().get("content")
            return
        self.progress, self.plan, self.current, self.kept, warning = found
        same_content(self.progress.content, self.data.source.describe().get("content"), "this run began with")
        self.clock.totals = {p: self.progress.seconds.get(p, 0.0) for p in PURPOSES}
        if warning is not None:
            self.ranks.say(f"{warning}; going on from the checkpoint before it")

    def _start(self) -> None:
        """Log what this start, the first or a later one, runs on."""
        stage = self.plan.stages[min(self.progress.stage, len(self.plan.stages) - 1)]
        if self.ranks.first:
            said = self.records.runs_on(self.progress.log_bytes)
            self._write(self._job(), stage, self.progress.step, "start", said)

    def _job(self) -> Job:
        return Job(self.plan, self.config.settings, self.ranks, self.clock, self.records.write, self.signals, self.fit)

    def _stage(self, stage: Stage) -> None:
        """Make the transfer into a stage, if it is due, then train it and leave its model in `current`."""
        progress, job = self.progress, self._job()
        began = self.clock.read()["training"] - (progress.stage_seconds[stage.index :] or [0.0])[0]
        if not progress.entered:
            with self.clock.during("transfer"):
                self._enter(job, stage)
            progress.entered, progress.unevaluated = True, stage.in_trunk
        one = beginning.trainee(self.config, self.plan, stage, self.current, self.kept, self.ranks)
        with self.clock.during("training"), closing(self.data.batches(stage, progress.step)) as batches:
            for event in loop.train(job, stage, one, batches, progress.step, progress.unevaluated):
                progress.stage_seconds[stage.index :] = [self.clock.read()["training"] - began]
                if self._ends(job, stage, one, event):
                    break
        progress.stage_seconds[stage.index :] = [self.clock.read()["training"] - began]
        self._leave_stage(self._job(), self.plan.stages[stage.index], one)

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
        data, tell = self.data, self.records.tell
        transition = Transition(
            self.config, self.plan, self.ranks, self.clock, self.kept, data.batches, data.held_out, job.pause, tell
        )
        self.current, receipt = transition.enter(stage, self.current, self.progress.step)
        if receipt is not None:
            self._write(job, stage, self.progress.step, "transfer", receipt)
            self.progress.receipts.append({"stage": stage.index, **receipt})

    def _ends(self, job: Job, stage: Stage, one: Trainee, event: Event) -> bool:
        """Do what is due on the way; return whether the run decides by it that the stage ends here."""
        match event:
            case Evaluate(step):
                self.progress.unevaluated = True  # until it is, as a signal may come
                with self.clock.during("evaluation"):
                    self._evaluate(job, stage, one, step)
                return not self.progress.unevaluated and self._grows(job, stage, step)
            case Fork(step):
                with self.clock.during("checkpoint"):
                    current = one.at_rest(self.ranks.placement)
                    self.still_ours()
                    self.progress.forks[str(step)] = self.clock.read()["training"]
                    self.checkpoints.save_fork(step, current)
            case Save(step):
                with self.clock.during("checkpoint"):
                    self.progress.step = step
                    self._save(one.at_rest(self.ranks.placement))
        return False

    def _evaluate(self, job: Job, stage: Stage, one: Trainee, step: int) -> None:
        """Log what is measured; keep the weights if they are the best, and a look if the run decides by it."""
        try:
            values = self.assessment.of(one, job.pause, step == stage.end)
        except Stopped:
            return  # the loop saves and stops; `unevaluated` says what is still due
        if stage.probe is not None or stage.watched(step):
            # That of the first process is every process's.
            look = Look(stage.place(step), values["loss"])
            self.progress.looks.append(self.ranks.together(lambda: look)[0])
        values |= assessment.compared(self.plan, stage, step, self.progress, one.net, self.ranks.placement)
        self._write(job, stage, step, "val", values)
        if (found := self.assessment.layers(one.net, self.plan.level(stage.level).flops.total)) is not None:
            self._write(job, stage, step, "health", found)
        self.progress.unevaluated = False
        if stage.in_trunk and stage.level == 1:
            self._keep_best(one.net, values["loss"], step)
            if self.ranks.first and (why := pruning.judged(self.folder, self.config.settings, self.plan, stage, step)):
                self.hopeless, self.signals.asked = why, STOP

    def _keep_best(self, net: Network, loss: float, step: int) -> None:
        """Write the weights if their held-out loss is the lowest so far."""
        best = self.progress.best
        if math.isfinite(loss) and (best is None or loss < best):
            self.still_ours()
            self.progress.best = loss
            self.checkpoints.save_best(net.state_dict(), {"step": str(step), "val_loss": repr(loss)})

    def _grows(self, job: Job, stage: Stage, step: int) -> bool:
        """Decide by the look that an evaluation gave in a stage whose end is open; return whether it ends here."""
        auto = self.config.settings.cycle.auto
        if auto is None or not stage.watched(step):
            return False
        decisions = [*self.progress.decisions, Decision(step - stage.first)]
        verdict = deciding.weighed(self.plan, stage, self.progress.looks, auto.early)
        verdict, plan = deciding.settled(verdict, decisions, self.planned)
        if plan is not None:
            self._replan(plan, decisions)
        self._write(job, stage, step, "decision", deciding.said(verdict))
        return verdict.grow

    def _choose(self, job: Job, stage: Stage) -> None:
        """Keep, of the probes that ended with `stage`, the one of the lowest held-out loss; the first of equals."""
        losses = [look.loss for look in self.progress.looks]
        if (kept := deciding.lowest(losses)) is None:
            raise Diverged(f"no probe up to step {stage.end} has a finite loss")
        made = record(job, stage, stage.end, "decision", **deciding.said_of_probes(self.plan, stage, kept, losses))
        self.records.write({key: value for key, value in made.items() if key != "probe"})  # it is of all of them
        decisions = deciding.with_kept(self.progress.decisions, kept)
        self._replan(self.planned(decisions), decisions)

    def _replan(self, plan: Plan, decisions: list[Decision]) -> None:
        """Go on by the plan that follows from all decisions, and tell it."""
        self.plan, self.progress.decisions, self.progress.looks = plan, decisions, []
        self.records.replan(plan)

    def _leave_stage(self, job: Job, stage: Stage, one: Trainee) -> None:
        """Log that a stage is done, and save where it led to."""
        progress = self.progress
        self._write(job, stage, stage.end, "stage", {"stage_seconds": progress.stage_seconds[-1]})
        self.current = one.at_rest(self.ranks.placement)
        if self.config.growth.keeps_teacher:
            self.kept.pop(stage.level + 1, None)
        progress.stage, progress.step, progress.entered = stage.index + 1, stage.end, False
        if stage.probe == len(self.plan.probes) - 1:
            self._choose(job, stage)
        with self.clock.during("checkpoint"):
            self.still_ours()
            if self.plan.leaves_state(stage):
                self.checkpoints.save_fork(stage.end, self.current)
            # First: a checkpoint of the trunk's end says that its model is written.
            if stage == self.plan.trunk[-1]:
                spent, seconds = self.plan.spent(stage.end, stage.index), self.clock.read()["training"]
                self.trained.save(self.current, self.plan, spent, seconds)
            self._save(self.current)

    def _save(self, current: Snapshot) -> None:
        self.still_ours()
        self.progress.seconds = self.clock.read()
        if self.ranks.first:
            self.progress.log_bytes = self.records.offset()
        self.checkpoints.save(self.progress, current, self.kept)

    def _write(self, job: Job, stage: Stage, step: int, kind: str, said: Mapping[str, Any]) -> None:
        self.records.write(record(job, stage, step, kind, **said))
