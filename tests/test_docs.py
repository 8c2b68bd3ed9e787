"""The pages are one site: each is in the list of `docs/index.md`, and each link leads to a file and a heading there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "docs" / "index.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[tuple[Path, str]]:
    """Return file and place of every link that stays in the repository."""
    found = (link.partition("#") for link in LINK.findall(prose(page)) if "://" not in link)
    return [((page.parent / name).resolve() if name else page, place) for name, _, place in found]


def places(page: Path) -> set[str]:
    """Return what headings can be linked to, named as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_to_headings(page: Path) -> None:
    broken = [
        f"{file.name}#{place}"
        for file, place in links(page)
        if not file.exists() or (place and place not in places(file))
    ]
    assert broken == []


def test_every_page_is_in_the_list_once_and_the_readme_leads_to_it() -> None:
    listed = [file for file, _ in links(INDEX)]
    assert sorted(listed) == sorted(page for page in PAGES if page != INDEX)
    assert INDEX in [file for file, _ in links(ROOT / "README.md")]


def test_headings_are_named_as_github_does() -> None:
    assert places(ROOT / "docs" / "watching.md") >= {
        "a-report-that-follows-its-runs",
        "how-large-each-layer-is-healthtrue",
    }
