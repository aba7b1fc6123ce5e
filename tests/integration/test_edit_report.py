"""What an edit says about itself."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from instructedit import EditRequest, load_editor, load_language_model, load_task, make_edit, report_edit
from instructedit.data.locations import BUNDLED_EDITS
from instructedit.data.readers import read_records
from instructedit.editors.gradient import GradientEditor
from instructedit.editors.mend import Mend, MendConfig
from instructedit.evaluation.edit_report import EditReport, paraphrases_of, unrelated_prompts, unwritable
from instructedit.models.language_model import LanguageModel

pytestmark = pytest.mark.xdist_group("bundled")

HENDRIX = EditRequest(subject="Jimi Hendrix", prompt="Jimi Hendrix performs on the", target="violin")


@pytest.fixture(scope="module")
def base() -> LanguageModel:
    return load_language_model("bundled")


@pytest.fixture(scope="module")
def report(base: LanguageModel) -> Callable[..., EditReport]:
    def make(*requests: EditRequest, editor: str = "bundled") -> EditReport:
        method = load_editor(editor, base)
        return report_edit(base, make_edit(method, base, requests, load_task("counterfact"), combine="sum"), method)

    return make


def test_a_good_edit_reports_success_and_no_other_change(report: Callable[..., EditReport]) -> None:
    found = report(HENDRIX)
    (one,) = found.requests
    assert found.succeeded
    assert (one.answer.before, one.answer.after, one.answer.success) == ("guitar.", "violin.", True)
    assert one.target[0] < 0.01 < 0.9 < one.target[1]
    assert one.old[1] < 0.01 < 0.9 < one.old[0]
    assert [answer.success for answer in one.paraphrases] == [True, True, True]
    assert found.changed == ()
    assert found.warnings == one.warnings == ()
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize("editor", ["ft", "lora", "rome"])  # MEMIT reaches three edits of four here
def test_the_direct_methods_succeed_with_their_defaults(report: Callable[..., EditReport], editor: str) -> None:
    assert report(HENDRIX, editor=editor).succeeded


def test_a_failed_edit_is_reported(report: Callable[..., EditReport]) -> None:
    found = report(HENDRIX.model_copy(update={"target": "東京"}))
    assert not found.succeeded
    warnings = " ".join(found.requests[0].warnings)
    assert "has no token for '東京'" in warnings
    assert "the edit failed" in warnings
    assert "instead of '東京'" in warnings


def test_twenty_five_stacked_edits_say_how_many_are_lost(report: Callable[..., EditReport]) -> None:
    requests = [record.request for record in read_records(BUNDLED_EDITS / "counterfact.jsonl")[:25]]
    found = report(*requests)
    lost = sum(not each.answer.success for each in found.requests)
    assert not found.succeeded
    assert lost > 5
    assert f"{lost} of 25 edits failed" in " ".join(found.warnings)


def test_a_subject_that_is_not_in_the_prompt_is_reported(report: Callable[..., EditReport]) -> None:
    found = report(HENDRIX.model_copy(update={"subject": "Freddie Mercury"}))
    assert "'Freddie Mercury' does not occur in the prompt" in found.requests[0].warnings[0]


def test_a_request_without_a_subject_is_reported_where_the_editor_compares_subjects(base: LanguageModel) -> None:
    unnamed = HENDRIX.model_copy(update={"subject": None})
    for contrast in (False, True):
        method = Mend.create(MendConfig(blocks=1, rank=2, contrast=contrast), base).eval()
        found = report_edit(base, make_edit(method, base, [unnamed], None), method, new_tokens=2)
        assert any("does not name its subject" in text for text in found.requests[0].warnings) is contrast


def test_a_delta_of_an_unusual_size_is_reported(base: LanguageModel) -> None:
    editor = load_editor("bundled", base)
    assert isinstance(editor, GradientEditor)
    delta = make_edit(editor, base, [HENDRIX], load_task("counterfact"))
    assert not report_edit(base, delta, editor).warnings
    assert any("norm of" in text for text in report_edit(base, delta.scale(40.0), editor).warnings)


def test_what_a_tokenizer_cannot_write(base: LanguageModel) -> None:
    assert unwritable(base, "violin") == ""
    assert unwritable(base, "東京") == "東京"
    assert unwritable(base, "a violin 🎻") == "🎻"


def test_paraphrases_come_from_the_templates_that_fit() -> None:
    assert "Which musical instrument does Jimi Hendrix play?" in paraphrases_of(HENDRIX)
    assert paraphrases_of(HENDRIX.model_copy(update={"subject": None})) == ()
    assert paraphrases_of(EditRequest(prompt="Something else about Bob", target="x", subject="Bob")) == ()


def test_the_unrelated_prompts_are_distinct() -> None:
    assert len(set(unrelated_prompts())) == len(unrelated_prompts()) >= 40


def test_norm_of_a_delta_is_that_of_its_dense_change(base: LanguageModel) -> None:
    editor = load_editor("bundled", base)
    delta = make_edit(editor, base, [HENDRIX], load_task("counterfact"))
    dense = sum(float(low.dense().square().sum()) for low in delta.factors.values()) ** 0.5
    assert delta.norm() == pytest.approx(dense, rel=1e-4)
    batch = editor.edit(
        base,
        [HENDRIX],
        [load_task("counterfact").instructions.render(load_task("counterfact").instructions.templates[0], HENDRIX)],
    )
    assert batch.norms().tolist() == [pytest.approx(dense, rel=1e-4)]
