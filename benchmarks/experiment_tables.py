"""Tables of single experiments, rendered from their result files; `tables.py` lists them."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rendering import HEADS, Column, G, L, P, R, cell, find, grid, interval, markdown, read

from instructedit.evaluation.health import Health, HealthLimits

CORE, MEND = "InstructEdit (core)", "MEND (bundled)"


def matched_paper_table() -> str:
    """The paper's recipe and protocol at equal Locality."""
    lines = []
    for task, result in read("matched-paper")["tasks"].items():
        match = result["matched"]
        lines.append([f"`{task}`", interval(match[R]), interval(match[G]), f"{match['factor']:.2f}"])
    heads = ["InstructEdit minus MEND, points", "Reliability", "Generalization", "MEND's edits scaled by"]
    return markdown(heads, lines)


def methods_table() -> str:
    """Every method; `table3`."""
    rows = read("table3")["rows"]
    editors = list(dict.fromkeys(row["editor"] for row in rows))
    columns: list[Column] = [
        (f"`counterfact` {HEADS[metric][0]}", {"test": "counterfact"}, metric) for metric in (R, G, L)
    ]
    columns += [("`recent` R, free generation", {"test": "recent, generation"}, R)]
    columns += [(f"`zsre` {HEADS[metric][0]}", {"test": "zsre"}, metric) for metric in (R, G, L)]
    return grid(rows, "editor", [(editor, {"editor": editor}) for editor in editors], columns)


def differences_table() -> str:
    """InstructEdit minus MEND with the same mixture and steps; `table3`."""
    differences = read("table3")["differences"]
    lines = []
    for of, minus, steps in (
        ("InstructEdit", "MEND (multi-task)", "400, three seeds"),
        ("InstructEdit (core)", MEND, "1,360, one seed"),
    ):
        for task in ("counterfact", "recent", "convsent", "zsre"):
            pairs = [find(differences, test=task, of=of, minus=minus, metric=metric) for metric in (R, G, L)]
            lines.append([steps, f"`{task}`", *(interval(pair) for pair in pairs)])
    return markdown(["training steps", "InstructEdit minus MEND, points", *(HEADS[m] for m in (R, G, L))], lines)


def paper_table() -> str:
    """The paper's recipe, queried with and without the instruction prefix."""
    rows = read("paper")["rows"]
    columns = [
        (f"{label}, {queries} queries", suffix, editor)
        for queries, suffix in (("prefixed", ", paper"), ("plain", ""))
        for label, editor in (("MEND", "MEND (multi-task)"), ("InstructEdit", "InstructEdit"))
    ]
    lines = [
        [f"`{task}`", *(cell(find(rows, test=task + suffix, editor=editor), R) for _, suffix, editor in columns)]
        for task in ("counterfact", "recent", "convsent", "zsre")
    ]
    return markdown(["Reliability", *(head for head, _, _ in columns)], lines)


def transfer_table() -> str:
    """Editors of one task on other tasks: `table1`, with InstructEdit of `table3` beside them."""
    rows = read("table1")["rows"]
    columns: list[Column] = [
        (f"`{task}` {HEADS[metric][0]}", {"test": task}, metric)
        for task in ("counterfact", "recent", "convsent", "zsre")
        for metric in (R, L)
    ]
    editors = list(dict.fromkeys(row["editor"] for row in rows))
    return grid(rows, "editor", [(editor, {"editor": editor}) for editor in editors], columns)


def mixture_table() -> str:
    """More tasks, more records: `fig2`."""
    rows = read("fig2")["rows"]
    columns: list[Column] = [
        (f"`{task}` {HEADS[metric][0]}", {"test": task}, metric)
        for task, metric in (("counterfact", R), ("counterfact", L), ("recent", R), ("convsent", R), ("zsre", R))
    ]
    editors = list(dict.fromkeys(row["editor"] for row in rows))
    return grid(rows, "training tasks", [(editor, {"editor": editor}) for editor in editors], columns)


def descriptions_table() -> str:
    """Seen and unseen descriptions: `fig3`."""
    rows = read("fig3")["rows"]
    labels = (
        (", seen", "seen in training"),
        ("", "unseen"),
        (", text-swapped", "own name, description of the opposite scope"),
        (", name-swapped", "name of the opposite scope, own description"),
        (", text-alone", "own description, neutral name"),
        (", other-task", "another task's instruction"),
        (", unrelated", "a text about something else"),
        (", none", "no instruction"),
    )
    columns: list[Column] = [
        (f"{label} {HEADS[metric][0]}", {"editor": editor}, metric)
        for label, editor in (("paper's recipe", "InstructEdit (paper's recipe)"), ("ours", "InstructEdit"))
        for metric in (R, G, L)
    ]
    return grid(rows, "instruction", [(label, {"test": f"counterfact{suffix}"}) for suffix, label in labels], columns)


