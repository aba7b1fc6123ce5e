"""Two writers of a ledger, killed at random points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_nothing_is_lost_but_the_edit_in_flight(where: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "ledger_writers.py"), where, "200", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["killed"] == 200
    assert found["ended by themselves"] == 0, done.stderr
    assert found["noted"] > 100, "the writers came to write"
    assert found["lost"] == []
    assert found["in flight"] <= found["killed"]
    assert found["twice"] == 0
    assert found["problems"] == []
