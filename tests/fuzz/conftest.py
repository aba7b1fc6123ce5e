"""The table of figures at the end of `make fuzz`."""

from __future__ import annotations

import json

import pytest

from fuzz.figures import BUILD, FULL, table, total


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures by class and write them to ``build/fuzz.json``."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    counts, said = total(pair for report in reports for pair in report.user_properties)
    if not counts or not FULL:
        return
    BUILD.mkdir(exist_ok=True)
    value = {"classes": {name: dict(row) for name, row in sorted(counts.items())}, "failures": sorted(said)}
    (BUILD / "fuzz.json").write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    terminalreporter.section("fuzz: inputs by class and outcome")
    for line in table(counts):
        terminalreporter.write_line(line)
    terminalreporter.write_line("written to build/fuzz.json")
