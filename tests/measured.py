"""A calibration of the toy's two levels on a machine whose seconds and bytes are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import toy

from mlrun.plan.calibration import Calibration, Habits, Probe, size
from mlrun.plan.make import make_plan
from mlrun.plan.stages import Plan

GROWTH = {"_target_": "decoalesce"}
EVALUATED = {"data": "toy"}
# Seconds of a token, a pass and a step; bytes of a token and of a pass; by level.
MACHINE = {1: (0.002, 0.5, 0.3, 1000.0, 40_000.0), 2: (0.0005, 0.25, 0.1, 400.0, 10_000.0)}


def plan_of(**changes: Any) -> Plan:
    return make_plan(toy.make(**changes))


def probes(level: int, tokens: int, n: int = 8) -> list[Probe]:
    token, one, step, token_bytes, pass_bytes = MACHINE[level]

    def probe(samples: int, size: int) -> Probe:
        passes = -(-samples // size)
        seconds = step + passes * one + token * samples * tokens
        again = 7000 if passes > 1 else 0
        return Probe(samples, size, seconds, round(pass_bytes + token_bytes * size * tokens + again))

    return [probe(n, n), probe(n // 2, n // 2), probe(n, n // 2)]


def calibration(plan: Plan) -> Calibration:
    tokens = plan.tokens_per_sample
    sizes = tuple(size(level, tokens, probes(level.number, tokens), 0.001 * level.number, 500) for level in plan.levels)
    machine = {"gpu": None, "processor": "a processor", "host": "here"}
    transfers = {"coalesce": 1e-4, "decoalesce": 2e-4}
    return Calibration("GPT", "2026-11-29T10:00:00", machine, sizes, 16, EVALUATED, 0.5, 1e-6, transfers, GROWTH)


def habits(plan: Plan, **changes: Any) -> Habits:
    each = {stage.index: 2 for stage in plan.stages}
    return replace(Habits(None, each, each, EVALUATED, GROWTH, 1, True), **changes)
