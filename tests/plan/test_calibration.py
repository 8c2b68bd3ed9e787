"""What is predicted follows from what was measured: exactly at the measured sizes, by a power between them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import toy
from measured import MACHINE, calibration, habits, plan_of

from mlrun.plan import table
from mlrun.plan.calibration import (
    Probe,
    as_record,
    between,
    predict,
    read_record,
    size,
)
from mlrun.plan.record import as_dict


@pytest.mark.parametrize("level", [1, 2])
def test_three_steps_give_what_tokens_passes_and_steps_take(level: int) -> None:
    plan = plan_of()
    found = calibration(plan).sizes[level - 1]
    token, one, step, token_bytes, pass_bytes = MACHINE[level]
    assert (found.token_seconds, found.pass_seconds, found.step_seconds) == pytest.approx((token, one, step))
    assert (found.token_bytes, found.pass_bytes, found.again_bytes) == pytest.approx((token_bytes, pass_bytes, 7000))


@pytest.mark.parametrize("noise", [(1.0, 2.0, 3.0), (1.0, 0.0, 0.1), (1.0, 0.6, 9.0), (1.0, 0.9, 1.0)])
def test_noise_makes_no_part_negative_and_keeps_the_whole(noise: tuple[float, float, float]) -> None:
    plan = plan_of()
    samples = ((8, 8), (4, 4), (8, 4))
    noisy = [Probe(n, m, seconds, 10) for (n, m), seconds in zip(samples, noise, strict=True)]
    found = size(plan.level(1), 16, noisy, 0.0, 0)
    parts = (found.token_seconds, found.pass_seconds, found.step_seconds)
    assert min(parts) >= 0
    assert found.token_seconds * 8 * 16 + found.pass_seconds + found.step_seconds == pytest.approx(noise[0])


@pytest.mark.parametrize(("batch", "micro", "passes"), [(8, None, 1), (8, 4, 2), (8, 5, 2), (16, None, 1)])
def test_seconds_at_a_measured_size_are_those_of_the_machine(batch: int, micro: int | None, passes: int) -> None:
    plan, measured = plan_of(batch=batch), calibration(plan_of())
    found = predict(plan, habits(plan, micro_batch=micro), measured)
    for stage, costs in zip(plan.stages, found.stages, strict=True):
        token, one, step, _, _ = MACHINE[stage.level]
        assert costs.training == pytest.approx(stage.steps * (step + passes * one + token * batch * 16))
        assert costs.beyond is (batch > 8)
    assert found.total.training == pytest.approx(sum(costs.training or 0 for costs in found.stages))


def test_evaluations_checkpoints_and_transfers_are_in_the_whole() -> None:
    plan = plan_of()
    found = predict(plan, habits(plan, averages=2), calibration(plan))
    first, second, third = found.stages
    assert first.evaluation == pytest.approx(2 * 2 * 16 * 16 * 0.001)
    assert second.evaluation == pytest.approx(2 * 2 * 16 * 16 * 0.002)
    held = [level.state_bytes - 4 * level.parameters for level in plan.levels]
    assert first.checkpoint == pytest.approx(2 * (0.5 + 1e-6 * held[0]))
    assert second.checkpoint == pytest.approx(2 * (0.5 + 1e-6 * (held[0] + held[1])))  # level 1 waits
    finest = plan.level(1).parameters
    assert [costs.transfer for costs in found.stages] == pytest.approx([0, 1e-4 * finest, 2e-4 * finest])
    parts = [costs for costs in (first, second, third)]
    whole = sum((c.training or 0) + (c.evaluation or 0) + (c.checkpoint or 0) + (c.transfer or 0) for c in parts)
    assert found.whole == pytest.approx(whole)


def test_what_was_not_measured_is_not_known() -> None:
    plan = plan_of()
    measured = calibration(plan)
    others = predict(plan, habits(plan, evaluated={"data": "another"}, growth={"_target_": "ligo"}), measured)
    assert [costs.evaluation for costs in others.stages] == [None] * 3
    assert [costs.transfer for costs in others.stages] == [0.0, None, None]
    assert others.whole is None and others.total.training is not None
    far = replace(measured, sizes=tuple(replace(s, flops_per_token=s.flops_per_token * 1e3) for s in measured.sizes))
    assert predict(plan, habits(plan), far).total.training is None
    near = replace(measured, sizes=tuple(replace(s, flops_per_token=s.flops_per_token * 2) for s in measured.sizes))
    assert predict(plan, habits(plan), near).total.beyond


def test_memory_is_that_of_a_gpus_allocator_and_on_a_processor_nothing_is_said() -> None:
    plan = plan_of()
    held = [level.state_bytes - 4 * level.parameters for level in plan.levels]
    steps = [
        max(p + t * 8 * 16, 4 * level.parameters)
        for (*_, t, p), level in zip((MACHINE[1], MACHINE[2]), plan.levels, strict=True)
    ]
    gpu = predict(plan, habits(plan, on_processor=False), calibration(plan))
    assert [costs.bytes for costs in gpu.stages] == pytest.approx([held[i] + steps[i] for i in (0, 1, 0)])
    cpu = predict(plan, habits(plan), calibration(plan))
    assert [costs.bytes for costs in cpu.stages] == [None] * 3 and cpu.total.bytes is None
    assert cpu.total.training == gpu.total.training


def test_between_two_points_lies_a_power_law() -> None:
    assert between([(1, 2.0), (100, 200.0)], 10) == pytest.approx(20)
    assert between([(1, 2.0), (100, 200.0)], 1000) == pytest.approx(2000)
    assert between([(1, 1.0), (4, 2.0), (16, 2.0)], 8) == pytest.approx(2)
    assert between([(1, 0.0), (3, 4.0)], 2) == pytest.approx(2)
    assert between([(1, 0.0), (3, 4.0)], 0.5) == 0


def test_a_size_between_two_levels_lies_between_them() -> None:
    plan = plan_of()
    measured = calibration(plan)
    model = replace(plan.level(1).model, layer=1)
    middle = plan_of(
        model=model, coarsening=toy.Uniform(width=2, ffn=2, head=2), cycle=toy.Cycle("s", {}, [toy.Row(1, "5 steps")])
    )
    (costs,) = predict(middle, habits(middle), measured).stages
    assert not costs.beyond and costs.training is not None
    each = costs.training / 5
    whole = [m[2] + m[1] + m[0] * 8 * 16 for m in MACHINE.values()]
    assert whole[1] < each < whole[0]


def test_a_calibration_survives_its_file() -> None:
    found = calibration(plan_of())
    assert read_record(json.loads(json.dumps(as_record(found)))) == found
    with pytest.raises((TypeError, KeyError)):
        read_record({"sizes": [{"samples": [1, 2]}]})


def test_the_table_says_hours_and_memory_or_that_they_are_unknown() -> None:
    plan = plan_of()
    found = predict(plan, habits(plan, on_processor=False), calibration(plan))
    for said, unknown in ((None, True), (found, False)):
        shown = table.stages(as_dict(plan), None, said)
        columns = {str(column.header): list(column.cells) for column in shown.columns}
        assert all((cell == "n/a") is unknown for name in ("time", "memory") for cell in columns[name])
    assert table.prediction_notes(None) == []
    first, second = table.prediction_notes(found)
    assert (
        "calibration of 2026-11-29 (GPT, a processor on here)" in first
        and "extrapolated" not in first
        and "time and memory by" in first
    )
    assert "  time by" in table.prediction_notes(predict(plan, habits(plan), calibration(plan)))[0]
    assert second.startswith("  whole run ") and "evaluation" in second
    given = table.stages(as_dict(plan), 1.0, found)  # a rate of one's own comes first
    assert next(iter(given.columns[8].cells)) != next(iter(table.stages(as_dict(plan), None, found).columns[8].cells))
