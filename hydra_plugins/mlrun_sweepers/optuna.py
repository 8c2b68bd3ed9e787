"""A search for the best settings by Optuna: the baseline and each method alone, with as many trials each.

hydra-optuna-sweeper needs an Optuna below 3, keeps one study for all, and knows neither pruned runs nor fresh seeds.

Everything that is drawn follows from (seed, method, number of the trial) and the values told so far, and a journal
keeps those, so a search that was killed goes on as if it had not been. What a run gave stands in its folder.
"""

# No postponed annotations: Hydra reads a plugin before it is a module, and dataclasses look theirs up there.
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mlrun import files
from mlrun.cli.command import override, parsed
from mlrun.cli.messages import Failed
from mlrun.cli.objective import objective, status
from mlrun.cli.space import Dimension, search
from mlrun.cli.space import begun as begun_with
from mlrun.errors import UserError
from mlrun.train import lock

JOURNAL = "search.journal"
# Trials of a method that are drawn at random before the sampler learns from them.
AT_RANDOM = 5


@dataclass
class OptunaConf:
    """The keys that conf/hydra/sweeper/optuna.yaml explains."""

    _target_: str = "hydra_plugins.mlrun_sweepers.optuna.OptunaSweeper"
    trials: int = 16
    at_a_time: int = 1
    seed: int = 0
    report_seeds: list[int] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A point that was asked for: its method, its number there, and what it sets."""

    method: str
    number: int
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"search-{self.method}-{self.number}"


class OptunaSweeper(Sweeper):
    """Asks for trials, a round of all methods at a time, then runs what it chose on seeds that chose nothing."""

    def __init__(self, **keys: Any) -> None:
        pass  # `setup` reads them as they are written

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Read what is asked for and make the launcher."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Search, choose, and run the choices on fresh seeds."""
        self.folder = Path(str(self.config.hydra.sweep.dir))
        self.wanted = search(self.config.hydra.sweeper, parsed(arguments), int(self.config.seed))
        if lines := begun_with(self.folder, self._identity()):
            raise UserError(lines)
        journal = self.folder / JOURNAL
        try:
            with lock.alone(journal) as held:
                if held:
                    _mend(journal)
                self._search()
        except OSError as error:
            error.filename = error.filename or str(journal)  # Optuna does not say
            raise

    def _search(self) -> None:
        self.studies = {method: _study(self.folder / JOURNAL, method) for method in self.wanted.methods}
        self.launched = 0
        self._write({})
        while asked := self._ask():
            self._run([trial for trial in asked if self._twin(trial) is None])
            for trial in asked:
                self._tell(trial)
            self._write({})
        chosen = {method: best for method in self.studies if (best := self._best(method)) is not None}
        self._write(chosen)
        fresh = [(trial, seed) for seed in self.wanted.report_seeds for trial in chosen.values()]
        self._launch([(self._fresh(*one), [f"seed={one[1]}", "find.prune=null"], one[0]) for one in fresh])

    def _identity(self) -> dict[str, Any]:
        """Return what a search that goes on must share."""
        methods = {m: {d.key: _words(d) for d in ds} for m, ds in self.wanted.methods.items()}
        find = OmegaConf.to_container(self.config.find)
        return {"seed": self.wanted.seed, "run_seed": int(self.config.seed), "space": methods,
                "fixed": list(self.wanted.fixed), "find": find}  # fmt: skip

    def _ask(self) -> list[Trial]:
        """Return the next round: what was under way when the search was stopped, then new trials."""
        from optuna.trial import Trial as Asked
        from optuna.trial import TrialState

        found = []
        for method, study in self.studies.items():
            before = study.get_trials(deepcopy=False)
            under_way = [Asked(study, t._trial_id) for t in before if t.state == TrialState.RUNNING]
            due = min(self.wanted.at_a_time, self.wanted.trials - len(before) + len(under_way)) - len(under_way)
            for number in range(len(before), len(before) + max(0, due)):
                study.sampler = self._sampler(method, number)
                under_way.append(study.ask())
            found += [Trial(method, t.number, self._settings(method, t)) for t in under_way]
        return found

    def _sampler(self, method: str, number: int) -> Any:
        from optuna.samplers import TPESampler

        seed = _drawn(self.wanted.seed, method, number)
        return TPESampler(n_startup_trials=AT_RANDOM, seed=seed, constant_liar=True)

    def _settings(self, method: str, asked: Any) -> tuple[str, ...]:
        """Return what a trial sets; what a killed search had not drawn of it is what it would have drawn."""
        dimensions, drawn, study = self.wanted.methods[method], asked.distributions, self.studies[method]
        if any(d.key not in drawn for d in dimensions):
            study.sampler = self._sampler(method, asked.number)
            (frozen,) = [t for t in study.get_trials() if t.number == asked.number]
            for key, distribution in drawn.items():
                if not distribution.single():  # of one value none is drawn
                    study.sampler.sample_independent(study, frozen, key, distribution)
        return tuple(d.override(_suggested(asked, d)) for d in dimensions)

    def _twin(self, trial: Trial) -> Any:
        """Return an earlier trial of the same settings: it is told again, and not trained."""
        return next((t for t in self._asked(trial.method)[: trial.number] if t.settings == trial.settings), None)

    def _asked(self, method: str) -> list[Trial]:
        from optuna.trial import FrozenTrial

        def settings(frozen: FrozenTrial) -> tuple[str, ...]:
            return tuple(
                d.override(frozen.params[d.key]) for d in self.wanted.methods[method] if d.key in frozen.params
            )

        return [Trial(method, t.number, settings(t)) for t in self.studies[method].get_trials(deepcopy=False)]

    def _run(self, trials: list[Trial]) -> None:
        self._launch([(trial.name, [], trial) for trial in trials])

    def _launch(self, runs: list[tuple[str, list[str], Trial]]) -> None:
        """Launch runs: the name of each one's folder, what it sets beside its trial, and that trial."""
        points = [
            [*self.wanted.fixed, f"method={t.method}", *t.settings, *more, override("hydra.sweep.subdir", name)]
            for name, more, t in runs
        ]
        if points:
            self.launcher.launch(points, initial_job_idx=self.launched)
        self.launched += len(points)

    def _tell(self, trial: Trial) -> None:
        """Tell the study what a run gave. One that was stopped on its way stays asked for, and ends the search."""
        from optuna.trial import TrialState

        folder, study = self.folder / (self._twin(trial) or trial).name, self.studies[trial.method]
        ended = status(folder) if lock.free(folder) else "interrupted"
        if ended == "interrupted":
            why = f"{folder} was stopped, or another process trains it"
            raise Failed(f"{why}; the same command with run={self.folder} goes on with the search")
        value = objective(folder, self.config.find)
        if ended == "finished" and math.isfinite(value):
            study.tell(trial.number, value)
        else:  # of a pruned run nothing more is known than that others were better
            study.tell(trial.number, state=TrialState.PRUNED if ended == "pruned" else TrialState.FAIL)

    def _best(self, method: str) -> Trial | None:
        from optuna.trial import TrialState

        done = self.studies[method].get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = min(done, key=lambda t: (t.value, t.number), default=None)
        return None if best is None else self._asked(method)[best.number]

    def _fresh(self, trial: Trial, seed: int) -> str:
        """Return the folder of a choice on a fresh seed. Its trial is named: another choice is another run."""
        return f"fresh-{trial.method}-{trial.number}-seed={seed}"

    def _write(self, chosen: dict[str, Trial]) -> None:
        """Write which runs the search made, what each sets, and what was chosen, for the report."""
        tried = {
            method: [
                {"run": t.name, "settings": list(t.settings)} for t in self._asked(method) if self._twin(t) is None
            ]
            for method in self.studies
        }
        fresh = {
            self._fresh(trial, seed): trial.method for trial in chosen.values() for seed in self.wanted.report_seeds
        }
        told = {method: {"run": t.name, "settings": list(t.settings)} for method, t in chosen.items()}
        files.write_json(
            self.folder / files.SEARCH, self._identity() | {"tried": tried, "chosen": told, "fresh": fresh}
        )


