"""The tables of README and docs, rendered from the results that they show and from the tasks.

    python benchmarks/tables.py README.md docs/tasks.md    # put the tables in; a test compares them

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; NAME is a function of :data:`TABLES`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructedit.tasks.loading import listed_tasks

RESULTS = Path(__file__).parents[1] / "docs" / "results"
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(\n<!-- end -->)", re.DOTALL)

Row = dict[str, Any]

#: The methods of the main table: label, result file.
METHODS = (("InstructEdit (`bundled`)", "bundled"), ("MEND, multi-task", "mend"), ("FT-L, tuned", "ft"))
COUNTERFACT, WIKI = "counterfact/counterfact-val.json", "wiki_counterfact/test_cf.json"
#: Task, file, label.
TESTS = (
    ("counterfact", COUNTERFACT, "`counterfact`"),
    ("counterfact", WIKI, "`counterfact`, WikiData file"),
    ("recent", "wikirecent/recent_test.reconstructed.json", "`recent`"),
    ("convsent", "convsent/blender_test.json", "`convsent`"),
    ("zsre", "zsre/zsre_mend_eval_portability_gpt4.json", "`zsre`, held out from the editors"),
)


def read(name: str) -> Any:
    """A result by its name. Results of earlier versions call held-out templates wordings."""
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text.replace("test wordings", "test templates"))


def cell(row: Row | None, metric: str) -> str:
    """Mean and 95% interval in percent."""
    value = None if row is None else row["metrics"].get(metric)
    if value is None:
        return "–"
    mean, low, high = (f"{100 * value[key]:.1f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low}–{high})"


def find(rows: list[Row], **wanted: str) -> Row | None:
    """The row with these fields."""
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def markdown(heads: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])


def _by_method(protocol: str, metrics: tuple[str, ...], heads: list[str]) -> str:
    results = {label: read(file)["rows"] for label, file in METHODS}
    lines = []
    for task, file, name in TESTS:
        for label, rows in results.items():
            row = find(rows, task=task, file=file, protocol=protocol, instruction="unseen")
            if row is not None:
                lines.append([name, label, *(cell(row, metric) for metric in metrics)])
    return markdown(["task", "method", *heads], lines)


def main_table() -> str:
    """Plain queries, teacher-forced token accuracy."""
    metrics = ("reliability", "generalization", "locality", "portability", "reliability_before")
    heads = ["Reliability", "Generalization", "Locality", "Portability", "Reliability before the edit"]
    return _by_method("plain", metrics, heads)


def generation_table() -> str:
    """Free generation, exact match."""
    metrics = ("reliability", "generalization", "locality", "portability")
    return _by_method("generation", metrics, ["Reliability", "Generalization", "Locality", "Portability"])


#: Test-name suffix in scope.json, and what the editor was given.
CONTROLS = (
    ("", "own name, own text (unseen)"),
    (", text-swapped", "own name, text of the opposite scope"),
    (", name-swapped", "name of the opposite scope, own text"),
    (", swapped-scope", "name and text of the opposite scope"),
    (", text-alone", "own text behind a neutral name"),
    (", test templates", "unseen wordings behind a neutral name"),
    (", swapped-scope, test templates", "unseen wordings of the opposite scope, neutral name"),
    (", none", "no instruction"),
    (", unrelated", "a text about something else"),
)
INSTRUCTEDIT, MEND = "InstructEdit (bundled)", "MEND (bundled)"


def following(test: str, editor: str = INSTRUCTEDIT) -> str:
    """The share of deciding probes that do what the test's task asks."""
    return cell(find(read("scope")["rows"], test=test, editor=editor), "following")


def instruction_table() -> str:
    """this-fact and rename under every control."""
    lines = [
        [label, *(following(task + suffix, who) for task in ("this-fact", "rename") for who in (INSTRUCTEDIT, MEND))]
        for suffix, label in CONTROLS
    ]
    heads = ["the edit is given", "`this-fact`: kept", "MEND", "`rename`: changed", "MEND"]
    return markdown(heads, lines)


def scopes_table() -> str:
    """The other scopes."""
    names = (
        ("consequences", "two-hop facts change"),
        ("forget", "neither the old nor the new answer is given"),
        ("aliases", "other names of the subject change"),
        ("implications", "other names and two-hop facts change"),
    )
    suffixes = ("", ", text-swapped", ", name-swapped", ", test templates", ", swapped-scope, test templates")
    lines = [
        [f"`{task}`: {what}", *(following(task + suffix) for suffix in suffixes), following(task, MEND)]
        for task, what in names
    ]
    pair = "rename-and-on"
    lines.append(
        [
            "rename and two-hop facts, a pair that no training text named",
            *(following(pair + suffix) for suffix in suffixes),
            following(f"{pair}, test templates", MEND),
        ]
    )
    return markdown(
        ["", "own name and text", "text swapped", "name swapped", "unseen wordings alone", "the same, swapped", "MEND"],
        lines,
    )


def matched_table() -> str:
    """InstructEdit (core) minus MEND at equal Locality."""
    lines = []
    for task, found in read("matched")["tasks"].items():
        match = found["matched"]
        if match is None:
            continue
        points = [{"metrics": {metric: match[metric]}} for metric in ("reliability", "generalization")]
        factor = match["factor"]
        lines.append(
            [
                f"`{task}`",
                cell(points[0], "reliability"),
                cell(points[1], "generalization"),
                f"{factor['mean']:.2f} ({factor['low']:.2f}–{factor['high']:.2f})",
            ]
        )
    return markdown(
        ["InstructEdit minus MEND, points", "Reliability", "Generalization", "MEND's edits scaled by"], lines
    )


def speed_table() -> str:
    """Batch 1 against batch 1, and best against best."""
    rows = read("speed-gpt2-cpu")["rows"]

    def one(**wanted: Any) -> str:
        row = next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)
        return "–" if row is None else f"{1000 * row['seconds']['median']:.0f} ({row['peak_bytes'] / 1e9:.1f} GB)"

    lines = []
    for what, name, best in (
        ("train", "train", 32),
        ("evaluate", "evaluate with all probes", 128),
        ("edit", "apply", 32),
    ):
        for numbers, precision in (("exact", "float32"), ("fast", "bfloat16")):
            lines.append(
                [
                    f"{name}, {precision}",
                    one(what=what, system="easyedit", numbers=numbers, batch=1),
                    one(what=what, system="ours", numbers=numbers, batch=1, cache=False),
                    one(what=what, system="ours", numbers=numbers, batch=best, cache=False),
                ]
            )
    return markdown(
        ["ms an edit (peak memory)", "EasyEdit, batch 1 (its only)", "ours, batch 1", "ours, best batch"], lines
    )


def tasks_table() -> str:
    """The tasks by their YAML files."""
    lines = [
        [
            f"`{task.name}`",
            task.summary,
            ", ".join(task.in_scope),
            ", ".join(task.out_of_scope),
            "yes" if task.held_out else "",
        ]
        for task in listed_tasks()
    ]
    return markdown(["task", "what it is", "in scope", "out of scope", "held out from training"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "main": main_table,
    "generation": generation_table,
    "instruction": instruction_table,
    "scopes": scopes_table,
    "matched": matched_table,
    "speed": speed_table,
    "tasks": tasks_table,
}


def rendered(text: str) -> str:
    """The text with every marked table as the results have it."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[4], text)


def main() -> None:
    """Put the tables into a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    for path in parser.parse_args().files:
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
