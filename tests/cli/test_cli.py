"""The command line: mistakes are one line each and leave nothing behind; sweeps go on; the order of imports holds."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fake_runs as fake
import pytest
import yaml
from called import Outcome, call
from omegaconf import OmegaConf
from toy import SMALL

from mlrun import __main__
from mlrun.cli import command, initial, points, preflight, python, tasks
from mlrun.cli.messages import Failed
from mlrun.config.load import Config, conf_dir
from mlrun.errors import InUse, UserError
from mlrun.plan.stages import Plan
from mlrun.plan.table import WIDTH
from mlrun.report import read
from mlrun.train import lock
from mlrun.train.checkpoint.store import ALONE
from mlrun.train.signals import Stopped

PACKAGE = Path(__main__.__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
TINY = [
    "model.layer=2",
    "model.embed=16",
    "model.head=2",
    "model.head_dim=8",
    "model.ffn=32",
    "model.vocab=280",
    "data.sequence=16",
    "budget=20 steps",
]


Command = Callable[..., Outcome]


@pytest.fixture
def mlrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `mlrun` in an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return partial(call, capfd)


def left() -> list[str]:
    """Return what is in the working folder."""
    return sorted(str(path) for path in Path().rglob("*"))


BAD = {
    "misspelt key": (["optimizer.lrr=3"], "optimizer.lrr=3: allowed: _target_, beta1, beta2, clip"),
    "misspelt key, the right one": (["buget=3"], "did you mean budget?"),
    "misspelt group": (["modle=gpt_tiny"], "did you mean model?"),
    "misspelt choice": (["model=gpt_tinny"], "did you mean gpt_tiny?"),
    "unknown choice": (["cycle=9level"], "allowed: 2level, 3level"),
    "unknown choice of Hydra": (["hydra/launcher=nowhere"], "hydra/launcher=nowhere: allowed: basic, local"),
    "neither yes nor no": (["health=maybe"], "health=maybe: allowed: true, false; correct the value"),
    "wrong type": (["seed=abc"], "seed=abc: allowed: a whole number"),
    "wrong type in a model": (["model.embed=wide"], "model.embed=wide"),
    "key added beside the schema": (["+optimiser=3"], "did you mean optimizer?"),
    "no key": (["lr"], "lr: allowed: KEY=VALUE"),
    "a call for help": (["help"], "help: allowed: KEY=VALUE; mlrun --help says what there is"),
    "a task as a word": (["plan"], "plan: allowed: KEY=VALUE; a task is asked for by task=plan"),
    "a misspelt task as a word": (["reprot"], "by task=NAME (did you mean report?)"),
    "a key as a word": (["optimizer.lr", "=1e-3"], "optimizer.lr: allowed: KEY=VALUE; write optimizer.lr=VALUE"),
    "a choice as a word": (["gpt_tiny"], "gpt_tiny: allowed: KEY=VALUE; a value stands behind its key and an equal"),
    "a folder as a word": (["outputs/a"], "outputs/a: allowed: KEY=VALUE; a folder is named by its key, such as run="),
    "broken value": (["model.embed=[1"], "model.embed=[1: allowed: KEY=VALUE"),
    "unknown flag": (["--frobnicate"], "--frobnicate"),
    "a setting as a flag": (["--seed", "1"], "settings have no dashes: seed=VALUE; mlrun --hydra-help lists"),
    "a setting as a flag with its value": (["--optimizer.lr=1e-3"], "settings have no dashes: optimizer.lr=1e-3;"),
    "help for a task": (["--help", "report"], "a group or key; task=report: compare runs, finished or not"),
    "another primary file": (["--config-name=x"], "--config-dir"),
    "a choice of nothing": (["model=null"], "model=null"),
    "a list without -m": (["seed=0,1"], "add -m"),
    "ratio that does not divide heads": (["coarsening.head=3"], "coarsening.head=3: allowed: 1, 2, 4"),
    "ratio that does not divide layers": (["coarsening.depth=3"], "coarsening.depth=3: allowed: 1, 2, 4"),
    "a level smaller than a head": (["cycle=3level", "model.head=2"], "a level needs at least one head"),
    "length without unit": (["cycle.lengths.coarse=50"], "write a number with its unit"),
    "budget without unit": (["budget=100"], "budget=100: allowed: 1500 steps"),
    "budget as a share": (["budget=5%"], "budget=5%: allowed: 1500 steps"),
    "lengths over the budget": (["cycle.lengths.final=110%"], "at most 100%"),
    "alpha over 1": (["cycle.alpha=1.5"], "cycle.alpha=1.5: allowed: a number in [0, 1]"),
    "negative alpha": (["cycle.alpha=-0.1"], "cycle.alpha=-0.1: allowed: a number in [0, 1]"),
    "missing file": (["data=text", "data.files=[nothing.txt]"], "data.files=nothing.txt"),
    "file not given": (["data=text"], "give data.files="),
    "GPU that is absent": (["hardware.device=cuda"], "hardware.device=cuda: allowed: cpu"),
    "images for a text model": (["data=digits"], "data=Digits"),
    "empty folder name": (["run="], "run=: allowed: a folder"),
    "unknown task": (["task=trane"], "did you mean train?"),
    "report of nothing": (["task=report"], "task=report needs runs="),
    "status of nothing": (["task=status"], "task=status needs runs="),
    "status of absent runs": (["task=status", "runs=nowhere"], "runs=nowhere: allowed: folders that hold log.jsonl"),
    "report of absent runs": (["task=report", "runs=nowhere"], "runs=nowhere"),
    "evaluation of nothing": (["task=evaluate"], "task=evaluate needs run=FOLDER or source=FOLDER"),
    "text of nothing": (["task=sample"], "task=sample needs run=FOLDER or source=FOLDER"),
    "a source for a training": (
        ["source=hf"],
        "source=hf: allowed: left out; task=train does not read it, task=evaluate, task=sample, task=import",
    ),
    "where a training could start": (["source=hf"], "init=FOLDER is what a run starts from"),
    "runs for a training": (["runs=outputs"], "runs=outputs: allowed: left out; task=train does not read it"),
    "a target for a plan": (["task=plan", "target=x"], "target=x: allowed: left out; task=plan does not read it"),
    "a prompt for a training": (["sample.prompt=x"], "sample.prompt=x: allowed: left out; task=train does not read"),
    "a size to go to for a report": (["task=report", "runs=.", "fine=x"], "task=report does not read it, task=deco"),
    "watching what is no report": (["watch=true"], "watch=true: allowed: left out; task=train does not read it"),
    "a run and a folder to sample": (["task=sample", "run=a", "source=b"], "run=a: allowed: left out; task=sample"),
    "pairs of absent files": (
        ["evaluation=[held_out,pairs]", "evaluation.pairs.files=[no.jsonl]"],
        "no.jsonl: allowed",
    ),
    "no files of a cloze": (["evaluation=[held_out,cloze]"], "give evaluation.cloze.files="),
    "no files of a cloze on a finished run": (
        ["task=evaluate", "run=a", "evaluation=[cloze]"],
        "evaluation.cloze.files=???: allowed: a value of your own; give evaluation.cloze.files=",
    ),
    "no tasks of a harness on a folder": (
        ["task=evaluate", "source=a", "evaluation=[harness]"],
        "give evaluation.harness.tasks=",
    ),
    "a misspelt setting of a sample": (["task=sample", "run=a", "sample.promt=x"], "sample.promt=x: allowed"),
    "absent folder of settings": (["--config-dir", "nowhere"], "--config-dir=nowhere: allowed: an existing folder"),
    "a grid without -m": (["scale=tiny", "experiment=alpha"], "experiment=alpha: allowed: with -m; it is about many"),
    "a launcher without -m": (["hydra/launcher=local"], "hydra/launcher=local: allowed: with -m"),
    "a search without -m": (["hydra/sweeper=optuna", "experiment=find"], "hydra/sweeper=optuna: allowed: with -m"),
    "interval in a sweep": (["-m", "seed=interval(0,1)"], "list the values"),
    "key below one that is null": (["hydra.sweeper.params.x=1"], "hydra.sweeper.params.x=1: allowed:"),
    "key added below a number": (["+model.embed.x=1"], "a whole number"),
    "key below a number": (["model.embed.x=1"], "model.embed.x=1: allowed:"),
    "key that its group has not": (["model.x.y=1"], "model.x.y=1: allowed: _target_, activation, attention_dropout, "),
    "logger that is none": (["+logger.foo=1"], "logger.foo=1: allowed: a choice of the group; give logger=NAME"),
    "setting that a logger has not": (
        ["logger=tensorboard", "logger.tensorboard.y=1"],
        "allowed: _target_, x; correct",
    ),
    "setting of a logger that is not chosen": (
        ["logger.wandb.mode=online"],
        "logger.wandb.mode=online: allowed: nothing; logger=wandb gives it, or wandb in the list logger=[...]",
    ),
    "setting of an evaluation that is not chosen": (
        ["evaluation.pairs.files=[a]"],
        "held_out, perplexity; evaluation=pairs gives it, or pairs in the list evaluation=[...]",
    ),
    "another name of a device": (["hardware.device=gpu"], "auto, cpu, cuda; choose one (did you mean cuda?)"),
    "one of two loggers": (["logger=[wandb,tensorbord]"], "did you mean tensorboard?"),
    "wrong setting of one of two loggers": (
        ["logger=[wandb,tensorboard]", "logger.tensorboard.x=flops"],
        "step, tokens",
    ),
    "stage that is not there": (["cycle.stages.9.level=1"], "cycle.stages.9.level=1: allowed: 0, 1, 2"),
    "misspelt method": (["metod=ligo"], "did you mean method?"),
    "group added twice": (["+model=gpt_tiny"], "+model=gpt_tiny: allowed: model=gpt_tiny; the group has a choice"),
    "package of a group": (["model@foo=gpt_tiny"], "model@foo=gpt_tiny: allowed:"),
    "unknown package of a group": (["+model@foo=gpt_tiny"], "Key 'foo' not in 'Settings'"),
    "null for a number": (["seed=null"], "seed=null: allowed: a value other than null"),
    "nothing for a number": (["seed="], "seed=: allowed: a whole number"),
    "bool for a number": (["optimizer.lr=true"], "optimizer.lr=true: allowed: a number"),
    "fraction for a count": (["batch=1.5"], "batch=1.5: allowed: a whole number"),
    "list for a number": (["seed=[1]"], "seed=[1]: allowed: a whole number"),
    "number for a group": (["optimizer=3"], "optimizer=3: allowed: Config group override must be a string"),
    "number for a list": (["cycle.stages=3"], "cycle.stages=3: allowed: a list in brackets, such as [a,b]"),
    "a file for a list": (["data=text", "data.files=a.txt"], "data.files=a.txt: allowed: a list in brackets"),
    "key below one that the cycle has not": (
        ["cycle.auto.mixing=10%"],
        "cycle.auto.mixing=10%: allowed: nothing below cycle.auto, which is null here",
    ),
    "values where the cycle has none": (["cycle.auto={mixing: 10%}"], "nothing below cycle.auto, which is null here"),
    "rows of numbers": (["cycle.stages=[3]"], "cycle.stages=[3]: allowed:"),
    "row without a length": (["cycle.stages=[{level: 1}]"], "give cycle.stages[0].length="),
    "row with a misspelt key": (["cycle.stages=[{level: 1, lenght: rest}]"], "Key 'lenght' not in 'Row'"),
    "not a number": (["optimizer.lr=nan"], "optimizer.lr=nan: allowed: a finite number above 0"),
    "infinite": (["optimizer.weight_decay=inf"], "optimizer.weight_decay=inf: allowed: a finite number"),
    "infinite count": (["batch=inf"], "batch=inf: allowed:"),
    "negative": (["batch=-3"], "batch=-3: allowed: an integer of at least 1"),
    "seed beyond 64 bits": (["seed=99999999999999999999"], "allowed: an integer from 0 to 2^63 - 1"),
    "evaluation every 0 steps": (["eval.every=0 steps"], "eval.every=0 steps: allowed: a length above 0"),
    "checkpoint every 0%": (["checkpoint.every=0%"], "checkpoint.every=0%: allowed: a length above 0"),
    "required key deleted": (["~seed"], "~seed: allowed: seed=VALUE"),
    "required group deleted": (["~model"], "~model: allowed: model=VALUE"),
    "required key of a group deleted": (
        ["~optimizer.lr"],
        "optimizer.lr=missing: allowed: a value; give optimizer.lr=",
    ),
    "a key added that is there": (["+seed=1"], "+seed=1: allowed: seed=1; it is there already"),
    "misspelt key deleted": (["~optimizer.lrr"], "~optimizer.lrr: allowed: _target_, beta1, beta2"),
    "unknown key deleted": (["~nope"], "~nope: allowed:"),
    "Hydra deleted": (["~hydra"], "~hydra: allowed:"),
    "size that no memory holds": (["model.embed=1000000000000"], "allowed: an integer from 1 to 4194304"),
    "reference to nothing": (["name=${nope}"], "name=${...}: allowed: Interpolation key 'nope' not found"),
    "reference to nothing in the folder": (["run=${nope}"], "run=${...}: allowed: Interpolation key 'nope' not found"),
    "reference to nothing in the task": (["task=${nope}"], "task=${...}: allowed:"),
    "reference to nothing for a report": (["task=report", "runs=${nope}"], "runs=${...}: allowed:"),
    "reference to nothing in Hydra": (["hydra.run.dir=${nope}"], "hydra.run.dir=${...}: allowed:"),
    "reference to nothing in a sweep": (["-m", "hydra.sweep.subdir=${nope}"], "hydra.sweep.subdir=${...}: allowed:"),
    "reference to itself": (["name=${name}"], "Recursive interpolation"),
    "reference to a variable that is not set": (["name=${oc.env:NOPE_NOPE}"], "variable 'NOPE_NOPE' not found"),
    "unknown kind of reference": (["name=${nope:1}"], "Unsupported interpolation type nope"),
    "variable to copy that is not set": (["hydra.job.env_copy=[NOPE_NOPE]"], "allowed: KeyError 'NOPE_NOPE'"),
    "empty override": ([""], "mlrun: '': allowed: KEY=VALUE"),
    "only an equal sign": (["="], "=: allowed:"),
    "colon for an equal sign": (["seed:3"], "seed:3: allowed: KEY=VALUE; write seed=3"),
    "open quote": (["seed='"], "seed=': allowed: KEY=VALUE"),
    "open reference": (["name=${"], "name=${: allowed: KEY=VALUE"),
    "two lines": (["name=a\nb=c\n["], "name=a b=c ["),
    "name that is no text": (["run=caf\udce9"], r"run=caf\udce9: allowed: text in UTF-8"),
    "unknown mode": (["hydra.mode=foo"], "expected one of [RUN, MULTIRUN]"),
    "unknown sweeper": (["hydra/sweeper=foo"], "hydra/sweeper=foo: allowed: basic, grid"),
    "no launcher": (["-m", "~hydra/launcher"], "hydra/launcher=null: allowed:"),
    "no parameters but a number": (["hydra.sweeper.params=3"], "hydra.sweeper.params=3: allowed:"),
    "range without -m": (["seed=range(3)"], "add -m"),
    "glob without -m": (["cycle=glob(*)"], "add -m"),
    "empty range": (["-m", "seed=range(5,1)"], "seed=range(5,1): allowed: values, at least one; it holds none"),
    "range without steps": (["-m", "seed=range(1,5,0)"], "seed=range(1,5,0): allowed:"),
    "range of fractions without steps": (["-m", "optimizer.lr=range(0,1,0.0)"], "(start:0, stop:1, step:0)"),
    "range of words": (["-m", "seed=range(a,b)"], "seed=range(a,b): allowed:"),
    "range of nothing": (["-m", "seed=range()"], "seed=range(): allowed:"),
    "choice of nothing in a sweep": (["-m", "seed=choice()"], "empty choice is not legal"),
    "glob that matches nothing": (["-m", "model=glob(zz*)"], "model=glob(zz*): allowed: values, at least one"),
    "glob of what is no group": (["-m", "seed=glob(*)"], "seed=glob(*): allowed: values, at least one"),
    "millions of runs": (["-m", "seed=range(10000)", "batch=8,16"], "allowed: at most 10000 runs"),
    "a value twice in a sweep": (["-m", "seed=0,1,0"], "seed=0,1,0: allowed: each value once; leave out the second 0"),
    "a value in two ways in a sweep": (["-m", "optimizer.lr=1e-3,0.001"], "leave out the second 0.001"),
    "a choice twice in a sweep": (["-m", "cycle=scratch,2level,scratch"], "leave out the second scratch"),
    "a comma alone": (["-m", "seed=,"], "seed=,: allowed: KEY=VALUE"),
    "part without a configuration": (["-p", "model"], "--package and --resolve: allowed: beside --cfg"),
    "resolved without a configuration": (["--resolve"], "--package and --resolve: allowed: beside --cfg"),
    "resolved reference to nothing": (["--cfg", "job", "--resolve", "name=${nope}"], "key 'nope' not found"),
    "sweep and configuration": (["-m", "--cfg", "job"], "-m --cfg: allowed: one of them"),
    "run from a pickle": (["--experimental-rerun", "x"], "a pickle is never read"),
    "completion of nothing": (["-sc"], "mlrun --hydra-help lists the flags"),
    "completion of an unknown shell": (["-sc", "install=csh"], "-sc install=csh: allowed: one of install=bash, "),
    "completion of a word": (["-sc", "foo"], "-sc foo: allowed: one of install=bash, install=fish, install=zsh, unins"),
    "part that is not there": (["--cfg", "job", "-p", "nothing"], "--package=nothing: allowed: task, run, runs, "),
    "part below one that is not there": (["--cfg", "job", "-p", "modle.layer"], "name one (did you mean model?)"),
    "part that is null": (["--cfg", "job", "-p", "init"], "--package=init: allowed: what has a value; it is null"),
    "part of Hydra's that is ours": (["--cfg", "hydra", "-p", "model"], "--package=model: allowed: hydra; name one"),
    "a rate for a report": (["task=report", "runs=.", "optimizer.lr=1"], "optimizer.lr=1: allowed: left out; task=rep"),
    "a run for a list": (["task=status", "runs=.", "run=x"], "run=x: allowed: left out; task=status does not read it"),
    "a run for a calibration": (["task=calibrate", "run=x"], "run=x: allowed: left out; task=calibrate does not"),
    "a run to send": (["task=resend", "runs=.", "run=x"], "run=x: allowed: left out; task=resend does not read it"),
    "a run for an import": (["task=import", "source=a", "target=b", "run=x"], "run=x: allowed: left out; task=import"),
    "a run for an operator": (
        ["task=coalesce", "source=a", "target=b", "run=x"],
        "run=x: allowed: left out; task=",
    ),
    "a model for an operator": (["task=coalesce", "source=a", "target=b", "model=bert_tiny"], "model=bert_tiny: allow"),
    "noise for a blend": (
        ["task=interpolate", "source=a", "grown=b", "target=c", "cycle.alpha=0.3", "cycle.noise=1"],
        "cycle.noise=1: allowed: left out; task=interpolate does not read it",
    ),
    "other data for a run": (["task=evaluate", "run=x", "data=digits"], "does not read it without source=: a run has"),
    "a decay that no run of a sweep has": (
        ["-m", "optimizer.schedule.shape=cosine,linear", "optimizer.schedule.decay=9%"],
        "optimizer.schedule.decay=9%: allowed: left out; optimizer.schedule.shape=wsd alone has a decay: set it",
    ),
    "a length that no row has": (
        ["cycle.lengths.coarse=9%", "cycle.stages=[{level: 1, length: rest}]"],
        "cycle.lengths.coarse=9%: allowed: left out; no row of cycle.stages refers to it",
    ),
    "a value of a scale that nothing takes": (["scale=tiny", "scale.alpha=0.3"], "scale.alpha=0.3: allowed: left out"),
    "folder name that is too long": (["run=" + "a" * 300], "a folder that can be written"),
    "share of a blend": (
        ["task=interpolate", "source=a", "grown=b", "target=c", "cycle.alpha=nan"],
        "cycle.alpha=nan: allowed: a number in [0, 1]",
    ),
    "settings folder in the home of nobody": (["--config-dir", "~nobody9/x"], "~nobody9/x: allowed: a path whose ~ is"),
    "settings folder that is too long": (["--config-dir", "a" * 300], "allowed: an existing folder"),
    "no cache": (["cache="], "cache=: allowed: a folder that can be written"),
    "cache that is a file": ([f"cache={__file__}"], "allowed: a folder that can be written"),
    "run folder that is a file": ([f"run={__file__}"], "allowed: a folder that can be written"),
    "report into a file": (["task=report", "runs=.", f"run={__file__}"], "allowed: a folder that can be written"),
    "evaluation below a file": (
        ["task=evaluate", "source=.", f"run={__file__}/x"],
        "allowed: a folder that can be written",
    ),
    "run folder that no file system makes": (["run=/proc/x/y"], "run=/proc/x/y: allowed: a folder that can be"),
    "cache that no file system makes": (
        ["task=calibrate", "cache=/proc/x"],
        "cache=/proc/x/calibration: allowed: a folder that can be made; No such file",
    ),
    "absent model to begin with": (["init=nowhere"], "init=nowhere: allowed: a model folder"),
    "no model to begin with": (["init="], "init=: allowed: a model folder"),
    "mistake beside a launcher's key": (
        ["-m", "hydra/launcher=local", "hydra.launcher.runs_at_a_time=2", "seed=x"],
        "seed=x",
    ),
    "no runs at a time": (
        ["-m", "hydra/launcher=local", "hydra.launcher.runs_at_a_time=0"],
        "an integer of at least 1",
    ),
    "half a run at a time": (["-m", "hydra/launcher=local", "hydra.launcher.runs_at_a_time=0.5"], "a whole number"),
    "run in the home of nobody": (["run=~nobody9/x"], "~nobody9/x: allowed: a path whose ~ is a home that is"),
    "sweep in the home of nobody": (["-m", "seed=0,1", "run=~nobody9/x"], "~nobody9/x: allowed: a path whose ~ is"),
    "runs in the home of nobody": (["task=status", "runs=~nobody9/x"], "~nobody9/x: allowed: a path whose ~ is"),
    "data in the home of nobody": (["data=text", 'data.files=["~nobody9/x"]'], "~nobody9/x: allowed: a path"),
    "cache in the home of nobody": (["cache='~nobody9/x'"], "cache=~nobody9/x: allowed: a folder that can be written"),
    "model in the home of nobody": (["init=~nobody9/x"], "~nobody9/x: allowed: a path whose ~ is"),
    "target in the home of nobody": (
        ["task=import", "source=.", "target=~nobody9/x"],
        "~nobody9/x: allowed: a path whose ~ is",
    ),
    "runs without a name": (["task=status", "runs="], "runs=: allowed: names with commas between them; a"),
    "one of the runs without a name": (["task=report", "runs=.,"], "runs=.,: allowed: names with commas between them"),
    "results without a name": (["task=leaderboard", "results="], "results=: allowed: names with commas between them"),
    "target without a name": (["task=import", "source=x", "target="], "target=: allowed: the name of a folder"),
    "source without a name": (["task=evaluate", "source="], "source=: allowed: the name of a folder; correct it"),
    "no threads to evaluate with": (
        ["task=evaluate", "run=x", "hardware.threads=0"],
        "hardware.threads=0: allowed: an integer of at least 1, or null",
    ),
    "precision of nobody to evaluate in": (
        ["task=evaluate", "run=x", "hardware.precision=fp7"],
        "hardware.precision=fp7: allowed: auto, fp32, bf16",
    ),
    "no batch to evaluate": (["task=evaluate", "source=x", "eval.batch=0"], "eval.batch=0: allowed: an integer of at"),
    "negative seed of a sample": (["task=sample", "run=x", "seed=-5"], "seed=-5: allowed: an integer from 0"),
    "what no evaluation reads": (
        ["task=evaluate", "run=x", "hardware.micro_batch=2"],
        "hardware.micro_batch=2: allowed: left out; task=evaluate does not read it",
    ),
    "what no sample reads": (["task=sample", "run=x", "hardware.workers=2"], "hardware.workers=2: allowed: left out"),
    "bad point of a sweep": (["-m", "seed=0,1", "cycle=scratch,2levle"], "did you mean 2level?"),
    "bad plan in a sweep": (["-m", "seed=0,1", "cycle.alpha=0.5,2"], "(in 2 of 4 runs, such as seed=0 cycle.alpha=2)"),
}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    preflight.device_problems.cache_clear()
    yield
    preflight.device_problems.cache_clear()


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_one_line_with_exit_code_2_and_nothing_is_written(
    mlrun: Command, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch, lambda *given: None)  # what is not refused shall not train for minutes
    arguments, told = BAD[mistake]
    outcome = mlrun(*arguments)
    assert outcome.code == 2
    assert len(outcome.err) == 1 and outcome.err[0].startswith("mlrun: ") and told in outcome.err[0]
    assert outcome.out == [] and left() == []


OWN_FILES = {
    "a misspelt key": ("# @package _global_\nbudgett: 3\n", "=own: budgett: allowed: alone, batch, budget,"),
    "a misspelt key, and where": ("# @package _global_\nbudgett: 3\n", "/own.yaml (did you mean budget?)"),
    "no package": ("seed: 3\n", "=own: allowed: a file of keys that begins with # @package _global_; write that line"),
    "nothing": ("", "=own: allowed: a file of keys that begins with # @package _global_"),
    "a list": ("- a\n", "=own: allowed: a file of keys that begins with # @package _global_"),
    "no YAML": ("# @package _global_\nname: [1\n", 'own.yaml", line 3'),
    "an unknown group": ("# @package _global_\ndefaults:\n  - override /modell: gpt_tiny\n", "override 'modell'"),
}


@pytest.mark.parametrize("group", ["experiment", "method"])
@pytest.mark.parametrize("mistake", OWN_FILES)
def test_a_mistake_in_a_file_of_ones_own_is_told_with_its_key_or_line(
    mlrun: Command, mistake: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of these groups have no section of their own, and were told that the group is no key."""
    stub(monkeypatch, lambda *given: None)
    content, told = OWN_FILES[mistake]
    Path(f"conf/{group}").mkdir(parents=True)
    Path(f"conf/{group}/own.yaml").write_text(content)
    outcome = mlrun(f"{group}=own")
    assert outcome.code == 2 and len(outcome.err) == 1, outcome
    assert outcome.err[0].startswith(f"mlrun: {group}=own: ") and told in outcome.err[0]
    assert left() == ["conf", f"conf/{group}", f"conf/{group}/own.yaml"]


