"""Every table of figures in the README stands as the results have it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tables import BLOCK, RESULTS, TABLES, rendered

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: A cell that is a number, with or without an interval.
FIGURES = re.compile(r"\|\s*[+−-]?\d+(\.\d+)?%?\s*(\([^)]*\))?\s*(?=\|)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert rendered(text) == text, f"python benchmarks/tables.py {page.relative_to(ROOT)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_table_of_figures_is_written_by_hand(page: Path) -> None:
    by_hand = BLOCK.sub("", page.read_text(encoding="utf-8"))
    lines = [line for line in by_hand.splitlines() if line.startswith("|") and FIGURES.search(line)]
    assert lines == []


def test_every_table_is_shown() -> None:
    shown = {match[2] for page in PAGES for match in BLOCK.finditer(page.read_text(encoding="utf-8"))}
    assert shown == TABLES.keys()


@pytest.mark.parametrize("name", ["bundled", "mend", "ft", "scope", "matched"])
def test_results_name_their_editors(name: str) -> None:
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    assert '"editor_digest' in text or '"digests"' in text
