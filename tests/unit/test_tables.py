"""Every table of figures in the README and the docs is rendered from the results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rendering import RESULTS
from tables import BLOCK, TABLES, rendered

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), RESULTS / "archive.md"]
#: A cell that is a number, with or without an interval.
FIGURES = re.compile(r"\|\s*[+−-]?\d+(\.\d+)?%?\s*(\([^)]*\))?\s*(?=\|)")
#: A link to a file of the repository or to a heading: file, heading.
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert rendered(text) == text, f"python benchmarks/tables.py {page.relative_to(ROOT)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_table_of_figures_is_written_by_hand(page: Path) -> None:
    by_hand = BLOCK.sub("", page.read_text(encoding="utf-8"))
    lines = [line for line in by_hand.splitlines() if line.startswith("|") and FIGURES.search(line)]
    assert lines == []


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in LINK.findall(page.read_text(encoding="utf-8")):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not heading or heading in headings(linked), f"{target}#{heading}"


def test_every_table_is_shown_once() -> None:
    shown = [match[2] for page in PAGES for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]
    assert sorted(shown) == sorted(TABLES)


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    missing = [page.name for page in PAGES[1:] if page.name != "index.md" and f"{page.name})" not in index]
    assert missing == []


@pytest.mark.parametrize("name", ["bundled", "bundled-mend", "ft", "scope", "matched"])
def test_results_name_their_editors(name: str) -> None:
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    assert '"editor_digest' in text or '"digests"' in text