def larger_table() -> str:
    """The main comparison on the base model of 17.4M parameters."""
    rows = read("larger")["rows"]
    tests = [(task, metric) for task in ("counterfact", "recent", "convsent", "zsre") for metric in (R, G, L)]
    tests.append(("zsre, generation", L))
    tests += [
        (f"{task}{suffix}", "following") for task in ("this-fact", "rename") for suffix in ("", ", swapped-scope")
    ]
    editors = ("InstructEdit", "MEND (multi-task)", "FT-L (numbers chosen on the bundled base)")
    lines = [
        [f"`{test}`", HEADS[metric], *(cell(find(rows, test=test, editor=editor), metric) for editor in editors)]
        for test, metric in tests
    ]
    return markdown(["test", "metric", "InstructEdit", "MEND, multi-task", "FT-L, tuned on the bundled base"], lines)


def directions_table() -> str:
    """Separability of the tasks in the editors' gradient directions."""
    lines = []
    for row in read("directions")["summary"]:
        explained = row.get("explained") or {}
        share = f"{100 * explained['instruction']:.1f}" if explained else "–"
        side = {"u": "ũ", "delta": "δ̃"}[row["side"]]
        cells = [interval(row["silhouette"], 1, 2), interval(row["probe"]), share]
        lines.append([row["editor"], side, *cells])
    heads = ["editor", "factor", "silhouette", "linear probe, %", "variance explained by the instruction, %"]
    return markdown(heads, lines)


def separability_table() -> str:
    """Does separability predict Reliability on the held-out task?"""
    predicts = read("separability")["predicts"]
    lines = [
        [{"u": "ũ", "delta": "δ̃"}[side], str(value["editors"]), f"{value['rho']:.2f}", f"{value['p']:.3f}"]
        for side, value in predicts.items()
    ]
    return markdown(["factor", "editors", "Spearman's rho with `zsre` Reliability", "p"], lines)


def sensitivity_table() -> str:
    """The core editor under ten kinds of instruction; one row per kind, one column per task."""
    rows = read("sensitivity")["rows"]
    kinds = (
        ("", "own name, held-out description"),
        (", seen", "own name, training description"),
        (", text-alone", "neutral name, own description"),
        (", test templates", "neutral name, hand-written test templates"),
        (", text-swapped", "own name, opposite description"),
        (", name-swapped", "opposite name, own description"),
        (", swapped-scope", "opposite name and description"),
        (", other-task", "another task's name and description"),
        (", unrelated", "a text about something else"),
        (", none", "none"),
    )
    columns = (("counterfact", L), ("recent", L), ("convsent", R), ("zsre", R), ("rename", "following"))
    lines = [
        [label, *(cell(find(rows, test=task + suffix, editor=CORE), metric) for task, metric in columns)]
        for suffix, label in kinds
        if find(rows, test="counterfact" + suffix, editor=CORE) is not None
    ]
    lines.append([MEND, *(cell(find(rows, test=task, editor=MEND), metric) for task, metric in columns)])
    heads = ["instruction", *(f"`{task}` {HEADS[metric]}" for task, metric in columns)]
    return markdown(heads, lines)


def optimised_table() -> str:
    """What optimising the instructions gained on edits that did not choose them."""
    lines = [
        [name, f"`{run['editor']}`", str(run["edits"]), str(run["tried"]), interval(run["gain"], digits=2)]
        for name, run in read("instructions").items()
    ]
    return markdown(["run", "editor", "validation edits", "texts tried", "gain, points"], lines)


def optimised_test_table() -> str:
    """The one run with a gain, on the test file."""
    runs = [run for run in read("instructions").values() if "test, 120 edits, seed 0" in run]
    lines = []
    for key, label in (("start", "shipped instructions"), ("new", "optimised instructions")):
        scores = runs[0]["test, 120 edits, seed 0"][key]
        lines.append([label, *("{} ({}–{})".format(*scores[metric]) for metric in (R, G, L))])
    return markdown(["`zsre`, held out from the editors", *(HEADS[metric] for metric in (R, G, L))], lines)


def recent_table() -> str:
    """The bundled editor on all test edits of `recent`."""
    result = read("recent")
    names = (R, G, L, "locality/same_subject", "locality/forgetfulness", P)
    lines = [[name, cell(result, name), str(result["metrics"][name]["count"])] for name in names]
    return markdown(["metric", "mean", "edits"], lines)