def _words(dimension: Dimension) -> list[Any]:
    """Return a dimension as it is written down."""
    d = dimension
    return list(d.choices) or [d.low, d.high, *(["log"] if d.log else []), *(["int"] if d.whole else [])]


def _suggested(asked: Any, d: Dimension) -> Any:
    """Return the trial's value in one dimension; asking again gives the same."""
    if d.choices:
        return asked.suggest_categorical(d.key, list(d.choices))
    if d.whole:
        return asked.suggest_int(d.key, int(d.low), int(d.high), log=d.log)
    return asked.suggest_float(d.key, d.low, d.high, log=d.log)


def _drawn(seed: int, method: str, number: int) -> int:
    """Return the sampler's seed for one trial, so that a search that goes on draws what it would have drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed} {method} {number}".encode()).digest()[:4], "big")


def _mend(journal: Path) -> None:
    """Clear up what a process that was killed, or found the disk full, left: half a record, and Optuna's own lock.

    Raises:
        UserError: a record in the middle is damaged.
    """
    for left in journal.parent.glob(f"{journal.name}.lock*"):
        left.unlink()
    lines = journal.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        print(f"mlrun: {journal}: its last record is half written; it is left out", flush=True)
        os.truncate(journal, sum(map(len, lines[:-1])))
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            told = f"{journal}: line {number} is no record; restore the file, or start a new folder"
            raise UserError(told) from None


def _study(journal: Path, name: str) -> Any:
    """Return the study of one method, with what the journal has of it."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna_schema", node=OptunaConf, provider="mlrun")
