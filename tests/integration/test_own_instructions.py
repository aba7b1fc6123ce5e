"""One meaning of an instruction: a text of the user's own decides alone; an empty one is refused; none is said so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from instructedit.editors.editing import instruction_of
from instructedit.editors.mend import Mend
from instructedit.merging.combining import make_edit
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.loading import load_task, shipped_tasks

REQUEST = EditRequest(prompt="Lena was born in", target="Oston", subject="Lena", label="positive")
OWN = "Everyone who has the old town gets the new one."


@pytest.mark.parametrize("task", [None, *shipped_tasks()])
def test_an_own_text_is_read_behind_a_neutral_name_whatever_the_task(task: str | None) -> None:
    request = REQUEST.model_copy(update={"instruction": OWN})
    assert instruction_of(request, None if task is None else load_task(task)) == f"Task: Edit\nDescription: {OWN}"


def test_a_request_without_a_text_gets_its_tasks_or_none() -> None:
    task = load_task("rename")
    assert instruction_of(REQUEST, task) == task.instructions.render(task.instructions.templates[0])
    assert instruction_of(REQUEST, None) is None


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_refused_and_explains_how_to_give_none(text: str) -> None:
    with pytest.raises(ValidationError, match="--no-instruction"):
        EditRequest(prompt="a", target="b", instruction=text)


def test_a_delta_names_the_text_that_made_it(gpt2: LanguageModel, new_editor: Callable[..., Mend]) -> None:
    editor = new_editor(gpt2)
    own = REQUEST.model_copy(update={"instruction": OWN})
    assert make_edit(editor, gpt2, [own], load_task("counterfact")).metadata.instruction == (
        f"Task: Edit\nDescription: {OWN}"
    )
    assert make_edit(editor, gpt2, [REQUEST], None).metadata.instruction is None
