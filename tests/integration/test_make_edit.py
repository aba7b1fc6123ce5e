"""What ``make_edit`` takes, and what it says of the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from instructedit.editors.lookup import load_editor
from instructedit.editors.mend import Mend
from instructedit.errors import DataError, EditorError, ModelError
from instructedit.evaluation.edit_report import report_edit
from instructedit.merging.combining import make_edit
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.loading import load_task

REQUEST = EditRequest(prompt="Lena was born in", target="Oston", subject="Lena")


@pytest.fixture
def editor(gpt2: LanguageModel, new_editor: Callable[..., Mend]) -> Mend:
    return new_editor(gpt2)


def test_a_task_may_be_given_by_name_or_file(gpt2: LanguageModel, editor: Mend, tmp_path: Path) -> None:
    task = load_task("counterfact")
    file = tmp_path / "own.yaml"
    file.write_text(task.model_dump_json())
    expected = make_edit(editor, gpt2, [REQUEST], task)
    for named in ("counterfact", file, str(file), [task]):
        found = make_edit(editor, gpt2, [REQUEST], named)
        assert found.metadata == expected.metadata
        for name, low in expected.factors.items():
            assert torch.equal(found.factors[name].a, low.a)
    with pytest.raises(DataError, match="Did you mean 'counterfact'"):
        make_edit(editor, gpt2, [REQUEST], "counterfacts")


def test_without_a_task_a_request_has_the_one_that_it_names(gpt2: LanguageModel, editor: Mend) -> None:
    named = make_edit(editor, gpt2, [REQUEST.model_copy(update={"task": "counterfact"})], None)
    assert named.metadata == make_edit(editor, gpt2, [REQUEST], "counterfact").metadata


def test_a_model_that_is_not_wrapped_is_reported(gpt2: LanguageModel, editor: Mend) -> None:
    bare: Any = gpt2.model
    delta = make_edit(editor, gpt2, [REQUEST], None)
    for use in (
        lambda: make_edit(editor, bare, [REQUEST], None),
        lambda: load_editor("ft", bare),
        lambda: report_edit(bare, delta),
        lambda: delta.attached(bare).__enter__(),
        lambda: delta.merge_into(bare),
    ):
        with pytest.raises(ModelError, match=r"not GPT2LMHeadModel. Wrap it: LanguageModel\(model, tokenizer\)"):
            use()


@pytest.mark.parametrize(
    ("requests", "tasks", "words"),
    [
        ([], "counterfact", "requests is empty"),
        (REQUEST, "counterfact", r"not EditRequest; use \[request\]"),
        (REQUEST.model_dump(), "counterfact", "not dict"),
        ("Lena", "counterfact", "not str"),
        (None, "counterfact", "not NoneType"),
        ([REQUEST.model_dump()], "counterfact", r"request 1 of 1 is a dict, .*EditRequest\(prompt="),
        ([REQUEST, None], "counterfact", "request 2 of 2 is a NoneType"),
        ([REQUEST], ["counterfact"], "list of Task"),
        ([REQUEST], [load_task("counterfact")] * 2, "2 tasks for 1 requests"),
        ([REQUEST], [], "0 tasks for 1 requests"),
    ],
)
def test_what_is_not_a_request_or_task_is_reported(
    gpt2: LanguageModel, editor: Mend, requests: Any, tasks: Any, words: str
) -> None:
    with pytest.raises(EditorError, match=words):
        make_edit(editor, gpt2, requests, tasks)