def test_several_mistakes_are_several_lines(mlrun: Command) -> None:
    outcome = mlrun("modle=x", "seed=abc", "optimizer.lrr=3")
    assert outcome.code == 2
    assert [line.split("=")[0] for line in outcome.err] == ["mlrun: modle", "mlrun: seed", "mlrun: optimizer.lrr"]


@pytest.mark.parametrize("text", ["", "a few words\n\nand a few more\n"])
def test_a_file_that_is_empty_or_too_short_is_refused_without_a_trace(
    mlrun: Command, tmp_path: Path, text: str
) -> None:
    """How long a corpus is shows only when it is read; the folder made for the run goes away again."""
    (tmp_path / "corpus.txt").write_text(text)
    data = ["data=text", f"data.files=[{tmp_path}/corpus.txt]", f"cache={tmp_path}/cache"]
    outcome = mlrun(*TINY, *data, "run=a/b")
    assert outcome.code == 2 and len(outcome.err) == 1 and left() == []


def test_a_plan_is_printed_and_written(mlrun: Command) -> None:
    outcome = mlrun(
        "task=plan", "model=bert_large", "recipe=none", "cycle=3level", "run=p", "hardware.flops_per_second=1e14"
    )
    assert outcome.code == 0 and left() == ["p", "p/plan.json"]
    plan = json.loads(Path("p/plan.json").read_text())
    assert [level["parameters"] for level in plan["levels"]] == [335174458, 54014266, 12781114]
    assert [stage["level"] for stage in plan["stages"]] == [1, 2, 3, 2, 1]
    text = "\n".join(outcome.out)
    for word in ("335M", "0.1331", "decoalesce", "99.9%", "not exact", "copied layers act again", "38 s"):
        assert word in text
    assert all(len(line) <= WIDTH for line in outcome.out)


