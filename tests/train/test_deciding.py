"""A run that decides when to grow: what it says agrees, it is bitwise the fixed run of its decision, and it resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from kills import same_end

from mlrun import run
from mlrun.config.load import Config
from mlrun.config.settings import Cycle, Row, Schedule
from mlrun.log.jsonl import Jsonl
from mlrun.plan import deciding
from mlrun.plan.auto import Decision
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.plan.rule import WINDOW
from mlrun.report import pairing
from mlrun.report.page.ledger import rows_of
from mlrun.report.read import read
from mlrun.running import assessment
from mlrun.train.checkpoint.store import Checkpoints
from mlrun.train.optimizers.adamw import AdamW


def config(**changes: Any) -> Config:
    """Return the run that decides, with what a report reads of a configuration."""
    told = {"seed": 0, "cycle": {"name": "auto"}, "optimizer": {"lr": 1e-2}, "eval": {"every": "1 step"}}
    found = toy.make(**toy.DECIDING | changes)
    return replace(found, resolved={**found.resolved, **told})


def decisions(folder: Path, *decided: str) -> list[dict[str, Any]]:
    return [r for r in toy.records(folder) if r["kind"] == "decision" and r["decided"] in decided]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto") / "run"
    toy.run(folder, config())
    return folder


def test_each_decision_is_a_record_with_its_reason_and_numbers(whole: Path) -> None:
    looks, (grown,), (kept,) = (decisions(whole, name) for name in ("go on", "grow", "keep"))
    assert [r["step"] for r in looks] == [2, 3, 4] and grown["step"] == 2 + WINDOW - 1
    assert all("a slope needs 4 looks" in r["reason"] for r in looks)
    assert f"{grown['gain_here']:.4f} nats, less than 100 of the {grown['gain_next']:.4f}" in grown["reason"]
    ends = {r["probe"]: r["loss"] for r in toy.records(whole) if r["kind"] == "val" and "probe" in r}
    assert kept["losses"] == ends and kept["kept"] == min(ends, key=lambda name: ends[name])
    assert len(set(ends.values())) == 2, "two growths were tried"


def test_log_plan_ledger_and_report_agree_on_the_final_plan(whole: Path) -> None:
    names = ["source=copy noise=0.5", "source=random"]
    (kept,) = decisions(whole, "keep")
    plan = make_plan(config(), decisions=[Decision(5, names.index(kept["kept"]))])
    told, summary = (json.loads((whole / name).read_text()) for name in ("plan.json", "summary.json"))
    assert told == as_dict(plan) | {"data": {"name": "toy"}}
    assert [(s["steps"], s.get("probe"), s.get("kept")) for s in summary["ledger"]["stages"]] == [
        (5, None, None),
        *((2, name, name == kept["kept"]) for name in names),
        *((s.steps, None, None) for s in plan.stages[3:]),
    ]
    ends = [(r["step"], r["flops"]) for r in toy.records(whole) if r["kind"] == "stage"]
    assert ends == [(s.end, plan.spent(s.end, s.index).flops) for s in plan.stages]
    found = read(whole)
    assert found.finished and found.fault is None
    assert [s["steps"] for s in found.trunk] == [5, plan.trunk[-1].steps]
    assert found.progress == 1 and [e.budget for e in found.endings] == [0.9, 1.0]
    told = [f" (probe {name}, {'kept' if name == kept['kept'] else 'not kept'})" for name in names]
    assert [row[1] for row in rows_of(found, "auto")] == [
        "1",
        f"2{told[0]}",
        f"3{told[1]}",
        "4",
        "5 (ends at 90%)",
    ]
    assert {p.step for p in found.evaluations if p.level == 1} == set(range(9, plan.trunk[-1].end + 1))


def test_how_often_a_run_looks_makes_a_method_of_its_own(whole: Path) -> None:
    cycle, found = {"name": "auto", "auto": {"mixing": "20%"}}, read(whole)
    runs = [replace(found, config={**found.config, "cycle": cycle, "eval": {"every": e}}) for e in ("5%", "2%")]
    names = pairing.labels({pairing.family(run): [run] for run in runs})
    assert list(names.values()) == ["auto looks=5%", "auto looks=2%"]
    fixed = [replace(found, config={**found.config, "cycle": {"name": "grow"} | more}) for more in ({}, {"auto": None})]
    assert len({pairing.family(run) for run in fixed}) == 1, "runs of before do not name it"


def test_the_ledger_charges_every_probe_as_an_independent_count_does(whole: Path) -> None:
    summary, plan = json.loads((whole / "summary.json").read_text()), make_plan(config())
    cost = {n: 8 * plan.level(n).flops.total for n in (1, 2)}
    taken: dict[int, int] = {}
    for r in toy.records(whole):  # log_every is 1: a record a step
        if r["kind"] == "train":
            taken[r["level"]] = taken.get(r["level"], 0) + 1
    spent = sum(cost[level] * steps for level, steps in taken.items())
    ledger = summary["ledger"]
    assert ledger["total"]["flops"] == spent == toy.records(whole)[-1]["flops"]
    assert [s["flops"] for s in ledger["stages"] if "probe" in s] == [2 * cost[1]] * 2
    assert sum(s["seconds"] for s in ledger["stages"]) == pytest.approx(ledger["seconds"]["training"], rel=1e-6)
    own = json.loads((whole / "model" / "ledger.json").read_text())
    assert str(5 * cost[2] + (4 + ledger["stages"][3]["steps"]) * cost[1]) in json.dumps(own)


@pytest.mark.parametrize("probes", [True, False])
def test_the_end_is_bitwise_that_of_a_fixed_run_with_the_same_growth(tmp_path: Path, probes: bool) -> None:
    """The steps of probes that were not kept leave no trace but their cost."""
    cycle = toy.DECIDING["cycle"] if probes else replace(toy.DECIDING["cycle"], auto=replace(_auto(), probe=[]))
    given = config(cycle=replace(cycle, branches=[]), probes=toy.PROBES if probes else ())
    summary = toy.run(tmp_path / "auto", given)
    kept = next((s for s in summary["ledger"]["stages"] if s.get("kept")), {"steps": 0, "probe": "source=random"})
    growth = toy.PROBES[["source=copy noise=0.5", "source=random"].index(kept["probe"])]
    coarse, fine = summary["ledger"]["stages"][0], summary["ledger"]["stages"][-1]
    rows = [Row(2, f"{coarse['steps']} steps"), Row(1, f"{kept['steps'] + fine['steps']} steps")]
    fixed = Cycle(name="fixed", stages=rows, optimizer_policy="carry", lr_policy="continue")
    toy.run(tmp_path / "fixed", config(cycle=fixed, growth=growth, probes=()))
    for name in ("model.safetensors", "ema.safetensors"):
        found = [(tmp_path / folder / "model" / name).read_bytes() for folder in ("auto", "fixed")]
        assert found[0] == found[1], name
    losses = [[r for r in toy.records(tmp_path / f) if r["kind"] == "val"][-1]["loss"] for f in ("auto", "fixed")]
    assert losses[0] == losses[1]


def _auto() -> Any:
    return toy.DECIDING["cycle"].auto


def test_what_was_trained_before_waits_for_every_probe(tmp_path: Path) -> None:
    """A cycle that comes back to level 1: the model kept there is blended into what each probe grows."""
    from mlrun.multilevel.coarsening.kept import Kept
    from mlrun.multilevel.growth.restore import Restore

    rows = [Row(1, "2 steps"), Row(2, "auto"), Row(1, "rest")]
    auto = replace(_auto(), probe=[{"state": "restored"}, {"state": "reset"}])
    cycle = replace(toy.DECIDING["cycle"], stages=rows, branches=[], auto=auto)
    given = config(
        cycle=cycle, coarsening=Kept(layers=[0]), growth=Restore(), probes=(Restore("restored"), Restore("reset"))
    )
    summary = toy.run(tmp_path / "auto", given)
    (kept,) = decisions(tmp_path / "auto", "keep")
    stages = summary["ledger"]["stages"]
    fixed = [Row(1, "2 steps"), Row(2, f"{stages[1]['steps']} steps"), Row(1, f"{2 + stages[-1]['steps']} steps")]
    growth = Restore(kept["kept"].removeprefix("state="))
    toy.run(
        tmp_path / "fixed",
        replace(
            config(cycle=replace(cycle, stages=fixed, auto=None), coarsening=Kept(layers=[0]), growth=growth), probes=()
        ),
    )
    found = [(tmp_path / folder / "model/model.safetensors").read_bytes() for folder in ("auto", "fixed")]
    assert found[0] == found[1]


def test_the_latest_end_needs_no_look_before_it(tmp_path: Path) -> None:
    """A warm-up that lasts longer than the stage may: the decision is still made, and logged."""
    schedule = Schedule(shape="wsd", warmup="95%", decay="3 steps")
    auto = replace(_auto(), mixing="2 steps", probe=[])
    cycle = replace(toy.DECIDING["cycle"], branches=[], auto=auto)
    toy.run(tmp_path, config(cycle=cycle, probes=(), optimizer=AdamW(lr=1e-2, schedule=schedule)))
    (grown,) = decisions(tmp_path, "grow")
    stages = read(tmp_path).trunk
    assert "latest end" in grown["reason"] and grown["step"] == stages[0]["steps"] and not decisions(tmp_path, "go on")


def test_a_run_goes_on_where_its_branches_do_not_fit_to_growing_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = deciding.make_plan, []

    def plan(given: Config, sources: bool, made: Sequence[Decision] = ()) -> Any:
        if made and made[0].steps == 5 and not refused:
            refused.append(made)
            raise run.UserError("cycle.branches.0=90%: no")
        return real(given, sources, made)

    monkeypatch.setattr(deciding, "make_plan", plan)
    toy.run(tmp_path, config())
    *_, last = decisions(tmp_path, "go on")
    assert last["reason"].endswith("but not yet, as then cycle.branches.0=90%: no")
    assert [r["step"] for r in decisions(tmp_path, "grow")] == [6]


def test_what_the_machine_made_of_the_settings_stays_in_the_plan(tmp_path: Path) -> None:
    given = config()
    run.train(given, replace(make_plan(given), notes=("hardware auto: cpu",)), tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["notes"] == ["hardware auto: cpu"]


def test_an_ending_that_the_latest_growth_leaves_no_room_for_is_reached_after_an_early_one(tmp_path: Path) -> None:
    points = ["75% if possible", "90%"]
    given = config(cycle=replace(toy.DECIDING["cycle"], branches=points))
    assert [lacking.point for lacking in make_plan(given).lacking] == ["75%"]
    toy.run(tmp_path, given)
    found = read(tmp_path)
    assert found.finished and [e.budget for e in found.endings] == [0.75, 0.9, 1.0] and found.lacking == {}
    costs = [e.point.flops / found.plan["budget"]["flops"] for e in found.endings]
    assert all(0 <= asked - cost < 1 / 20 for asked, cost in zip((0.75, 0.9, 1.0), costs, strict=True)), "with probes"


def test_probes_without_a_finite_loss_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = assessment.measure

    def measure(evaluations: Any, net: Any, context: Any) -> Any:
        found = real(evaluations, net, context)
        diverged = replace(found["held_out"], value=float("nan"))
        return found | {"held_out": diverged} if net.model.layer == 2 else found

    monkeypatch.setattr(assessment, "measure", measure)
    with pytest.raises(run.Diverged, match="no probe up to step 9 has a finite loss"):
        toy.run(tmp_path, config())


def die_in(patch: pytest.MonkeyPatch, owner: Any, name: str, at: int, before: bool) -> None:
    """Make the run die in a call of one kind, as if killed: nothing is cleaned up."""
    real, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at and before:
            raise KeyboardInterrupt
        out = real(*args, **kwargs)
        if calls[0] == at:
            raise KeyboardInterrupt
        return out

    patch.setattr(owner, name, counted)


FORKS = ("save_fork", "load_fork")
MOMENTS = [
    # A step of the coarse stage, of each probe and of what follows; 5 coarse steps, 2 + 2 of the probes.
    *((torch.optim.AdamW, "step", at, True) for at in (3, 5, 6, 7, 8, 9, 10, 12)),
    # What starts and what ends with each growth.
    *((Checkpoints, name, at, before) for name in FORKS for at in (1, 2) for before in (True, False)),
    # Between a decision and the end of its stage: to grow, and to keep a probe.
    *((run.Run, name, at, False) for name, at in (("_grows", 4), ("_replan", 1), ("_choose", 1), ("_replan", 2))),
]


@pytest.mark.parametrize("every", ["1 step", "100 steps"])
@pytest.mark.parametrize(("owner", "name", "at", "before"), MOMENTS)
def test_a_run_killed_at_any_of_these_moments_goes_on_bitwise(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Path,
    every: str,
    owner: Any,
    name: str,
    at: int,
    before: bool,
) -> None:
    given = config(checkpoint=toy.Checkpoint(every=every))
    with monkeypatch.context() as patch:
        die_in(patch, owner, name, at, before)
        with pytest.raises(KeyboardInterrupt):
            toy.run(tmp_path, given)
    toy.run(tmp_path, given)
    same_decisions(whole, tmp_path)


def same_decisions(whole: Path, killed: Path) -> None:
    same_end(whole, killed)
    assert (killed / "plan.json").read_text() == (whole / "plan.json").read_text()
    assert not list((killed / "checkpoints").glob("fork-*"))


@pytest.mark.parametrize("step", [3, 5, 6, 9])
def test_a_run_stopped_by_a_signal_at_a_decision_goes_on_bitwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, step: int
) -> None:
    with monkeypatch.context() as patch:
        toy.stop_at(patch, step)
        with pytest.raises(run.Stopped):
            toy.run(tmp_path, config())
    toy.run(tmp_path, config())
    same_decisions(whole, tmp_path)


def test_a_record_cut_in_the_middle_of_a_decision_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    real = Jsonl.write

    def write(self: Any, record: Any) -> None:
        if record["kind"] == "decision" and record["decided"] == "grow":
            self._file.write(b'{"kind": "decis')
            raise KeyboardInterrupt
        real(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Jsonl, "write", write)
        with pytest.raises(KeyboardInterrupt):
            toy.run(tmp_path, config())
    toy.run(tmp_path, config())
    same_decisions(whole, tmp_path)


def test_a_checkpoint_with_another_runs_decisions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        die_in(patch, run.Run, "_choose", 1, True)
        with pytest.raises(KeyboardInterrupt):
            toy.run(tmp_path, config(checkpoint=toy.Checkpoint(every="1 step")))
    folder = tmp_path / "checkpoints"
    assert Checkpoints(folder, toy.plans(config())).load() is not None
    fixed = replace(toy.DECIDING["cycle"], stages=[Row(2, "5 steps"), Row(1, "rest")], auto=None, branches=[])
    with pytest.raises(run.UserError, match="no run of this plan can"):
        Checkpoints(folder, toy.plans(config(cycle=fixed, probes=()))).load()
