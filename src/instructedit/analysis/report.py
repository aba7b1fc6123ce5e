"""The separability report: a table and a figure of several editors, and its correlation with held-out Reliability."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from instructedit.analysis.directions import SIDES, Array, directions, explained, separability
from instructedit.editors.base import Editor
from instructedit.editors.lookup import load_editor
from instructedit.errors import DataError
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRecord
from instructedit.storage.pictures import save_figure
from instructedit.tasks.task import Task

#: Unit vectors (edits, width) of an editor and the task of each, by ``matrix, side``.
Directions = dict[str, tuple[Array, list[str]]]


@dataclass(frozen=True)
class LabelledEditor:
    """An editor, or single-task editors side by side, under one label.

    Attributes:
        label: the name in the table.
        files: editor files by task; the key of an editor for all tasks is the empty string.
    """

    label: str
    files: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, tasks: Sequence[str]) -> LabelledEditor:
        """Parse ``label=file`` or ``label=task:file,task:file`` with at least two of ``tasks``.

        Raises:
            DataError: it is neither.
        """
        label, equals, rest = text.partition("=")
        if not equals or not label or not rest:
            raise DataError(f"expected label=file or label=task:file,task:file, not {text!r}")
        parts = [part.partition(":") for part in rest.split(",")]
        if all(colon for _, colon, _ in parts):
            named = {task for task, _, _ in parts}
            if named - set(tasks) or len(named) < 2:
                raise DataError(f"{label}: expected editors of at least two of {', '.join(tasks)}, not {text!r}")
            return cls(label, {task: file for task, _, file in parts})
        return cls(label, {"": rest})

    def file(self, task: str) -> str | None:
        """Return the editor of a task's edits, or None where there is none."""
        return self.files.get(task, self.files.get(""))


@dataclass(frozen=True)
class TaskEdits:
    """The edits of one task.

    Attributes:
        task: the task.
        records: its edits.
    """

    task: Task
    records: Sequence[EditRecord]


def analyse(
    editors: Sequence[LabelledEditor],
    language_model: LanguageModel,
    tasks: Sequence[TaskEdits],
    seed: int,
    on_editor: Callable[[str], None] = lambda label: None,
) -> tuple[list[dict[str, Any]], dict[str, Directions]]:
    """Measure the separability of every editor's directions.

    Args:
        editors: the editors.
        language_model: their base model.
        tasks: the edits.
        seed: seed of projections, intervals and of the edits that the instruction's share is measured on.
        on_editor: called with the label of every finished editor.

    Returns:
        A row for each editor, matrix and side, and the directions with their tasks, by label and ``matrix, side``.
    """
    rows: list[dict[str, Any]] = []
    all_directions: dict[str, Directions] = {}
    for editor in editors:
        loaded = {file: load_editor(file, language_model) for file in set(editor.files.values())}
        parts_by_side: dict[tuple[str, str], list[Array]] = {}
        labels: list[str] = []
        for edits in tasks:
            file = editor.file(edits.task.name)
            if file is None:
                continue
            requests = [record.request for record in edits.records]
            instructions = [edits.task.instructions.render_held_out(request) for request in requests]
            for name, sides in directions(loaded[file], language_model, requests, instructions).items():
                for side in SIDES:
                    parts_by_side.setdefault((name, side), []).append(sides[side])
            labels += [edits.task.name] * len(requests)
        # The instruction's share needs one editor that makes the edits of all tasks.
        file_for_all = editor.files.get("")
        shares = _explained(loaded[file_for_all], language_model, tasks, random.Random(seed)) if file_for_all else None
        all_directions[editor.label] = {}
        for (name, side), parts in parts_by_side.items():
            vectors = np.concatenate(parts)
            all_directions[editor.label][f"{name}, {side}"] = vectors, labels
            row = {
                "editor": editor.label,
                "matrix": name,
                "side": side,
                **separability(vectors, labels, seed).as_dict(),
            }
            if shares is not None:
                row["explained"] = {key: round(value, 4) for key, value in shares[name][side].items()}
            rows.append(row)
        on_editor(editor.label)
    return rows, all_directions