def test_a_plan_needs_no_torch_no_data_and_no_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['mlrun', 'task=plan', 'model=bert_large', 'cycle=3level', 'data=text',"
        " 'data.files=[no.txt]']; from mlrun.__main__ import main; main();"
        " print([m for m in ('torch', 'datasets', 'matplotlib', 'wandb', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def stub(monkeypatch: pytest.MonkeyPatch, work: Callable[..., None], task: str = "train") -> None:
    monkeypatch.setattr(tasks, "TASKS", {**tasks.TASKS, task: replace(tasks.TASKS[task], does=work)})


def leave_config(config: Config, plan: Plan, folder: Path) -> None:
    """Leave what a run leaves first."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config.resolved))


def test_the_same_folder_resumes_the_same_config_and_no_other(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, leave_config)
    assert mlrun("run=a").code == 0
    assert mlrun("run=a").code == 0
    assert mlrun("run=a", "log_every=3", "logger=wandb", "eval.batch=8", "checkpoint.every=50%").code == 0
    before = Path("a/config.yaml").read_text()
    outcome = mlrun("run=a", "seed=1", "optimizer.lr=2")
    assert outcome.code == 2 and len(outcome.err) == 1
    assert "optimizer.lr (there 0.001, here 2.0); seed (there 0, here 1)" in outcome.err[0]
    assert Path("a/config.yaml").read_text() == before
    # A run that was begun before there was a choice goes on as what there was.
    Path("a/config.yaml").write_text(before.replace("  parametrization: standard\n", "").replace("  base: null\n", ""))
    assert "parametrization" not in Path("a/config.yaml").read_text()
    assert mlrun("run=a").code == 0
    outcome = mlrun("run=a", "model.parametrization=completep")
    assert "model.parametrization (there absent, here completep)" in outcome.err[0]


def test_a_folder_with_other_things_or_that_cannot_be_written_is_refused(mlrun: Command) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    for run, told in (("mine", "it holds thesis.tex"), ("mine/thesis.tex/a", "can be written")):
        outcome = mlrun(f"run={run}")
        assert outcome.code == 2 and len(outcome.err) == 1 and told in outcome.err[0]
    assert left() == ["mine", "mine/thesis.tex"]


HOME = {
    "on the command line": (["run=~/r"], "r/plan.json"),
    "in a file": (["experiment=own"], "own/plan.json"),
    "of a sweep": (["-m", "seed=0", "run=~/s"], "s/0-run/plan.json"),
}


@pytest.mark.parametrize("place", HOME)
def test_a_tilde_that_no_shell_has_read_is_the_home_of_the_user(
    mlrun: Command, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder named ~ was made where one works, which `rm -r ~` does not remove."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/own.yaml").write_text("# @package _global_\nrun: ~/own\n")
    arguments, made = HOME[place]
    assert mlrun("task=plan", *TINY, f"cache={tmp_path}/cache", *arguments).code == 0
    assert left() == ["conf", "conf/experiment", "conf/experiment/own.yaml"]
    assert (tmp_path / "me" / made).is_file()


def test_several_processes_need_a_folder_by_name(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = mlrun()
    assert outcome.code == 2 and "add run=" in outcome.err[0] and left() == []


def test_only_the_first_process_prints(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert mlrun("task=plan", "run=p") == Outcome(0, [], []) and left() == ["p"]
    assert mlrun("seed=abc") == Outcome(2, [], [])


def test_a_sweep_names_its_folders_by_what_varies(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, leave_config)
    assert mlrun("-m", "run=s", "batch=8", "cycle=scratch,2level", "seed=0,1").code == 0
    names = sorted(path.parent.name for path in Path("s").glob("*/config.yaml"))
    assert names == [
        "0-cycle=scratch,seed=0",
        "1-cycle=scratch,seed=1",
        "2-cycle=2level,seed=0",
        "3-cycle=2level,seed=1",
    ]
    assert yaml.safe_load(Path("s/1-cycle=scratch,seed=1/config.yaml").read_text())["run"] == "s/1-cycle=scratch,seed=1"


def test_every_point_of_a_sweep_is_checked_before_the_first_runs(
    mlrun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    stub(monkeypatch, lambda config, plan, folder: ran.append(folder))
    assert mlrun("-m", "cycle=2level,scratch", "coarsening.head=1,2,3").code == 2
    assert ran == [] and left() == []


def test_a_failing_job_does_not_stop_the_sweep(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def work(config: Config, plan: Plan, folder: Path) -> None:
        ran.append(config.settings.seed)
        if config.settings.seed == 0:
            raise Failed("diverged")
        if config.settings.seed == 1:
            raise RuntimeError("a bug")

    stub(monkeypatch, work)
    outcome = mlrun("-m", "run=s", "seed=0,1,2")
    assert ran == [0, 1, 2] and outcome.code == 1
    assert outcome.err[-1] == "mlrun: 2 of the sweep's runs failed: s/0-seed=0, s/1-seed=1"
    assert Path("s/0-seed=0/error.txt").read_text() == "mlrun: diverged\n"
    assert "RuntimeError: a bug" in Path("s/1-seed=1/error.txt").read_text()
    stub(monkeypatch, lambda *given: None)
    assert mlrun("-m", "run=s", "seed=0,1,2").code == 0
    assert not list(Path("s").glob("*/error.txt"))


@pytest.mark.parametrize("early", [False, True], ids=["refused", "fails before it asks"])
def test_nothing_is_written_into_a_folder_that_another_process_holds(
    mlrun: Command, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    def work(config: Config, plan: Plan, folder: Path) -> None:
        if early:
            raise UserError("data: gone")
        with lock.claimed(folder, ALONE):
            pass

    stub(monkeypatch, work)
    held = Path("s/0-seed=0")
    with lock.claimed(held, ALONE):
        (held / "error.txt").write_text("of the run that goes on there")
        before = {path: path.read_bytes() for path in held.iterdir()}
        told = mlrun("-m", "run=s", "seed=0,1").err
        assert {path: path.read_bytes() for path in held.iterdir()} == before
    assert told[0] == "mlrun: data: gone" if early else "a folder that no other process uses" in told[0]
    beside = Path("s/0-seed=0.error.txt")
    assert beside.exists() == early
    assert not early or beside.read_text() == "mlrun: data: gone\n"
    stub(monkeypatch, lambda *given: None)
    assert mlrun("-m", "run=s", "seed=0,1").code == 0
    assert not list(Path("s").rglob("*error.txt"))


def test_a_full_disk_is_one_line_whatever_was_written(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(config: Config, plan: Plan, folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")

    told = "mlrun: some/file: No space left on device: free some space"
    stub(monkeypatch, work)
    outcome = mlrun("run=a")
    assert (outcome.code, outcome.err) == (2, [told])
    assert mlrun("-m", "run=s", "seed=0,1").code == 1
    assert Path("s/0-seed=0/error.txt").read_text() == f"{told}\n"


LIMITED = """
import resource, sys
from mlrun.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
main()
"""


@pytest.mark.parametrize("limit", [100, 3000, 20_000])
def test_a_report_that_does_not_fit_on_the_disk_is_one_line(tmp_path: Path, limit: int) -> None:
    recorded = Path(__file__).resolve().parents[1] / "report" / "recorded"
    asked = [str(limit), "task=report", f"runs={recorded / 'scratch'},{recorded / 'grow'}", f"run={tmp_path}/out"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *asked], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f"mlrun: {tmp_path}/out/")
    assert line.endswith("File too large: raise the limit on file sizes (ulimit -f)")
    assert not list((tmp_path / "out").glob(".*"))


def test_a_sweep_ends_with_the_report_of_its_runs(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[Path], Path]] = []
    monkeypatch.setattr(tasks, "report_on", lambda runs, out: seen.append((runs, out)))
    stub(monkeypatch, lambda config, plan, folder: (folder / "log.jsonl").touch())
    assert mlrun("-m", "run=s", "seed=0,1").code == 0
    assert seen == [([Path("s")], Path("s/report"))]
    assert mlrun("-m", "task=plan", "run=t", "seed=0,1").code == 0
    assert len(seen) == 1


@pytest.mark.parametrize("sweeper", ["grid", "basic"])
def test_a_sweep_without_a_name_has_one_folder_and_one_report(
    mlrun: Command, monkeypatch: pytest.MonkeyPatch, sweeper: str
) -> None:
    """The clock goes on between two runs, and named a folder for each: the report had none of them."""
    seen: list[Path] = []
    monkeypatch.setattr(tasks, "report_on", lambda runs, out: seen.append(out.parent))
    stub(monkeypatch, lambda config, plan, folder: (folder / "log.jsonl").touch())
    assert mlrun("-m", f"hydra/sweeper={sweeper}", "seed=0,1").code == 0
    (folder,) = Path("outputs").iterdir()
    assert seen == [folder] and len(list(folder.glob("*/log.jsonl"))) == 2


def test_a_broken_report_fails_the_sweep(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra turns exceptions of a callback into warnings."""

    def broken(runs: list[Path], out: Path) -> None:
        raise RuntimeError("a bug in the report")

    monkeypatch.setattr(tasks, "report_on", broken)
    stub(monkeypatch, lambda config, plan, folder: (folder / "log.jsonl").touch())
    outcome = mlrun("-m", "run=s", "seed=0,1")
    assert outcome.code == 1 and "RuntimeError: a bug in the report" in outcome.err


def test_our_own_bugs_keep_their_traceback(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(config: Config, plan: Plan, folder: Path) -> None:
        raise RuntimeError("a bug")

    stub(monkeypatch, work)
    with pytest.raises(RuntimeError, match="a bug"):
        mlrun()


ODD = "s/0-cycle=2level,seed=1"


def test_paths_may_hold_commas_blanks_and_equal_signs(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    stub(monkeypatch, lambda settings, folder: seen.append((settings.runs, folder)), "report")
    assert mlrun("task=report", f"runs={ODD},it's here", "run=my report").code == 0
    assert mlrun("task=report", "runs=outputs/*").code == 0
    assert seen == [(f"{ODD},it's here", Path("my report")), ("outputs/*", None)]
    names = {"source": f"{ODD}/model", "target": f"{ODD}-a,b"}
    for task, keys in (
        ("interpolate", names | {"grown": f"{ODD}-g"}),
        ("decoalesce", names | {"fine": f"{ODD}/f=(x)"}),
    ):
        stub(monkeypatch, lambda settings, folder, keys=keys: seen.append({key: settings[key] for key in keys}), task)
        assert mlrun(f"task={task}", *(f"{key}={path}" for key, path in keys.items())).code == 0
        assert seen[-1] == keys and left() == []


def test_a_model_to_begin_with_may_lie_in_the_folder_of_a_sweep_and_several_are_swept(
    mlrun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    for path in (f"{ODD}/model", "a", "b", "c,d"):
        Path(path).mkdir(parents=True)
    with monkeypatch.context() as patch:
        stub(patch, lambda config, plan, folder: seen.append(config.settings.init))
        patch.setattr(initial, "completed", lambda settings, *_: settings)
        patch.setattr("mlrun.interop.initial.problems", lambda *_: [])
        patch.setattr("mlrun.interop.initial.charged", lambda plan, *_: plan)
        assert mlrun(f"init={ODD}/model", "run=r1").code == 0
        assert mlrun("init=c,d", "run=r2").code == 0
        assert mlrun("-m", "init=a,b", "run=r3").code == 0
    assert seen == [f"{ODD}/model", "c,d", "a", "b"]
    assert "init=s/0-cycle=2level,seed=2" in mlrun("init=s/0-cycle=2level,seed=2", "run=r4").err[0]


def test_runs_are_named_by_the_longest_path_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("s/0-cycle=2level,seed=1", "s/1-cycle=2level", "d[1]"):
        Path(folder).mkdir(parents=True)
        for name in read.FILES:
            (Path(folder) / name).touch()
    settings = OmegaConf.create({"runs": "s/0-cycle=2level,seed=1,s/1-cycle=2level, d[1],s/*level"})
    named = tasks._paths(settings, "runs")
    assert named == [Path(p) for p in ("s/0-cycle=2level,seed=1", "s/1-cycle=2level", "d[1]", "s/*level")]
    assert read.find(named) == [Path(p) for p in ("d[1]", "s/0-cycle=2level,seed=1", "s/1-cycle=2level")]


def test_a_sweep_that_grows_trains_only_what_is_new(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a point is the one that was begun with its configuration; the new get free numbers."""
    stub(monkeypatch, leave_config)
    assert mlrun("-m", "run=s", "seed=0,1").code == 0
    ran: list[str] = []
    work = lambda config, plan, folder: (ran.append(folder.name), leave_config(config, plan, folder))  # noqa: E731
    stub(monkeypatch, work)
    assert mlrun("-m", "run=s", "seed=2,1,0").code == 0
    assert ran == ["2-seed=2", "1-seed=1", "0-seed=0"]
    ran.clear()
    assert mlrun("-m", "run=s", "cycle=2level,scratch", "seed=0,1,2", "log_every=3").code == 0
    assert ran == ["0-seed=0", "1-seed=1", "2-seed=2", *(f"{3 + n}-cycle=scratch,seed={n}" for n in range(3))]
    ran.clear()
    assert mlrun("-m", "run=s", "seed=3,2").code == 0
    assert ran == ["6-seed=3", "2-seed=2"]
    outcome = mlrun("-m", "run=s", "seed=0,1", "batch=8")
    assert outcome.code == 2 and "batch (there 16, here 8)" in outcome.err[0]


def test_a_run_that_another_process_trains_is_left_alone(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(config: Config, plan: Plan, folder: Path) -> None:
        raise InUse("run=s/0-run: allowed: a folder that no other process uses")

    Path("s/0-run").mkdir(parents=True)
    Path("s/0-run/error.txt").write_text("what it said before\n")
    before = left()
    stub(monkeypatch, held)
    outcome = mlrun("-m", "run=s", "seed=0")
    assert "no other process" in outcome.err[0] and left() == before
    assert Path("s/0-run/error.txt").read_text() == "what it said before\n"
    assert mlrun("run=t").code == 75


def test_what_was_checked_is_planned_once(mlrun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = tasks.make_plan
    monkeypatch.setattr(tasks, "make_plan", lambda *given, **named: made.append(given) or make(*given, **named))
    stub(monkeypatch, lambda config, plan, folder: made.append(config.resolved["run"]))
    assert mlrun("run=a").code == 0
    assert len(made) == 2 and made[1] == "a"
    assert mlrun("-m", "run=s", "seed=0,1").code == 0
    assert len(made) == 6 and made[4:] == ["s/0-seed=0", "s/1-seed=1"]


def test_the_users_conf_folder_and_config_dir_add_to_ours(mlrun: Command) -> None:
    for folder, group, name in (("conf", "cycle", "mine"), ("more", "model", "wide")):
        source = {"cycle": "w", "model": "gpt_tiny"}[group]
        Path(folder, group).mkdir(parents=True)
        Path(folder, group, f"{name}.yaml").write_text((conf_dir() / group / f"{source}.yaml").read_text())
    assert mlrun("task=plan", "cycle=mine", "run=p").code == 0
    outcome = mlrun("task=plan", "-m", "cycle=mine,scratch", "model=wide", "--config-dir", "more", "run=q")
    assert outcome.code == 0 and len(list(Path("q").glob("*/plan.json"))) == 2


@pytest.mark.parametrize("flag", [["--config-dir", "~/more"], ["--config-dir=~/more"]])
def test_a_config_dir_in_the_home_of_the_user_is_read(
    mlrun: Command, monkeypatch: pytest.MonkeyPatch, flag: list[str]
) -> None:
    Path("home/more/cycle").mkdir(parents=True)
    Path("home/more/cycle/mine.yaml").write_text((conf_dir() / "cycle" / "w.yaml").read_text())
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    assert mlrun("task=plan", "cycle=mine", "run=p", *flag).code == 0


@pytest.mark.parametrize("words", [
    ["task=report", "runs=a"],
    ["task=leaderboard", "runs=a"],
    ["task=evaluate", "source=m"],
])  # fmt: skip
def test_results_are_not_written_beside_the_files_of_somebody_else(mlrun: Command, words: list[str]) -> None:
    fake.run(Path("a"), "scratch", fake.SCRATCH)
    Path("site").mkdir()
    Path("site/index.html").write_text("mine")
    before = left()
    outcome = mlrun(*words, "run=site")
    told = "mlrun: run=site: allowed: a new or empty folder, or one with files of mlrun; it holds index.html, not ours"
    assert outcome.code == 2 and len(outcome.err) == 1 and outcome.err[0].startswith(told)
    assert left() == before and Path("site/index.html").read_text() == "mine"


def test_a_report_takes_a_folder_that_is_empty_or_holds_runs_or_a_report(mlrun: Command) -> None:
    fake.run(Path("runs/a"), "scratch", fake.SCRATCH)
    Path("empty").mkdir()
    for place in ("empty", "empty", "runs"):
        assert mlrun("task=report", "runs=runs/a", f"run={place}").code == 0 and Path(place, "index.html").is_file()
    Path("report").mkdir()
    Path("report/paper.tex").touch()
    outcome = mlrun("task=report", "runs=runs,.")
    assert outcome.code == 2 and "paper.tex" in outcome.err[0] and "report/index.html" not in left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("words", "long"),
    [
        (["task=report", "runs=a", "run=new"], "mlrun.report.figure.draw"),
        (["task=report", "runs=a", "run=new"], "mlrun.report.write.as_dict"),
        ([*TINY, "run=new"], "mlrun.data.text.prepare._pack"),
        (["-m", *TINY, "seed=0,1", "run=new"], "mlrun.data.text.prepare._pack"),
        (["task=calibrate", *TINY], "mlrun.evaluate.calibrate.calibrate"),
        (["task=plan", *TINY, "run=new"], "mlrun.cli.tasks.show"),
        (["task=evaluate", "source=m"], "mlrun.evaluate.finished.evaluate_folder"),
    ],
)
def test_a_signal_in_long_work_is_one_line_with_its_exit_code_and_leaves_nothing(
    mlrun: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, words: list[str], long: str
) -> None:
    fake.run(Path("a"), "scratch", fake.SCRATCH)
    before = left()
    was = {signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL)}
    was[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)

    def ask(*given: object, **named: object) -> None:
        if long.endswith("_pack"):
            (Path(str(given[0])) / "half").touch()
        os.kill(os.getpid(), number)

    monkeypatch.setattr(long, ask)
    try:
        outcome = mlrun(*words, *([] if "task=report" in words else ["cache=c"]))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for one, handler in was.items():
            signal.signal(one, handler)
    told = [line for line in outcome.err if "training the tokenizer" not in line]  # a slow machine says so
    assert outcome.code == 128 + number and len(told) == 1 and told[0].startswith("mlrun: interrupted"), outcome.err
    made = [path for path in left() if path not in before]
    assert not [path for path in made if path.partition("/")[0] != "c" or "making" in path], made


def test_a_file_of_the_user_that_ours_would_hide_is_told(mlrun: Command) -> None:
    Path("conf/cycle").mkdir(parents=True)
    Path("conf/cycle/2level.yaml").write_text("name: mine\nstages: [{level: 1, length: rest}]\n")
    outcome = mlrun("task=plan")
    assert outcome.code == 2 and len(outcome.err) == 1 and "rename the file" in outcome.err[0]


def test_a_file_that_hydra_would_not_read_is_told(mlrun: Command) -> None:
    for name in ("config.yaml", "cycle/mine.yml", "hydra/launcher/slurm.yaml"):
        Path("conf", name).parent.mkdir(parents=True, exist_ok=True)
        Path("conf", name).write_text("seed: 3\n")
    outcome = mlrun("task=plan")
    assert outcome.code == 2 and len(outcome.err) == 3 and all("rename the file" in line for line in outcome.err)
    assert ".yaml; rename" in next(line for line in outcome.err if "mine.yml" in line)


@pytest.mark.parametrize(
    ("text", "told"),
    [("a: [", "while parsing"), ("name: x\nstage: []", "Key 'stage' not in 'Cycle'"), ("name: 1", "cycle.stages=???"),
     ("name: 1\n\tstages: []", "mine.yaml"), ("name: 1\nname: 2", "found duplicate key name"), ("- 1", "mine"),
     ("just words", "mine"), ("name: caf\udce9", "cycle=mine: allowed:"), ("defaults: [nope]", "cycle/nope"),
     ("# @package _global_\nhardware: 3", "cycle=mine: allowed:"),
     ("name: ${nope}\nstages: [{level: 1, length: rest}]", "key 'nope' not found"),
     ("# @package _global_\nsed: 3", "in cycle/mine.yaml (did you mean seed?)")],
)  # fmt: skip
def test_a_broken_file_of_the_user_is_one_line(mlrun: Command, text: str, told: str) -> None:
    Path("conf/cycle").mkdir(parents=True)
    Path("conf/cycle/mine.yaml").write_text(text, errors="surrogateescape")
    outcome = mlrun("cycle=mine")
    assert outcome.code == 2 and len(outcome.err) == 1 and told in outcome.err[0], outcome.err


def test_help_and_the_config_are_printed_and_nothing_runs(mlrun: Command) -> None:
    shown = mlrun("--help")
    assert shown.code == 0 and any(line.startswith("cycle: 2level, 3level") for line in shown.out)
    text = "\n".join(shown.out)
    assert all(f"\n  {task.name} " in text and task.help in text for task in tasks.TASKS.values())
    assert mlrun("--help", "-m", "seed=1,2", "modle=x") == shown, "help is the same whatever else is asked"
    assert mlrun("--hydra-help", "modle=x").code == 0
    assert "seed: 7" in mlrun("seed=7", "--cfg", "job").out
    assert mlrun("scale=tiny", "experiment=alpha", "--cfg", "job").code == 0, "a grid may be looked at without -m"
    assert mlrun("--cfg", "job", "seed=x").code == 2 and left() == []


def test_every_command_of_the_help_composes_and_plans(mlrun: Command) -> None:
    lines = [line.strip().partition("  ")[0] for line in mlrun("--help").out if line.startswith("  mlrun")]
    for words in (shlex.split(line)[1:] for line in lines):
        found = points.of(command.read(words))
        assert found and (found[0].settings.task == "report" or preflight.check(found))


def test_a_reader_that_stops_reading_ends_nothing(tmp_path: Path) -> None:
    """`mlrun | head -1`"""
    words = [sys.executable, "-m", "mlrun", *TINY, "cycle=scratch", "log_every=1", "run=a"]
    with subprocess.Popen(
        words, cwd=tmp_path, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (0, "")
    assert json.loads((tmp_path / "a/summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("output", [">&-", ">&- 2>&-", ">/dev/full", "| true"])
def test_without_an_output_all_is_done(tmp_path: Path, output: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m mlrun task=plan run=p {output}; echo ${{PIPESTATUS[0]}} >code"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert (tmp_path / "code").read_text() == "0\n" and (done.stdout, done.stderr) == ("", "")
    assert json.loads((tmp_path / "p/plan.json").read_text())["stages"]


def test_the_version_is_ours_and_loads_no_torch() -> None:
    code = "import sys; sys.argv = ['mlrun', '--version']; from mlrun.__main__ import main\n"
    code += "try: main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    told, torch_loaded = done.stdout.splitlines()
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert told.startswith(f"mlrun {project['version']} (torch {version('torch')}, hydra-core {version('hydra-core')}")
    assert torch_loaded == "False"


def test_the_last_of_equal_keys_wins_and_a_glob_is_a_sweep(mlrun: Command) -> None:
    (point,) = points.of(command.read(["seed=1", "model=bert_tiny", "seed=2", "model=gpt_tiny"]))
    assert point.settings.seed == 2 and point.settings.model._target_.endswith("GPT")
    assert len(points.of(command.read(["-m", "coarsening=glob(*_only)"]))) == 3


def test_hundreds_of_points_differ_in_values_only_and_compose_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read once for each set of choices; each point equals what Hydra itself composes."""
    loads: list[Any] = []
    load = points.compose
    monkeypatch.setattr(points, "compose", lambda *given: loads.append(given) or load(*given))
    found = points.of(command.read(["-m", "run=s", "seed=range(50)", "cycle=scratch,2level", "optimizer.lr=2e-3"]))
    assert len(found) == 100 and len({point.folder for point in found}) == 100 and len(loads) == 3
    (alone,) = points.of(command.read(["run=s", "seed=49", "cycle=2level", "optimizer.lr=2e-3"]))
    assert found[-1].settings == alone.settings and found[-1].folder == Path("s/99-cycle=2level,seed=49")


def test_sending_again_looks_at_all_runs_first_and_says_which_were_not_taken(
    mlrun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    for name in ("runs/a", "runs/b"):
        Path(name).mkdir(parents=True)
        for file in read.FILES:
            Path(name, file).write_text("logger: {wandb: {mode: offline}}\n" if file == "config.yaml" else "{}\n")
    monkeypatch.setattr("mlrun.log.resend.look", lambda run: None)
    monkeypatch.setattr("mlrun.log.resend.resend", lambda run, how: sent.append(str(run)) or (3, run.name == "a"))
    outcome = mlrun("task=resend", "runs=runs")
    assert (outcome.code, sent) == (1, ["runs/a", "runs/b"])
    assert outcome.out == ["sent: runs/a, 3 records", "not all sent: runs/b, 3 records"]
    assert outcome.err == ["mlrun: W&B did not take all of runs/b"]
    monkeypatch.setattr("mlrun.files.held", lambda run: run.name == "b")
    assert "runs=runs/b: allowed: runs that no process trains" in mlrun("task=resend", "runs=runs").err[0]
    monkeypatch.setattr("mlrun.files.held", lambda run: False)
    Path("runs/b/config.yaml").write_text("logger: {}\n")
    outcome = mlrun("task=resend", "runs=runs")
    assert outcome.code == 2 and outcome.err[0].startswith("mlrun: runs=runs/b: allowed: runs that were trained with")
    assert len(sent) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_when_a_run_is_at_its_end_ends_the_sweep_all_the_same(
    mlrun: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    from mlrun.running import trained

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    write = trained.save_model

    def asked(*given: Any) -> None:
        os.kill(os.getpid(), number)
        write(*given)

    monkeypatch.setattr(trained, "save_model", asked)
    grid = ["-m", *SMALL, "budget=2 steps", "cycle=scratch", "seed=0,1", "run=s"]
    try:
        outcome = mlrun(*grid)
        assert outcome.code == 143 and outcome.err[-1].endswith("; the same command with run=s goes on"), outcome.err
        assert [path.parent.name for path in Path("s").glob("*/summary.json")] == ["0-seed=0"]
        with pytest.raises(Stopped, match="the same call returns what it gave"):
            python.run([*SMALL, "budget=2 steps", "cycle=scratch", "run=a"])
        assert python.run([*SMALL, "budget=2 steps", "cycle=scratch", "run=a"])["status"] == "finished"
        monkeypatch.setattr(trained, "save_model", write)
        assert mlrun(*grid).code == 0 and len(list(Path("s").glob("*/summary.json"))) == 2
        monkeypatch.setattr(trained, "save_model", asked)
        assert mlrun(*SMALL, "budget=2 steps", "cycle=scratch", "run=b").code == 0, "a run alone is finished"
    finally:
        signal.signal(signal.SIGINT, before)
