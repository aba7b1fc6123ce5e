"""Inputs that once ended in a traceback, a hang or half a file: each file in ``cases`` is tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.figures import try_file
from fuzz.outcomes import ALLOWED
from fuzz.targets import TARGETS

CASES = sorted(path for path in (Path(__file__).parent / "cases").glob("*/*") if path.is_file())


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_is_refused_or_succeeds(case: Path) -> None:
    # `what-happened,config.json`: behind the comma stands the name that the file has when it is used.
    name = case.name.partition(",")[2] or case.name
    verdict = try_file(name, case.read_bytes(), TARGETS[case.parent.name].use)
    assert verdict.outcome in ALLOWED, f"{verdict.signature}: {verdict.what}"


def test_cases_are_small() -> None:
    sizes = [case.stat().st_size for case in CASES]
    assert max(sizes, default=0) <= 20_000
    assert sum(sizes) <= 200_000