def misses_table() -> str:
    """What the bundled editor answers where a scope asks for a change."""
    kinds = ("wanted", "new answer", "as before", "other")
    lines = [
        [f"`{row['task']}`", "unseen text" if row["wording"] else "task's own", probe]
        + [str(counts.get(kind, 0)) for kind in kinds]
        for row in read("misses")["rows"]
        for probe, counts in row["said"].items()
    ]
    heads = ["task", "instruction", "probes", "as the scope asks", "the edit's target", "unchanged", "something else"]
    return markdown(heads, lines)


def base_table() -> str:
    """Recall of the larger base model, pass by pass."""
    lines = [
        [str(row["epoch"]), *(f"{100 * row[kind]:.1f}" for kind in ("statement", "question", "own_words"))]
        for row in read("base-17m")["history"]
    ]
    return markdown(["pass", "statements, %", "questions, %", "the data sets' own prompts, %"], lines)


def curves_table() -> str:
    """Loss of unseen edits after training on a few, ours and EasyEdit's MEND."""
    result = read("curves-gpt2-cpu")
    lines = []
    for key, name in (("ours", "ours"), ("easyedit", "EasyEdit's MEND")):
        for run in result[key]:
            sign = " (as published: the update is added)" if run.get("sign") == 1 else ""
            lines.append([f"{name}{sign}", f"{run['learning_rate']:g}", *(f"{run['loss'][at]:.3f}" for at in (0, -1))])
    return markdown(["", "learning rate", "loss at the start", f"loss after {result['edits']} edits"], lines)


#: Tests of `smollm2` with the model's answers: name in the results, label.
SMOLLM2_TESTS = (
    ("counterfact", "`counterfact`, plain"),
    ("counterfact, chat", "`counterfact`, chat"),
    ("counterfact, answer", "`counterfact`, generated answer"),
    ("recent", "`recent`, plain"),
    ("zsre", "`zsre`, held out, plain"),
    ("zsre, answer", "`zsre`, held out, generated answer"),
    ("convsent", "`convsent`, plain"),
    ("counterfact, unrelated", "`counterfact`, a text about something else"),
    ("counterfact, none", "`counterfact`, no instruction"),
)


#: Editors of `smollm2` that the tables leave out; the text has their differences, the JSON file their rows.
SMOLLM2_STAGES = ("InstructEdit, second stage", "InstructEdit, third stage")


def _smollm2_rows() -> list[dict[str, Any]]:
    return [row for row in read("smollm2")["rows"] if row["editor"] not in SMOLLM2_STAGES]


def _smollm2_editors() -> list[str]:
    return list(dict.fromkeys(row["editor"] for row in _smollm2_rows()))


def smollm2_table() -> str:
    """Editors of a pretrained model: Reliability, Generalization and Locality."""
    rows, editors = read("smollm2")["rows"], _smollm2_editors()
    lines = [
        [label, HEADS[metric], *(cell(find(rows, test=test, editor=editor), metric) for editor in editors)]
        for test, label in SMOLLM2_TESTS
        for metric in (R, G, L)
    ]
    return markdown(["test", "metric", *editors], lines)


#: Columns of the README's table: name in the results, label.
SMOLLM2_SUMMARY = (
    ("InstructEdit, `smollm2`", "InstructEdit (`smollm2`)"),
    ("MEND", "MEND"),
    ("FT-L", "FT-L, tuned"),
    ("LoRA", "LoRA, tuned"),
    ("Fact in the prompt", "the new fact in the prompt"),
)


def smollm2_summary_table() -> str:
    """The README's table: Reliability, Generalization and Locality of each test in one cell."""
    rows = read("smollm2")["rows"]

    def mean(row: dict[str, Any] | None, metric: str) -> str:
        return "–" if row is None else f"{float(cell(row, metric).partition(' ')[0]):.0f}"

    def means(test: str, editor: str) -> str:
        row = find(rows, test=test, editor=editor)
        return "–" if row is None else "/".join(mean(row, metric) for metric in (R, G, L))

    lines = [[label, *(means(test, editor) for editor, _ in SMOLLM2_SUMMARY)] for test, label in SMOLLM2_TESTS[:7]]

    def follows(editor: str) -> str:
        scopes = (find(rows, test=f"{task}, test templates", editor=editor) for task in ("this-fact", "rename"))
        return "/".join(mean(row, "following") for row in scopes)

    lines.append(["neighbours kept / changed, as the instruction says", *(follows(e) for e, _ in SMOLLM2_SUMMARY)])
    return markdown(["", *(label for _, label in SMOLLM2_SUMMARY)], lines)


