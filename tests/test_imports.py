"""Data goes one way: what plans needs no torch, what trains no Hydra, what reports neither, and nobody transformers."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlrun

PACKAGE = Path(mlrun.__path__[0])
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
ALL = ", ".join(f"mlrun.{name}" for _, name, _ in pkgutil.walk_packages([str(PACKAGE)]) if name != "__main__")

# Who may not know whom. `top` is at import; otherwise nowhere in the file.
TORCH_FREE = (
    "axes", "branches", "check", "compose", "config", "errors", "launched", "signals", "storage",
    "trust", "folder", "layers", "plan", "preflight", "schedule", "table",
    "tasks", "units", "__main__", "models", "coarsening", "report", "log",
)  # fmt: skip
HYDRA_FREE = (
    "axes", "branches", "check", "checkpoint", "clock", "dcp", "distributed", "divergence", "dropout", "growth",
    "errors", "launched", "signals", "storage", "folder", "layers", "models", "coarsening",
    "network", "operators", "optim", "plan", "report", "run", "schedule", "sharded", "sharding", "table",
    "trainer", "transfer", "units",
)  # fmt: skip


def files(name: str) -> list[Path]:
    """Return the files of a module or package of ours."""
    return [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else sorted((PACKAGE / name).glob("*.py"))


def imported(path: Path, anywhere: bool) -> set[str]:
    """Return the top packages that a file imports: at import time, or anywhere; not for type checkers alone."""
    tree = ast.parse(path.read_text())
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    nodes = [node for node in (ast.walk(tree) if anywhere else tree.body) if node not in guarded]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("name", TORCH_FREE)
def test_no_torch_at_import(name: str) -> None:
    assert files(name)
    assert [path.name for path in files(name) if "torch" in imported(path, anywhere=False)] == []


@pytest.mark.parametrize("name", HYDRA_FREE)
def test_no_hydra_anywhere(name: str) -> None:
    assert files(name)
    assert [path.name for path in files(name) if "hydra" in imported(path, anywhere=True)] == []


def test_the_report_reads_files_only() -> None:
    known = set().union(*(imported(path, anywhere=True) for path in files("report")))
    assert known.isdisjoint({"torch", "hydra", "omegaconf", "wandb"})


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            "mlrun.plan.make, mlrun.plan.schedule, mlrun.plan.table, mlrun.cli.run_folder",
            "torch, hydra, datasets, wandb",
        ),
        ("mlrun.__main__", "torch, datasets, wandb, matplotlib"),
        ("mlrun.report.build", "torch, hydra, datasets, wandb"),
        (ALL, "transformers, lightning, accelerate"),
        ("mlrun.run, mlrun.train.loop", "hydra, datasets, wandb"),
    ],
)
def test_modules_load_without(modules: str, absent: str) -> None:
    code = f"import sys, {modules}; print([m for m in '{absent}'.split(', ') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
