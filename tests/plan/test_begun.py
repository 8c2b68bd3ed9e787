"""Which code of one's own a run has, and what is said when it is another one than it began with."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy

from mlrun.plan import begun
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict

MODULES = {
    "__init__": "",
    "growing": "from mlrun.multilevel.growth.decoalesce import Decoalesce\nimport json\n\n\n"
    "class Own(Decoalesce):\n    def noise(self):\n        from .near import scale\n        return scale\n",
    "near": "from labcode import far\n\nscale = far.scale\n",
    "far": "scale = 1\n",
    "other": "scale = 1\n",
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a run with a growth of a package in `tmp_path`."""
    (tmp_path / "labcode").mkdir()
    for name, text in MODULES.items():
        (tmp_path / f"labcode/{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MLRUN_PACKAGES", "labcode")
    yield replace(toy.make(), growth=importlib.import_module("labcode.growing").Own())
    for name in [name for name in sys.modules if name.split(".")[0] == "labcode"]:
        del sys.modules[name]  # the next test has its own


def test_own_code_is_what_the_classes_are_in_and_what_that_imports(config: Any, monkeypatch: Any) -> None:
    assert list(begun.code(config)) == ["labcode", "labcode.far", "labcode.growing", "labcode.near"]
    monkeypatch.setenv("MLRUN_PACKAGES", "")
    assert begun.code(config) == {}


def test_other_rates_by_kind_of_tensor_are_another_plan(tmp_path: Path) -> None:
    """As of an mlrun with another rule of a parametrisation: nothing else of the plan would tell."""
    config = toy.make(model=replace(toy.model(), parametrization="completep", base={"layer": 1}))
    plan, where = make_plan(config), tmp_path / "plan.json"
    there = json.loads(json.dumps(as_dict(plan)))
    assert begun.problems(there, plan, config, where) == []
    there["levels"][0]["rates"][0]["rate"] *= 2
    (told,) = begun.problems(there, plan, config, where)
    assert told.startswith(f"{where}: level 1: rates=[1.0, ") and "as is planned now; restore the file" in told


@pytest.mark.parametrize(("name", "noticed"), [("growing", True), ("near", True), ("far", True), ("other", False)])
def test_code_that_changed_is_named_with_what_to_do(config: Any, tmp_path: Path, name: str, noticed: bool) -> None:
    plan, where = make_plan(config), tmp_path / "plan.json"
    there = as_dict(plan) | {begun.CODE: begun.code(config)}
    assert begun.problems(there, plan, config, where) == []
    (tmp_path / f"labcode/{name}.py").write_text(MODULES[name] + "more = 1\n")
    told = begun.problems(there, plan, config, where)
    assert len(told) == noticed
    if told:
        assert told[0].startswith(f"labcode.{name}=changed: allowed: the code that this run began with")
        assert told[0].endswith(f"or remove {where} if no number changes by that")
    assert begun.problems(as_dict(plan), plan, config, where) == []  # a run of before, which does not say
