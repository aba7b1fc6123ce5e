"""From editors to the separability table, the picture, and what separability says about held-out tasks."""

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
from instructedit.editors.lookup import find_editor
from instructedit.errors import DataError
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRecord
from instructedit.tasks.task import Task


@dataclass(frozen=True)
class Named:
    """An editor under a label; ``files`` is one for all tasks, or one a task (single-task editors side by side)."""

    label: str
    files: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, tasks: Sequence[str]) -> Named:
        """``label=file`` or ``label=task:file,task:file`` with at least two of ``tasks``.

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
        """The editor of a task's edits; None where there is none."""
        return self.files.get(task, self.files.get(""))


@dataclass(frozen=True)
class Edits:
    """The edits of one task."""

    task: Task
    records: Sequence[EditRecord]


def analyse(
    editors: Sequence[Named],
    language_model: LanguageModel,
    tasks: Sequence[Edits],
    seed: int,
    on_editor: Callable[[str], None] = lambda label: None,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, tuple[Array, list[str]]]]]:
    """A row for each editor, matrix and side, and the directions themselves by label and ``matrix, side``."""
    rows: list[dict[str, Any]] = []
    drawn: dict[str, dict[str, tuple[Array, list[str]]]] = {}
    for named in editors:
        loaded = {file: find_editor(file, language_model) for file in set(named.files.values())}
        found: dict[tuple[str, str], list[Array]] = {}
        labels: list[str] = []
        for edits in tasks:
            file = named.file(edits.task.name)
            if file is None:
                continue
            requests = [record.request for record in edits.records]
            told = [edits.task.instructions.unseen(request) for request in requests]
            for name, sides in directions(loaded[file], language_model, requests, told).items():
                for side in SIDES:
                    found.setdefault((name, side), []).append(sides[side])
            labels += [edits.task.name] * len(requests)
        # Of several editors side by side nothing can be told.
        whole = named.files.get("")
        shares = _explained(loaded[whole], language_model, tasks, random.Random(seed)) if whole else None
        drawn[named.label] = {}
        for (name, side), parts in found.items():
            vectors = np.concatenate(parts)
            drawn[named.label][f"{name}, {side}"] = vectors, labels
            row = {"editor": named.label, "matrix": name, "side": side, **separability(vectors, labels, seed).as_dict()}
            if shares is not None:
                row["explained"] = {key: round(value, 4) for key, value in shares[name][side].items()}
            rows.append(row)
        on_editor(named.label)
    return rows, drawn


def _explained(
    editor: Editor, language_model: LanguageModel, tasks: Sequence[Edits], rng: random.Random
) -> dict[str, dict[str, dict[str, float]]]:
    """How much of the variance the instruction explains: edits of all tasks, each under every task's instruction."""
    pool = [record.request for edits in tasks for record in edits.records]
    requests = rng.sample(pool, min(48, len(pool)))
    filled = [
        request.model_copy(update={"label": request.label or "positive", "subject": request.subject or "it"})
        for request in requests
    ]
    by_instruction = {
        edits.task.name: directions(
            editor, language_model, requests, [edits.task.instructions.unseen(request) for request in filled]
        )
        for edits in tasks
    }
    names = next(iter(by_instruction.values())).keys()
    return {
        name: {side: explained({task: each[name][side] for task, each in by_instruction.items()}) for side in SIDES}
        for name in names
    }


def summary_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each editor's means over its matrices, by side."""
    found = []
    for label in dict.fromkeys(row["editor"] for row in rows):
        for side in SIDES:
            mine = [row for row in rows if row["editor"] == label and row["side"] == side]
            entry: dict[str, Any] = {"editor": label, "side": side, "matrices": len(mine)}
            for measure in ("silhouette", "probe"):
                entry[measure] = {
                    end: round(float(np.mean([row[measure][end] for row in mine])), 4)
                    for end in ("mean", "low", "high")
                }
            entry["angle"] = round(float(np.mean([row["angle"] for row in mine])), 2)
            if all("explained" in row for row in mine):
                entry["explained"] = {
                    key: round(float(np.mean([row["explained"][key] for row in mine])), 4)
                    for key in ("instruction", "edit", "both")
                }
            found.append(entry)
    return found


def predicts(summary: Sequence[Mapping[str, Any]], reliability: Mapping[str, float]) -> dict[str, Any] | None:
    """Whether separable directions go with held-out Reliability: Spearman's rank correlation over editors, by side."""
    result: dict[str, Any] = {}
    for side in SIDES:
        mine = [row for row in summary if row["side"] == side and row["editor"] in reliability]
        if len(mine) < 3:
            return None
        found = spearmanr([row["silhouette"]["mean"] for row in mine], [reliability[row["editor"]] for row in mine])
        result[side] = {
            "editors": len(mine),
            "rho": round(float(found.statistic), 3),
            "p": round(float(found.pvalue), 3),
        }
    return result


def as_markdown(
    summary: Sequence[Mapping[str, Any]], predicted: Mapping[str, Any] | None, edits: Mapping[str, int]
) -> str:
    """The separability table."""
    counted = ", ".join(f"{count} edits of {task}" for task, count in edits.items())
    lines = [
        "# Editing directions",
        "",
        f"{counted}, each under its own task's unseen instruction; means over the "
        "edited matrices, with the means of their 95% intervals (bootstrap over edits). Silhouette: 1 tasks apart, 0 "
        f"mixed. Probe: share of edits whose task a linear probe tells; chance is {1 / len(edits):.2f}. Angle: between "
        "two tasks' subspaces. Explained: share of the directions' variance, the same edits under every task's "
        "instruction.",
        "",
        "| editor | side | silhouette | probe | angle, degrees | explained by instruction | by edit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary:
        told = row.get("explained")
        shown = ["{mean:.2f} ({low:.2f} to {high:.2f})".format(**row[measure]) for measure in ("silhouette", "probe")]
        shares = (f"{100 * told['instruction']:.1f}%", f"{100 * told['edit']:.1f}%") if told else ("–", "–")
        cells = (row["editor"], row["side"], *shown, f"{row['angle']:.0f}", *shares)
        lines.append(f"| {' | '.join(cells)} |")
    if predicted is not None:
        lines += ["", "Silhouette against held-out Reliability, Spearman's rank correlation over editors:", ""]
        lines += [f"- {side}: {p['rho']:.2f} (p {p['p']:.2f}, {p['editors']} editors)" for side, p in predicted.items()]
    return "\n".join(lines) + "\n"


def draw(drawn: Mapping[str, Mapping[str, tuple[Array, list[str]]]], side: str, path: Path, seed: int) -> None:
    """A column an editor, PCA above and t-SNE below; the directions of its highest edited matrix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        2, len(drawn), figsize=(3.2 * len(drawn), 6.2), squeeze=False, layout="constrained"
    )
    for column, (label, matrices) in enumerate(drawn.items()):
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
                mine = points[np.asarray(tasks) == task]
                panel.scatter(mine[:, 0], mine[:, 1], s=8, alpha=0.7, label=task)
            panel.set_title(f"{label}\n{kind}, {name.rsplit(', ', 1)[0].split('.', 2)[-1]}", fontsize=8)
            panel.set_xticks([])
            panel.set_yticks([])
    panels[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
