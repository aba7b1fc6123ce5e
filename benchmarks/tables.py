"""Render the tables of the README and the docs from the result files.

    python benchmarks/tables.py README.md docs/*.md docs/results/archive.md

A table is written between ``<!-- table: NAME -->`` and ``<!-- end -->``; NAME is a key of :data:`TABLES`. A test
renders every page again and compares.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import experiment_tables as experiments
from rendering import HEADS, G, L, P, R, Row, cell, find, interval, markdown, minutes, read

from instructedit.artifacts import log_entries
from instructedit.tasks.loading import listed_tasks

BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

#: The methods of the main table: label, result file.
METHODS = (("InstructEdit (`bundled`)", "bundled"), ("MEND, multi-task", "bundled-mend"), ("FT-L, tuned", "ft"))
COUNTERFACT, WIKI = "counterfact/counterfact-val.json", "wiki_counterfact/test_cf.json"
ZSRE = "zsre/zsre_mend_eval_portability_gpt4.json"
#: Task, file, label.
TESTS = (
    ("counterfact", COUNTERFACT, "`counterfact`"),
    ("counterfact", WIKI, "`counterfact`, WikiData file"),
    ("recent", "wikirecent/recent_test.reconstructed.json", "`recent`"),
    ("convsent", "convsent/blender_test.json", "`convsent`"),
    ("zsre", ZSRE, "`zsre`, held out from the editors"),
)
INSTRUCTEDIT, MEND = "InstructEdit (bundled)", "MEND (bundled)"


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
    metrics = (R, G, L, P, "reliability_before")
    return _by_method("plain", metrics, [*(HEADS[metric] for metric in (R, G, L, P)), "Reliability before the edit"])


def generation_table() -> str:
    """Free generation, exact match."""
    return _by_method("generation", (R, G, L, P), [HEADS[metric] for metric in (R, G, L, P)])


#: Test-name suffix in scope.json, and what the editor was given.
CONTROLS = (
    ("", "own name, own description (unseen)"),
    (", text-swapped", "own name, description of the opposite scope"),
    (", name-swapped", "name of the opposite scope, own description"),
    (", swapped-scope", "name and description of the opposite scope"),
    (", text-alone", "own description, neutral name"),
    (", test templates", "unseen texts, neutral name"),
    (", swapped-scope, test templates", "unseen texts of the opposite scope, neutral name"),
    (", none", "no instruction"),
    (", unrelated", "a text about something else"),
)


def following(test: str, editor: str = INSTRUCTEDIT) -> str:
    """Return the share of deciding probes that do what the test's task asks."""
    return cell(find(read("scope")["rows"], test=test, editor=editor), "following")


def instruction_table() -> str:
    """this-fact and rename under every control."""
    lines = [
        [label, *(following(task + suffix, who) for task in ("this-fact", "rename") for who in (INSTRUCTEDIT, MEND))]
        for suffix, label in CONTROLS
    ]
    heads = ["instruction", "`this-fact`: kept", "MEND", "`rename`: changed", "MEND"]
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
            f"`{pair}`: rename and two-hop facts, a combination that no training text describes",
            *(following(pair + suffix) for suffix in suffixes),
            following(f"{pair}, test templates", MEND),
        ]
    )
    heads = ["", "own name and description", "description swapped", "name swapped", "unseen texts", "swapped", "MEND"]
    return markdown(heads, lines)


def matched_table() -> str:
    """InstructEdit (core) minus MEND at equal Locality."""
    lines = []
    for task, result in read("matched")["tasks"].items():
        match = result["matched"]
        if match is not None:
            cells = [interval(match[R]), interval(match[G]), interval(match["factor"], 1, 2)]
            lines.append([f"`{task}`", *cells])
    heads = ["InstructEdit minus MEND, points", "Reliability", "Generalization", "MEND's edits scaled by"]
    return markdown(heads, lines)


def core_table() -> str:
    """What more scopes cost: `bundled` beside `bundled-core`."""
    lines = []
    for task, file, name in TESTS:
        for protocol in ("plain", "generation"):
            where = {"task": task, "file": file, "protocol": protocol, "instruction": "unseen"}
            pair = [find(read(result)["rows"], **where) for result in ("bundled", "bundled-core")]
            if all(pair):
                cells = [cell(row, metric) for metric in (R, G, L) for row in pair]
                lines.append([f"{name}, {protocol}", *cells])
    heads = [f"{HEADS[metric]}, {editor}" for metric in (R, G, L) for editor in ("`bundled`", "`bundled-core`")]
    return markdown(["", *heads], lines)


#: Trainings of an editor: label, log, result.
TRAININGS = (
    ("1,360 steps, `bundled-core`", "bundled-core", "bundled-core"),
    ("3,400 steps, `bundled`", "bundled", "bundled"),
)
#: Label, minutes, peak bytes, the row of `counterfact` and that of `zsre`.
Training = tuple[str, float, int | None, Row | None, Row | None]


