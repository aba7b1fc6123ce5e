"""Three ways to make one change of several edits.

distil   the normal equation, then gradient steps towards what each edit does alone; the best, and the slowest
merge    the normal equation
sum      added up; for a few edits
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from instructedit.deltas.delta import Delta
from instructedit.editors.base import Editor
from instructedit.editors.editing import make_edits
from instructedit.editors.gradient import GradientEditor
from instructedit.errors import DeltaError
from instructedit.merging.distillation import distil
from instructedit.merging.normal_equation import merge
from instructedit.merging.texts import texts_of
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.task import Task

Combine = Literal["distil", "merge", "sum"]
#: Changes whenever the same edits are combined in another way than by earlier versions of the package.
REVISION = 3
#: Called with the number of steps that are done, that of all steps, and what is being done, in words.
OnStep = Callable[[int, int, str], None]


def combine_edits(
    how: Combine,
    deltas: Sequence[Delta],
    requests: Sequence[EditRequest],
    answers: Sequence[str],
    language_model: LanguageModel,
    *,
    rank: int | None = None,
    most_steps: int | None = None,
    on_step: OnStep = lambda done, steps, what: None,
) -> Delta:
    """Return several edits as one; a single edit as it is.

    Args:
        how: see the module.
        deltas: the edits, each made by itself for the base model.
        requests: what each changes.
        answers: see :func:`answers_of`.
        language_model: the base model.
        rank: of every matrix's change, at most. Distillation trains what is left of the merged change after its
            compression, so that less is lost than by compressing the result.
        most_steps: of distillation; see :func:`distil`.
        on_step: see :data:`OnStep`.

    Raises:
        DeltaError: no deltas, or they do not belong to the model.
    """
    if not deltas:
        raise DeltaError("there are no edits to combine")
    if len(deltas) == 1 or how == "sum":
        return _compressed(sum(deltas[1:], start=deltas[0]), rank)
    matrices = len({name for delta in deltas for name in delta.factors})
    merging, distilling = (f"{what} {len(deltas)} edits" for what in ("merging", "distilling"))
    on_step(0, matrices, merging)
    texts = texts_of(deltas, requests, answers, language_model)
    done = iter(range(1, matrices + 1))
    merged = merge(deltas, texts, language_model, on_matrix=lambda name: on_step(next(done), matrices, merging))
    merged = _compressed(merged, rank)
    if how == "merge":
        return merged
    return distil(
        merged,
        deltas,
        texts,
        language_model,
        most_steps=most_steps,
        on_step=lambda step, steps, loss: on_step(step, steps, distilling),
        on_text=lambda written, texts: on_step(written, texts, "writing ordinary text, once for a model"),
    )


def _compressed(delta: Delta, rank: int | None) -> Delta:
    return delta if rank is None else delta.compress(rank)


def make_edit(
    editor: Editor,
    language_model: LanguageModel,
    requests: Sequence[EditRequest],
    tasks: Task | str | Path | Sequence[Task | None] | None,
    *,
    combine: Combine = "distil",
    rank: int | None = None,
    on_step: OnStep = lambda done, steps, what: None,
) -> Delta:
    """Return one delta of all requests: the edit of each is made by itself, then they are combined.

    Args:
        editor: that makes the edits.
        language_model: its base model.
        requests: what to change.
        tasks: see :func:`make_edits`.
        combine: how several edits become one, see the module. ``distil`` and ``merge`` take seconds for every edit.
        rank: see :func:`combine_edits`.
        on_step: see :data:`OnStep`.

    Raises:
        DataError: see :func:`make_edits`.
        EditorError: see :func:`make_edits`.
    """
    deltas = make_edits(editor, language_model, requests, tasks)
    answers = answers_of(editor, requests)
    return combine_edits(combine, deltas, requests, answers, language_model, rank=rank, on_step=on_step)


def answers_of(editor: Editor, requests: Sequence[EditRequest]) -> list[str]:
    """Return the text that the editor was trained to write after each request's prompt."""
    answer = editor.answer if isinstance(editor, GradientEditor) else str
    return [answer(request.target) for request in requests]
