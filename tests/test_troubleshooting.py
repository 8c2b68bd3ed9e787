"""Each message that docs/troubleshooting.md explains is one that the code still has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/troubleshooting.md"
QUOTED = re.compile(r"`([^`]+)`")
BLANK = "…"


def pieces() -> list[str]:
    """Return every quoted piece of a message: first column of the first table, cut where something differs."""
    rows = PAGE.read_text().partition("\n## ")[0].splitlines()
    cells = [row.split(" | ")[0] for row in rows if row.startswith("| `")]
    return [piece.strip() for cell in cells for quoted in QUOTED.findall(cell) for piece in quoted.split(BLANK)]


def strings() -> str:
    """Return every piece of text in the code, those of one expression joined as Python joins them."""
    files = [*(ROOT / "mlrun").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


@pytest.fixture(scope="module")
def said() -> str:
    return strings()


@pytest.mark.parametrize("piece", pieces())
def test_every_message_is_still_said(said: str, piece: str) -> None:
    assert piece in said


def test_there_are_messages_to_check() -> None:
    assert len(pieces()) > 12