def smollm2_scope_table() -> str:
    """Scope on a pretrained model: the share of deciding probes that do what the task asks."""
    rows = _smollm2_rows()
    tested = {row["editor"] for row in rows if row["test"].startswith(("this-fact", "rename"))}
    editors = [editor for editor in _smollm2_editors() if editor in tested]
    controls = (
        ("", "own name and description"),
        (", name-swapped", "name of the opposite scope"),
        (", test templates", "unseen texts, neutral name"),
        (", swapped-scope, test templates", "unseen texts of the opposite scope, neutral name"),
        (", negated templates", "unseen texts that say what is not to happen"),
        (", short templates", "unseen texts of a few words"),
        (", foreign templates", "unseen texts in other languages"),
        (", misspelt templates", "unseen texts with spelling mistakes"),
    )
    lines = [
        [f"`{task}`: {outcome}", label]
        + [cell(find(rows, test=task + suffix, editor=editor), "following") for editor in editors]
        for task, outcome in (("this-fact", "neighbours kept"), ("rename", "neighbours changed"))
        for suffix, label in controls
    ]
    return markdown(["task", "instruction", *editors], lines)


def smollm2_portability_table() -> str:
    """Questions that the new fact implies, on a pretrained model, by kind."""
    rows, editors = read("smollm2")["rows"], _smollm2_editors()
    kinds = (
        ("recent", "", "all"),
        ("recent", "/subject_alias", "another name of the subject"),
        ("recent", "/logical", "what follows logically, such as the inverse"),
        ("recent", "/reasoning", "a further fact about the new answer"),
        ("zsre", "", "a further fact about the new answer"),
    )
    editors = [editor for editor in editors if find(rows, test="recent", editor=editor)]
    lines = [
        [f"`{test}`", label, *(cell(find(rows, test=test, editor=editor), P + kind) for editor in editors)]
        for test, kind, label in kinds
    ]
    return markdown(["task", "question about", *editors], lines)


def propagation_table() -> str:
    """Questions that follow from an edit, by what the editor's training had seen."""
    result = read("propagation-smollm2")
    lines = [
        [group, str(count), *(interval(row["metrics"].get(group)) for row in result["rows"])]
        for group, count in result["questions"].items()
    ]
    return markdown(["", "questions", *(row["editor"] for row in result["rows"])], lines)


def smollm2_probabilities_table() -> str:
    """`counterfact` on a pretrained model in the measures of ROME's authors."""
    rows = [row for row in _smollm2_rows() if row["test"] == "counterfact"]
    shares = ("efficacy_score", "paraphrase_score", "neighbourhood_score")
    lines = []
    for row in rows:
        means = [row["metrics"][name]["mean"] for name in shares]
        harmonic = f"{100 * statistics.harmonic_mean(means):.1f}"
        lines.append([row["editor"], harmonic, *(cell(row, name) for name in shares)])
    return markdown(["editor", "S", "ES", "PS", "NS"], lines)


def smollm2_knowledge_table() -> str:
    """`counterfact` on a pretrained model by what it knew before the edit."""
    rows = [row for row in _smollm2_rows() if row["test"] == "counterfact" and "by_knowledge" in row]
    parts = list(dict.fromkeys(part for row in rows for part in row["by_knowledge"]))
    lines = [
        [part, HEADS[metric], *(interval(row["by_knowledge"].get(part, {}).get(metric)) for row in rows)]
        for part in parts
        for metric in (R, G, L)
    ]
    return markdown(["facts before the edit", "metric", *(row["editor"] for row in rows)], lines)


def reading_table() -> str:
    """Share of unseen instructions that are read as their scope."""
    names = {
        "test": "test templates",
        "negated": "what is not to happen",
        "short": "a few words",
        "foreign": "other languages",
        "misspelt": "spelling mistakes",
        "contrast, negated": "contrast pairs, what is not to happen",
        "contrast, short": "contrast pairs, a few words",
        "contrast, foreign": "contrast pairs, 17 other languages",
    }
    lines = [
        [names[row["kind"]], str(row["only"]["count"]), interval(row["only"]), interval(row["everywhere"])]
        for row in read("reading-smollm2")["rows"]
    ]
    return markdown(["texts", "of each scope", "`only` is read as such", "`everywhere` is read as such"], lines)


