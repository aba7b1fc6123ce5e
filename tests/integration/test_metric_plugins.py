"""A metric of another package: one registration, and it is measured, listed and documented."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from instructedit.records import EditRecord

MODULE = """
from instructedit.evaluation.metrics import Metric, ResponseKind, Unit

def queries(record):
    request = record.record.request
    return [record.add(request.prompt, [request.target], kind=ResponseKind.LIKELIHOOD)]

GAIN = Metric(
    name="target_gain",
    definition="How much likelier has the target become?",
    formula="mean token log likelihood of the target after the edit minus before it",
    queries=queries,
    reduce=lambda results: results[0].score - results[0].score_before,
    unit=Unit.NATS,
)
"""


def install(folder: Path) -> None:
    """Write a package with an entry point, as pip would install it."""
    (folder / "target_gain.py").write_text(MODULE)
    info = folder / "target_gain-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: target-gain\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[instructedit.metrics]\ntarget_gain = target_gain:GAIN\nbroken = target_gain:NOTHING\n"
    )


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "instructedit", *map(str, arguments)],
        cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip


def test_metric_of_a_package_is_listed_and_measured(
    tmp_path: Path,
    checkpoint: Callable[[str], Path],
    records: list[EditRecord],
    write_jsonl: Callable[[Path, list[EditRecord]], Path],
) -> None:
    install(tmp_path)
    data = write_jsonl(tmp_path / "own.jsonl", records)
    listing = run(tmp_path, "metrics", "--markdown")
    assert "| `target_gain` | How much likelier has the target become? |" in listing.stdout
    assert "the metric 'broken' (target_gain:NOTHING) cannot be imported" in listing.stderr
    model = checkpoint("gpt2")
    result = run(
        tmp_path, "evaluate", "--task", "counterfact", "--data", data, "--model", model, "--editor", "in-context",
        "--limit", "3", "--json", "-",
    )  # fmt: skip
    gain = json.loads(result.stdout)["metrics"]["target_gain"]
    assert gain["count"] == 3
    assert gain["mean"] != 0