def _explained(
    editor: Editor, language_model: LanguageModel, tasks: Sequence[TaskEdits], rng: random.Random
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the shares of variance by matrix and side, of edits of all tasks under every task's instruction."""
    pool = [record.request for edits in tasks for record in edits.records]
    requests = rng.sample(pool, min(48, len(pool)))
    filled = [
        request.model_copy(update={"label": request.label or "positive", "subject": request.subject or "it"})
        for request in requests
    ]
    by_instruction = {
        edits.task.name: directions(
            editor, language_model, requests, [edits.task.instructions.render_held_out(request) for request in filled]
        )
        for edits in tasks
    }
    names = next(iter(by_instruction.values())).keys()
    return {
        name: {side: explained({task: each[name][side] for task, each in by_instruction.items()}) for side in SIDES}
        for name in names
    }


def summary_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each editor's means over its matrices, by side."""
    summary = []
    for label in dict.fromkeys(row["editor"] for row in rows):
        for side in SIDES:
            of_side = [row for row in rows if row["editor"] == label and row["side"] == side]
            entry: dict[str, Any] = {"editor": label, "side": side, "matrices": len(of_side)}
            for measure in ("silhouette", "probe"):
                entry[measure] = {
                    end: round(float(np.mean([row[measure][end] for row in of_side])), 4)
                    for end in ("mean", "low", "high")
                }
            entry["angle"] = round(float(np.mean([row["angle"] for row in of_side])), 2)
            if all("explained" in row for row in of_side):
                entry["explained"] = {
                    key: round(float(np.mean([row["explained"][key] for row in of_side])), 4)
                    for key in ("instruction", "edit", "both")
                }
            summary.append(entry)
    return summary


def reliability_correlation(
    summary: Sequence[Mapping[str, Any]], reliability: Mapping[str, float]
) -> dict[str, Any] | None:
    """Return Spearman's rank correlation of silhouette and held-out Reliability over editors, by side.

    None where fewer than three editors have a Reliability.
    """
    result: dict[str, Any] = {}
    for side in SIDES:
        with_reliability = [row for row in summary if row["side"] == side and row["editor"] in reliability]
        if len(with_reliability) < 3:
            return None
        correlation = spearmanr(
            [row["silhouette"]["mean"] for row in with_reliability],
            [reliability[row["editor"]] for row in with_reliability],
        )
        result[side] = {
            "editors": len(with_reliability),
            "rho": round(float(correlation.statistic), 3),
            "p": round(float(correlation.pvalue), 3),
        }
    return result


def as_markdown(
    summary: Sequence[Mapping[str, Any]], predicted: Mapping[str, Any] | None, edits: Mapping[str, int]
) -> str:
    """Return the separability table as Markdown."""
    counted = ", ".join(f"{count} edits of {task}" for task, count in edits.items())
    lines = [
        "# Gradient directions",
        "",
        f"{counted}, with a held-out instruction template of their own task. Values and 95% intervals (bootstrap over "
        "edits) are means over the edited matrices. Silhouette: 1 for separable tasks, 0 for overlapping ones. Probe: "
        f"accuracy of a linear probe for the task; chance is {1 / len(edits):.2f}. Angle: between the subspaces of two "
        "tasks. Explained: share of variance explained by the instruction and by the edit, if every edit is made under "
        "every task's instruction.",
        "",
        "| editor | factor | silhouette | probe | angle, degrees | explained by instruction | by edit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary:
        explained_shares = row.get("explained")
        shown = ["{mean:.2f} ({low:.2f} to {high:.2f})".format(**row[measure]) for measure in ("silhouette", "probe")]
        shares = (
            tuple(f"{100 * explained_shares[key]:.1f}%" for key in ("instruction", "edit"))
            if explained_shares
            else ("–", "–")
        )
        cells = (row["editor"], row["side"], *shown, f"{row['angle']:.0f}", *shares)
        lines.append(f"| {' | '.join(cells)} |")
    if predicted is not None:
        lines += ["", "Spearman's rank correlation of silhouette and held-out Reliability over editors:", ""]
        lines += [f"- {side}: {p['rho']:.2f} (p {p['p']:.2f}, {p['editors']} editors)" for side, p in predicted.items()]
    return "\n".join(lines) + "\n"


def draw(all_directions: Mapping[str, Directions], side: str, path: Path, seed: int) -> None:
    """Draw a figure: a column per editor, PCA above and t-SNE below, of the directions of its highest edited matrix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        2, len(all_directions), figsize=(3.2 * len(all_directions), 6.2), squeeze=False, layout="constrained"
    )
    for column, (label, matrices) in enumerate(all_directions.items()):
        name = [name for name in matrices if name.endswith(f", {side}")][-1]
        vectors, tasks = matrices[name]
        flat = {
            "PCA": PCA(2, random_state=seed).fit_transform(vectors),
            "t-SNE": TSNE(
                2, perplexity=min(30, (len(vectors) - 1) / 3), init="pca", random_state=seed, metric="cosine"
            ).fit_transform(vectors),
        }
        for row, (kind, points) in enumerate(flat.items()):
            panel = panels[row][column]
            for task in dict.fromkeys(tasks):
                of_task = points[np.asarray(tasks) == task]
                panel.scatter(of_task[:, 0], of_task[:, 1], s=8, alpha=0.7, label=task)
            panel.set_title(f"{label}\n{kind}, {name.rsplit(', ', 1)[0].split('.', 2)[-1]}", fontsize=8)
            panel.set_xticks([])
            panel.set_yticks([])
    panels[0][0].legend(fontsize=7)
    save_figure(figure, path)
    pyplot.close(figure)