def quantised_table() -> str:
    """An editor of one model on quantised copies of it."""
    lines = [
        [row["format"], f"{100 * row['distance']:.1f}%", *(interval(row["metrics"][metric]) for metric in (R, G, L))]
        for row in read("quantised-smollm2")["rows"]
    ]
    return markdown(["weights", "distance", *(HEADS[metric] for metric in (R, G, L))], lines)


#: Methods of `many-edits` by their editor, as the tables and the picture name them.
TOGETHER = {
    "bundled": "InstructEdit",
    "smollm2": "InstructEdit",
    "bundled-mend": "MEND",
    "smollm2-mend": "MEND",
    "memit": "MEMIT",
    "lora": "LoRA on all",
    "ft": "FT-L on all",
    "grace": "GRACE",
    "in-context": "fact in the prompt, retrieved",
}


def method_of(row: dict[str, Any]) -> str:
    """Return the name of a row's method, with how it combines single edits; a file is named by its stem."""
    editor = Path(row["editor"]).stem if "/" in row["editor"] else row["editor"]
    how = "" if row["how"] == "joint" else f", `{row['how']}`"
    rank = f", rank {row['rank']}" if row.get("rank") else ""
    steps = f", {row['most_steps']} steps" if row.get("most_steps") else ""
    return TOGETHER[editor] + how + rank + steps


def many_edits_table() -> str:
    """Edits at once, by method and number, on both models."""
    lines = []
    for model, file in (("bundled", "many-edits"), ("SmolLM2", "many-edits-smollm2")):
        for row in sorted(read(file)["rows"], key=lambda row: (row["edits"], row["order"])):
            increase, health = row.get("perplexity_increase"), row.get("health")
            perplexity = "–" if increase is None else f"{100 * increase:+.1f}%" if increase < 100 else "destroyed"
            unrelated = "–" if health is None else f"{100 * (1 - health['changed']):.0f}"
            exceeded = health is not None and Health.from_dict(health).exceeded(HealthLimits())
            gate = "–" if health is None else "refuses" if exceeded else "passes"
            scores = (interval(row["metrics"][metric]) for metric in (R, G, L))
            size, memory = row["bytes"] / 1e6, row["memory_mb"]
            lines.append(
                [model, str(row["edits"]), method_of(row), row["order"], *scores, unrelated, perplexity, gate,
                 f"{row['seconds']:.0f}", f"{memory}", f"{size:.2f}" if size < 1 else f"{size:.0f}"]
            )  # fmt: skip
    heads = ["model", "edits", "method", "order", *(HEADS[metric] for metric in (R, G, L)), "unrelated kept"]
    return markdown([*heads, "perplexity", "health gate", "s", "peak MB", "stored MB"], lines)


def same_sentence_table() -> str:
    """The edit's own sentence about other subjects, by editor."""
    columns = ("holds", "kept", "takes the new answer")
    lines = [[row["editor"], *(interval(row[column]) for column in columns)] for row in read("same-sentence")["rows"]]
    return markdown(["editor", "the edit holds", "other subjects keep their answer", "take the new one"], lines)


def exports_table() -> str:
    """Exported edits in other programs."""
    difference = "largest difference of logits"
    result, holds = read("exports"), "edits that hold"
    same = ("same answers", "same answers on these weights")
    lines = []
    for row in result["rows"]:
        counts = [f"{row[measure]:.0f} of {row['prompts']}" if measure in row else "–" for measure in same]
        held = f"{row[holds]:.0f} of {result['edits']}" if holds in row else "–"
        lines.append([row["format"], f"{row[difference]:.0e}" if difference in row else "–", *counts, held])
    return markdown(["export", difference, *same, holds], lines)


#: Matrices of `keys-smollm2` that the table shows: block, name in the block.
KEY_MATRICES = tuple(
    (block, name) for block in (10, 28) for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
)


def keys_table() -> str:
    """Responses of paraphrases, neighbours and same sentences to an edit's key, by matrix and key."""
    rows = read("keys-smollm2")["rows"]
    lines = []
    for block, module in KEY_MATRICES:
        for key in ("last token", "last token, contrast", "subject"):
            row = find(rows, matrix=f"model.layers.{block}.{module}", key=key)
            assert row is not None
            response, more = row["response"], row["paraphrase_more"]
            cells = [f"{response[kind]:.2f}" + (f" ({more[kind]:.0%})" if kind in more else "") for kind in response]
            lines.append([str(block), f"`{module}`", key, *cells])
    return markdown(["block", "matrix", "key", "paraphrase", "neighbour", "same sentence, other subject"], lines)
