"""A run is deterministic, resumable at any step, honest about its cost, and refuses what it cannot do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from kills import die, interrupt, same_end
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlrun.config.settings import Cycle, Hardware, Row, Schedule
from mlrun.errors import UserError
from mlrun.multilevel import operators, receipt
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.multilevel.growth import ligo_mapping
from mlrun.multilevel.growth.decoalesce import Decoalesce
from mlrun.multilevel.growth.ligo import LiGO
from mlrun.plan.make import make_plan
from mlrun.running import before
from mlrun.train import loop
from mlrun.train.checkpoint import layout, tensor_files
from mlrun.train.lock import claimed
from mlrun.train.optimizers.adamw import AdamW
from mlrun.train.parallel.processes import Ranks

EVERY_STEP = {"checkpoint": toy.Checkpoint(every="1 step")}


def test_two_runs_of_one_seed_are_equal_bitwise(tmp_path: Path) -> None:
    for name in "ab":
        toy.run(tmp_path / name, toy.make())
    assert toy.records(tmp_path / "a") == toy.records(tmp_path / "b")
    a, b = toy.weights(tmp_path / "a"), toy.weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_seed_matters_and_zero_is_one(tmp_path: Path) -> None:
    losses = [toy.run(tmp_path / str(seed), toy.make(seed=seed))["val_loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("at", [1, 3, 5, 6, 13, 22])
@pytest.mark.parametrize("policy", ["reset", "carry"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, at: int, policy: str) -> None:
    cycle = Cycle(name="2level", stages=list(toy.V_CYCLE), optimizer_policy=policy)
    config = toy.make(cycle=cycle, optimizer=AdamW(lr=1e-2, ema=0.9), checkpoint=toy.Checkpoint(every="2 steps"))
    toy.run(tmp_path / "whole", config)
    die(tmp_path / "killed", config, at)
    summary = toy.run(tmp_path / "killed", config)
    same_end(tmp_path / "killed", tmp_path / "whole")
    assert summary["val_loss"] == json.loads((tmp_path / "whole/summary.json").read_text())["val_loss"]


def test_a_finished_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = toy.run(tmp_path, toy.make())
    interrupt(monkeypatch, 1)
    assert toy.run(tmp_path, toy.make()) == first


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.run(tmp_path / "whole", toy.make(**EVERY_STEP))
    die(tmp_path / "cut", toy.make(**EVERY_STEP), 9)
    newest = tmp_path / "cut" / "checkpoints/last.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-5] ^= 1
    newest.write_bytes(damaged)
    toy.run(tmp_path / "cut", toy.make(**EVERY_STEP))
    assert "differs from its checksum" in capsys.readouterr().out
    assert toy.records(tmp_path / "cut") == toy.records(tmp_path / "whole")


def test_sigterm_saves_and_stops_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run(tmp_path / "whole", toy.make())
    with monkeypatch.context() as patch:
        toy.at_event(patch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(loop.Stopped):
            toy.run(tmp_path / "stopped", toy.make())
    assert json.loads((tmp_path / "stopped/summary.json").read_text())["status"] == "interrupted"
    toy.run(tmp_path / "stopped", toy.make())
    assert toy.records(tmp_path / "stopped") == toy.records(tmp_path / "whole")


def test_a_signal_during_an_evaluation_cuts_it_short_and_it_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy.make(**toy.BRANCHED)
    toy.run(tmp_path / "whole", config)
    read = toy.Source.validation

    def validation(self: Any, size: int) -> Any:
        for number, batch in enumerate(read(self, size)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    lives = 0
    while not (tmp_path / "cut/model").exists() and lives < 4:
        # In each life one is cut short: at the start, at a stage's end, after a transfer, in the second half.
        with monkeypatch.context() as patch, pytest.raises(loop.Stopped):
            toy.at_event(patch, (0, 4, 5, 13)[lives], lambda: patch.setattr(toy.Source, "validation", validation))
            toy.run(tmp_path / "cut", config)
        lives += 1
    assert json.loads((tmp_path / "cut/summary.json").read_text())["status"] == "interrupted"
    toy.run(tmp_path / "cut", config)
    assert lives == 4 and toy.records(tmp_path / "cut") == toy.records(tmp_path / "whole")
    assert len(toy.starts(tmp_path / "cut")) == 5


@pytest.mark.parametrize("growth", [LiGO(steps=3), Decoalesce()])
def test_a_signal_stops_a_transfer_before_its_next_piece_of_work_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, growth: Any
) -> None:
    config = toy.make(cycle=Cycle(name="grow", stages=[Row(2, "50%"), Row(1, "10%")]), growth=growth)
    toy.run(tmp_path / "whole", config)
    learn, measure, done = ligo_mapping._backward, receipt.loss_and_logits, []

    def then_stop(work: Any) -> Any:
        def working(*args: Any) -> Any:
            done.append(work(*args))
            os.kill(os.getpid(), signal.SIGTERM)
            return done[-1]

        return working

    with monkeypatch.context() as patch, pytest.raises(loop.Stopped):
        patch.setattr(ligo_mapping, "_backward", then_stop(learn))
        patch.setattr(receipt, "loss_and_logits", then_stop(measure))
        toy.run(tmp_path / "cut", config)
    assert len(done) == 1
    assert json.loads((tmp_path / "cut/summary.json").read_text())["status"] == "interrupted"
    toy.run(tmp_path / "cut", config)
    assert toy.records(tmp_path / "cut") == toy.records(tmp_path / "whole")


def test_every_start_says_what_it_runs_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(loop.Stopped):
        toy.stop_at(patch, 4)
        toy.run(tmp_path, toy.make())
    toy.run(tmp_path, toy.make(hardware=Hardware(precision="bf16")))
    first, second = toy.starts(tmp_path)
    assert (first["step"], first["stage"], first["precision"]) == (0, 0, "fp32")
    assert (second["step"], second["precision"]) == (4, "bf16")
    assert {
        "time",
        "host",
        "processor",
        "cores",
        "threads",
        "gpu",
        "processes",
        "mlrun",
        "commit",
        "torch",
        "python",
    } <= (first.keys())
    assert first["torch"] == torch.__version__ and first["time"].endswith("+00:00") and first["processes"] == 1


def test_a_diverging_run_stops_and_says_where(tmp_path: Path) -> None:
    wild = AdamW(lr=1e30, clip=None, schedule=Schedule(warmup="0 steps"))
    with pytest.raises(loop.Diverged, match="at step"):
        toy.run(tmp_path, toy.make(optimizer=wild))
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"


def test_one_cursor_runs_through_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = toy.samples_read(monkeypatch)
    toy.run(tmp_path, toy.make())
    assert read == list(range(22 * 8)), "each stage must go on where the one before stopped reading"


# Short samples at level 2, a small batch, then all as usual: 0.25, 1 and 2 of the toy's samples to a row.
MIXED = [
    Row(2, "40%", batch=16, sequence=4),
    Row(1, "20%", batch=4),
    Row(1, "30%", batch=8, sequence=8),
    Row(1, "rest"),
]


def mixed(**changes: Any) -> Any:
    return toy.make(cycle=Cycle(name="mixed", stages=MIXED), **changes)


def test_stages_of_other_batches_and_sequences_read_on_from_one_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, real, counted = toy.samples_read(monkeypatch), loop._gradients, [0]
    shapes: dict[tuple[int, ...], int] = {}

    def gradients(forward: Any, model: Any, batch: Any, *args: Any) -> Any:
        shape = tuple(batch["tokens"].shape)
        shapes[shape] = shapes.get(shape, 0) + 1
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            found = real(forward, model, batch, *args)
        counted[0] += counter.get_total_flops()
        return found

    monkeypatch.setattr(loop, "_gradients", gradients)
    summary, plan = toy.run(tmp_path, mixed()), make_plan(mixed())
    steps = [stage.steps for stage in plan.stages]
    assert shapes == dict(zip([(16, 4), (4, 16), (8, 8), (8, 16)], steps, strict=True))
    assert read == list(range(plan.stages[-1].cursor(plan.steps)))
    assert plan.stages[-1].cursor(plan.steps) == sum(n * s for n, s in zip((4, 4, 4, 8), steps, strict=True))
    assert counted[0] == plan.total.flops == summary["ledger"]["total"]["flops"] == toy.records(tmp_path)[-1]["flops"]
    assert plan.total.tokens == len(read) * toy.SEQUENCE == toy.records(tmp_path)[-1]["tokens"]


def test_every_stages_batch_must_share_out_over_the_processes() -> None:
    three = Ranks(0, 3, torch.device("cpu"))
    rows = [Row(1, "20%", batch=6), Row(1, "20%", batch=16), Row(1, "rest")]
    made = toy.make(cycle=Cycle(name="c", stages=rows))
    with pytest.raises(UserError) as caught:
        before.refuse_uneven(made, make_plan(made), three)
    told = [line.partition(";")[0] for line in caught.value.problems]
    assert told == ["cycle.stages.1.batch=16: allowed: a multiple of 3", "batch=8: allowed: a multiple of 3"]


@pytest.mark.parametrize("at", [3, 14, 21])
def test_a_killed_run_of_other_batches_and_sequences_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, at: int
) -> None:
    toy.run(tmp_path / "whole", mixed(**EVERY_STEP))
    die(tmp_path / "killed", mixed(**EVERY_STEP), at)
    toy.run(tmp_path / "killed", mixed(**EVERY_STEP))
    same_end(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("hardware", [Hardware(micro_batch=2), Hardware(micro_batch=8), Hardware(micro_batch=4)])
def test_hardware_changes_the_speed_and_not_the_loss(tmp_path: Path, hardware: Hardware) -> None:
    plain = toy.run(tmp_path / "plain", toy.make())["val_loss"]
    cut = toy.run(tmp_path / "cut", toy.make(hardware=hardware))["val_loss"]
    assert cut == pytest.approx(plain, rel=1e-4)


def test_everything_spent_is_charged(tmp_path: Path) -> None:
    config = toy.make()
    summary, planned = toy.run(tmp_path, config), make_plan(config)
    stages = summary["ledger"]["stages"]
    assert sum(s["flops"] for s in stages) == planned.spent(planned.steps).flops
    last = toy.records(tmp_path)[-1]
    assert (last["flops"], last["step"]) == (planned.spent(planned.steps).flops, planned.steps)
    seconds = summary["ledger"]["seconds"]
    assert sum(s["seconds"] for s in stages) == pytest.approx(seconds["training"], rel=1e-6)
    assert all(seconds[purpose] > 0 for purpose in ("training", "transfer", "evaluation", "checkpoint", "startup"))


def test_the_model_learns_and_the_cycle_gains_from_its_coarse_level(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.make(budget="60 steps"))
    val = [r["loss"] for r in toy.records(tmp_path) if r["kind"] == "val"]
    assert val[-1] < val[0] - 1.0


def test_width_receipts_are_exact_and_say_so(tmp_path: Path) -> None:
    summary = toy.run(tmp_path, toy.make(coarsening=Uniform(width=2, ffn=2, head=2)))
    down, up = summary["receipts"]
    assert (down["exact"], up["exact"]) == (False, True)
    assert up["relative_logit_change"] < up["tolerance"]
    assert up["loss_operator"] == pytest.approx(up["loss_before"], rel=1e-5)


def test_a_receipt_above_tolerance_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = operators.iter_decoalesce
    monkeypatch.setattr(operators, "iter_decoalesce", lambda *a, **k: ((n, t * 1.01) for n, t in real(*a, **k)))
    with pytest.raises(UserError, match="changed the logits"):
        toy.run(tmp_path, toy.make(coarsening=Uniform(width=2, ffn=2, head=2)))


def test_the_optimizer_policy_has_its_effect(tmp_path: Path) -> None:
    coarse = Uniform(width=2, ffn=2, head=2)

    def cycle(policy: str) -> Cycle:
        return Cycle(name="grow", stages=[Row(2, "50%"), Row(1, "50%")], optimizer_policy=policy)

    logs = {}
    for policy in ("reset", "carry"):
        toy.run(tmp_path / policy, toy.make(coarsening=coarse, cycle=cycle(policy)))
        logs[policy] = [r for r in toy.records(tmp_path / policy) if r["kind"] == "train"]
    assert logs["reset"][:10] == logs["carry"][:10]
    assert logs["reset"][11]["loss"] != logs["carry"][11]["loss"]


def test_alpha_zero_keeps_the_fine_model_and_noise_breaks_the_symmetry(tmp_path: Path) -> None:
    width = Uniform(width=2, ffn=2, head=2)
    base = {"name": "v", "stages": list(toy.V_CYCLE)}
    kept = toy.run(tmp_path / "kept", toy.make(coarsening=width, cycle=Cycle(**base, alpha=0.0)))
    blend = toy.run(tmp_path / "blend", toy.make(coarsening=width, cycle=Cycle(**base, alpha=1.0)))
    noisy = toy.run(tmp_path / "noisy", toy.make(coarsening=width, cycle=Cycle(**base, alpha=1.0, noise=0.1)))
    assert kept["receipts"][1]["loss_after"] == pytest.approx(kept["receipts"][0]["loss_before"], rel=1e-6)
    assert blend["receipts"][1]["loss_after"] == blend["receipts"][1]["loss_operator"]
    assert noisy["receipts"][1]["loss_after"] == pytest.approx(blend["receipts"][1]["loss_after"], rel=1e-5)

    def alike(name: str) -> float:
        values = [r["copy_similarity"] for r in toy.records(tmp_path / name) if "copy_similarity" in r]
        return values[0]

    assert alike("blend") == pytest.approx(1.0, abs=1e-6)
    assert alike("noisy") < 0.9999
    layers = next(r["copy_similarity_by_layer"] for r in toy.records(tmp_path / "blend") if "copy_similarity" in r)
    assert {"blocks.0", "blocks.1"} <= set(layers)


def test_the_average_of_the_weights_is_evaluated_and_saved(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.make(optimizer=AdamW(lr=1e-2, ema=0.5)))
    last = [r for r in toy.records(tmp_path) if r["kind"] == "val"][-1]
    assert last["ema_loss"] != last["loss"]
    assert (tmp_path / "model/ema.safetensors").exists()


def test_the_average_of_a_short_run_is_not_its_initial_weights(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.make(optimizer=AdamW(lr=1e-2, ema=0.9999), cycle=Cycle(name="s", stages=[Row(1, "100%")])))
    first, *_, last = [r for r in toy.records(tmp_path) if r["kind"] == "val"]
    assert first["ema_loss"] == first["loss"]
    assert last["ema_loss"] < first["loss"] - 0.5 * (first["loss"] - last["loss"])


def test_the_best_weights_are_those_of_the_lowest_loss_at_level_1(tmp_path: Path) -> None:
    summary = toy.run(tmp_path, toy.make())
    values = [r["loss"] for r in toy.records(tmp_path) if r["kind"] == "val" and r["level"] == 1]
    _, meta = tensor_files.read(tmp_path / "checkpoints" / layout.BEST)
    assert summary["best_val_loss"] == min(values) == float(meta["val_loss"])


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    with claimed(tmp_path, ranks), pytest.raises(UserError, match="no other process"):
        toy.run(tmp_path, toy.make())


def test_growing_starts_at_the_coarse_level_without_a_blend(tmp_path: Path) -> None:
    cycle = Cycle(name="grow", stages=[Row(2, "50%"), Row(1, "rest")])
    summary = toy.run(tmp_path, toy.make(coarsening=Uniform(depth=2), cycle=cycle))
    assert summary["receipts"][0]["alpha"] == 1.0
    assert summary["ledger"]["total"]["share"] == pytest.approx(1.0, abs=0.05)


def test_a_run_starts_from_the_weights_of_a_model_folder(tmp_path: Path) -> None:
    resolved = {"model": {"_target_": "mlrun.models.gpt.GPT", **asdict(toy.model())}}
    first = toy.run(tmp_path / "first", replace(toy.make(), resolved=resolved))
    toy.run(tmp_path / "second", toy.make(init=str(tmp_path / "first")))
    start = toy.records(tmp_path / "second")[0]
    assert (start["kind"], start["step"], start["loss"]) == ("val", 0, first["val_loss"])


def test_a_start_of_other_sizes_is_refused(tmp_path: Path) -> None:
    resolved = {"model": {"_target_": "mlrun.models.gpt.GPT", **asdict(toy.model())}}
    toy.run(tmp_path / "first", replace(toy.make(), resolved=resolved))
    wide = replace(toy.model(), ffn=128)
    with pytest.raises(UserError, match=r"its ffn \(there 64, here 128\) differ"):
        toy.run(tmp_path / "second", toy.make(model=wide, init=str(tmp_path / "first")))


TWO_PROCESSES = """
import sys, toy, pathlib
toy.run(pathlib.Path(sys.argv[1]), toy.make(**toy.BRANCHED))
"""


def launched(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a launcher; once more if a process was aborted from within torch, as twice in some fifty busy starts."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "exitcode: -6" in done.stderr:
        print(done.stderr)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done


def test_two_processes_give_the_loss_of_one(tmp_path: Path) -> None:
    one = toy.run(tmp_path / "one", toy.make(**toy.BRANCHED))["val_loss"]
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    here = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(here), str(here.parent)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = launched([*command, str(tmp_path / "two")], environment)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two/summary.json").read_text())["val_loss"]
    assert two == pytest.approx(one, abs=1e-5)
    logs = [toy.records(tmp_path / name) for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]), "one process writes the log"
    branches = [[r["loss"] for r in log if r["kind"] == "val" and "branch" in r] for log in logs]
    assert branches[1] == pytest.approx(branches[0], abs=1e-5)
