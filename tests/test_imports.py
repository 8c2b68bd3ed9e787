"""Data goes one way: a file imports its own package and the floors below, and nobody walks in a circle."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mlrun

PACKAGE = Path(mlrun.__path__[0])

# From the ground up; imports for type checkers alone count.
FLOORS = (
    "errors units cores",
    "files own",
    "models config log report",
    "plan data",
    "train",
    "multilevel interop",
    "evaluate",
    "running",
    "run convert",
    "cli",
    "__main__",
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}

# Packages that load without torch: what is imported inside a function is not counted.
TORCH_FREE = ("cli", "plan", "config", "log", "report", "errors", "units", "files", "own", "cores", "__main__")
# Of the models only what computes, of the data only what opens.
COMPUTES = ("models/modules.py", "models/network.py", "models/vocabulary_loss.py", "models/dropout.py")

MODULES = {
    ".".join(("mlrun", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a piece of code imports: of `from a import b` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """Return the modules of ours that a file imports anywhere."""
    return {name for name in imports(ast.parse(path.read_text())) if name in MODULES and name != "mlrun"}


def packages(module: str) -> str:
    """Return the package, or the file at the root, that a module belongs to."""
    return module.split(".")[1]


def test_every_part_has_a_floor() -> None:
    assert {packages(module) for module in MODULES if module != "mlrun"} == set(FLOOR)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "mlrun"])
def test_a_file_imports_its_own_package_and_lower_floors(module: str) -> None:
    own = packages(module)
    others = {name for name in ours(MODULES[module]) if packages(name) != own}
    assert [name for name in sorted(others) if FLOOR[packages(name)] >= FLOOR[own]] == []


def drawing() -> str:
    """Return who imports whom as docs/design.md shows it, from the top floor down."""
    parts = [name for names in reversed(FLOORS) for name in names.split()]
    known = {part: {packages(name) for module in MODULES for name in ours(MODULES[module])
                    if module != "mlrun" and packages(module) == part} - {part} for part in parts}  # fmt: skip
    return "\n".join(f"    {part:<12}{' '.join(p for p in parts if p in known[part])}".rstrip() for part in parts)


def test_the_drawing_in_the_design_is_that_of_the_code() -> None:
    assert drawing() in (PACKAGE.parent / "docs" / "design.md").read_text(), drawing()


def test_no_circle() -> None:
    graph: Mapping[str, set[str]] = {
        module: {name for name in ours(path) if name != module and not MODULES[name].name.startswith("__init__")}
        for module, path in MODULES.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def at_import(path: Path) -> set[str]:
    """Return the top packages that a file imports when it is loaded."""
    body = ast.parse(path.read_text()).body
    return {name.partition(".")[0] for node in body if not isinstance(node, ast.If) for name in _shallow(node)}


def _shallow(node: ast.stmt) -> Iterator[str]:
    return imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else iter(())


@pytest.mark.parametrize("module", [name for name in MODULES if name != "mlrun" and packages(name) in TORCH_FREE])
def test_what_plans_and_reports_needs_no_torch(module: str) -> None:
    assert "torch" not in at_import(MODULES[module])


def test_of_the_models_only_what_computes_needs_torch() -> None:
    needing = [path for path in sorted((PACKAGE / "models").rglob("*.py")) if "torch" in at_import(path)]
    assert {str(path.relative_to(PACKAGE)) for path in needing} == set(COMPUTES)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "mlrun"])
def test_only_the_command_line_knows_hydra(module: str) -> None:
    if packages(module) not in ("cli", "__main__"):
        assert "hydra" not in {name.partition(".")[0] for name in imports(ast.parse(MODULES[module].read_text()))}


def test_the_report_reads_files_only() -> None:
    known = {name for path in (PACKAGE / "report").rglob("*.py") for name in imports(ast.parse(path.read_text()))}
    assert {name.partition(".")[0] for name in known}.isdisjoint({"torch", "hydra", "omegaconf", "wandb"})


ALL = ", ".join(name for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "mlrun.") if name != "mlrun.__main__")


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("mlrun.plan.make, mlrun.plan.table, mlrun.cli.run_folder", "torch, hydra, datasets, wandb"),
        ("mlrun.__main__", "torch, datasets, wandb, matplotlib"),
        ("mlrun.report.build, mlrun.report.status, mlrun.train.lock", "torch, hydra, datasets, wandb"),
        (ALL, "transformers, lightning, accelerate"),
        ("mlrun.run, mlrun.train.loop", "hydra, datasets, wandb"),
    ],
)
def test_modules_load_without(modules: str, absent: str) -> None:
    code = f"import sys, {modules}; print([m for m in '{absent}'.split(', ') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