def _trainings() -> list[Training]:
    rows = read("table3")["rows"]
    short = find(rows, test="counterfact", editor="InstructEdit")
    assert short is not None
    short_zsre = find(rows, test="zsre", editor="InstructEdit")
    trainings: list[Training] = [
        ("400 steps", short["training_seconds"] / 60, short["training_peak_bytes"], short, short_zsre)
    ]
    for label, log, result in TRAININGS:
        scores = read(result)["rows"]
        main, held_out = (
            find(scores, task=task, file=file, protocol="plain", instruction="unseen")
            for task, file in (("counterfact", COUNTERFACT), ("zsre", ZSRE))
        )
        trainings.append((label, minutes(log), _peak(log), main, held_out))
    scores = read("smollm2")["rows"]
    main, held_out = (find(scores, test=test, editor="InstructEdit, `smollm2`") for test in ("counterfact", "zsre"))
    trainings.append(("1,070 steps, `smollm2`", minutes("smollm2"), _peak("smollm2"), main, held_out))
    return trainings


def _peak(log: str) -> int | None:
    """Return the peak memory of a training, in bytes; None if its log does not have it."""
    return max((row["peak_bytes"] for row in log_entries(log) if "peak_bytes" in row), default=None)


def training_table() -> str:
    """What training an editor of the bundled base model takes, and its quality."""
    lines = [
        [label, f"{time:.0f}", "–" if peak is None else f"{peak / 1e9:.1f}"]
        + [cell(main, metric) for metric in (R, G, L)]
        + [cell(held_out, metric) for metric in (R, G, L)]
        for label, time, peak, main, held_out in _trainings()
    ]
    heads = [f"`{task}` {HEADS[metric]}" for task in ("counterfact", "zsre") for metric in (R, G, L)]
    return markdown(["training", "minutes", "peak memory, GB", *heads], lines)


def cost_table() -> str:
    """The training table in short, without intervals."""

    def means(row: Row | None) -> str:
        return "/".join(cell(row, metric).partition(" ")[0] for metric in (R, G, L))

    lines = [
        [label, f"{time:.0f}", "–" if peak is None else f"{peak / 1e9:.1f}", means(main)]
        for label, time, peak, main, _ in _trainings()
    ]
    return markdown(["training", "minutes", "GB", "`counterfact` R/G/L"], lines)


def speed_table() -> str:
    """Batch 1 against batch 1, and best against best."""
    rows = read("speed-gpt2-cpu")["rows"]

    def one(**fields: Any) -> str:
        row = next((row for row in rows if all(row.get(key) == value for key, value in fields.items())), None)
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
        ["ms per edit (peak memory)", "EasyEdit, batch 1 (its only)", "ours, batch 1", "ours, best batch"], lines
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
    return markdown(["task", "summary", "in scope", "out of scope", "held out from training"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "summary": experiments.smollm2_summary_table,
    "main": main_table,
    "generation": generation_table,
    "instruction": instruction_table,
    "scopes": scopes_table,
    "matched": matched_table,
    "matched-paper": experiments.matched_paper_table,
    "methods": experiments.methods_table,
    "differences": experiments.differences_table,
    "paper": experiments.paper_table,
    "transfer": experiments.transfer_table,
    "mixture": experiments.mixture_table,
    "descriptions": experiments.descriptions_table,
    "larger": experiments.larger_table,
    "directions": experiments.directions_table,
    "separability": experiments.separability_table,
    "sensitivity": experiments.sensitivity_table,
    "optimised": experiments.optimised_table,
    "optimised-test": experiments.optimised_test_table,
    "core": core_table,
    "recent": experiments.recent_table,
    "misses": experiments.misses_table,
    "base": experiments.base_table,
    "smollm2": experiments.smollm2_table,
    "keys": experiments.keys_table,
    "same-sentence": experiments.same_sentence_table,
    "exports": experiments.exports_table,
    "quantised": experiments.quantised_table,
    "reading": experiments.reading_table,
    "many-edits": experiments.many_edits_table,
    "smollm2-scope": experiments.smollm2_scope_table,
    "smollm2-knowledge": experiments.smollm2_knowledge_table,
    "smollm2-portability": experiments.smollm2_portability_table,
    "propagation": experiments.propagation_table,
    "smollm2-probabilities": experiments.smollm2_probabilities_table,
    "curves": experiments.curves_table,
    "training": training_table,
    "cost": cost_table,
    "speed": speed_table,
    "tasks": tasks_table,
}


def rendered(text: str) -> str:
    """Return the text with every marked table as the results have it."""
    return BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[4]}", text)


def main() -> None:
    """Write the tables into files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    for path in parser.parse_args().files:
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
