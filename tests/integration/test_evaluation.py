"""The batched runner on a tiny GPT-2: protocols, controls, and what must not matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from instructedit.editors.base import DirectEditor, Edits
from instructedit.editors.ft import ConstrainedFineTuning, FtConfig
from instructedit.editors.incontext import InContext, InContextConfig
from instructedit.editors.mend import Mend, MendConfig
from instructedit.errors import DataError
from instructedit.evaluation.generation import generate
from instructedit.evaluation.metrics import MetricGroup, registered_metrics
from instructedit.evaluation.protocols import Control, InstructionChooser, Protocol
from instructedit.evaluation.runner import Evaluation, evaluate
from instructedit.evaluation.scoring import Query, Scored, score
from instructedit.instructions.templates import held_out_templates, unrelated_texts
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind
from instructedit.tasks.loading import load_task

TASK_OF = {"counterfact": "records", "rename": "records", "this-fact": "records", "convsent": "opinions"}


@pytest.fixture
def editor(gpt2: LanguageModel, new_editor: Callable[..., Mend]) -> Mend:
    return new_editor(gpt2)


def by_record(found: Evaluation) -> dict[str, dict[str, float]]:
    """Each edit's values without its running number."""
    return {name.rpartition("#")[0]: values for name, values in found.records.items()}


def assert_same_values(one: Evaluation, other: Evaluation) -> None:
    assert by_record(one).keys() == by_record(other).keys()
    for name, values in by_record(one).items():
        assert values == pytest.approx(by_record(other)[name], abs=1e-4), name
    for name, figure in one.metrics.items():
        assert figure.mean == pytest.approx(other.metrics[name].mean, abs=1e-4)
        assert figure.count == other.metrics[name].count


@pytest.mark.parametrize("protocol", Protocol)
def test_batch_size_does_not_matter(
    gpt2: LanguageModel, editor: Mend, records: list[EditRecord], protocol: Protocol
) -> None:
    task = load_task("counterfact")
    one, other = (
        evaluate(editor, gpt2, task, records[:7], protocol=protocol, batch=batch, metrics=registered_metrics())
        for batch in (1, 5)
    )
    assert_same_values(one, other)


@pytest.mark.parametrize("name", ["counterfact", "this-fact", "convsent"])
def test_order_does_not_matter(gpt2: LanguageModel, editor: Mend, name: str, request: pytest.FixtureRequest) -> None:
    found: list[EditRecord] = request.getfixturevalue(TASK_OF[name])
    task = load_task(name)
    forwards, backwards = (evaluate(editor, gpt2, task, part, batch=4) for part in (found, found[::-1]))
    assert_same_values(forwards, backwards)


def test_repeated_evaluation_is_the_same(gpt2: LanguageModel, editor: Mend, records: list[EditRecord]) -> None:
    one, other = (
        evaluate(editor, gpt2, load_task("rename"), records, instruction=Control.SEEN, seed=3) for _ in range(2)
    )
    assert one.records == other.records
    assert one.metrics == other.metrics


def test_evaluation_leaves_the_model_as_it_was(gpt2: LanguageModel, editor: Mend, records: list[EditRecord]) -> None:
    batch = pad([gpt2.text.encode_pair("Lena was born in", "Oston")], gpt2.text.pad_id)
    before = gpt2.split(0).full(batch)
    evaluate(editor, gpt2, load_task("counterfact"), records[:3], metrics=registered_metrics())
    assert torch.equal(gpt2.split(0).full(batch), before)


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("name", TASK_OF)
def test_protocols_measure_what_a_task_asks_for(
    gpt2: LanguageModel, editor: Mend, name: str, protocol: Protocol, request: pytest.FixtureRequest
) -> None:
    found: list[EditRecord] = request.getfixturevalue(TASK_OF[name])
    result = evaluate(editor, gpt2, load_task(name), found[:4], protocol=protocol)
    expected = {"reliability", "reliability_before", "generalization", "locality", "locality_prefixed"}
    if name == "convsent":
        expected |= {"locality/other_topic"}
    else:
        expected |= {"kept", "changed", "portability", "portability/reasoning", "locality/unrelated"}
        expected |= {"following", "known"}
    if name in ("counterfact", "this-fact"):
        expected |= {"locality/neighbour"}
    if name == "this-fact":
        expected |= {"locality/reasoning"}
    if not protocol.generates:
        expected |= (
            {"sentiment_shift"}
            if name == "convsent"
            else {"certainty"}
            | {
                f"{what}_{form}"
                for what in ("efficacy", "paraphrase", "neighbourhood")
                for form in ("score", "magnitude")
            }
        )
    assert result.metrics.keys() == expected
    assert result.edits == 4
    for metric, figure in result.metrics.items():
        assert (-1 if metric.endswith("magnitude") else 0) <= figure.low <= figure.mean <= figure.high <= 1
        assert figure.count == 4
    values = result.as_dict(with_records=True)
    assert (values["task"], values["protocol"], values["instruction"]) == (name, str(protocol), "unseen")
    assert len(values["records"]) == 4


def test_core_metrics_are_the_same_figures_and_no_others(
    gpt2: LanguageModel, editor: Mend, records: list[EditRecord]
) -> None:
    task = load_task("this-fact")
    whole, core = (
        evaluate(editor, gpt2, task, records[:4], metrics=metrics).metrics
        for metrics in (None, registered_metrics(MetricGroup.CORE))
    )
    assert core.keys() == {
        "reliability",
        "reliability_before",
        "generalization",
        "locality",
        "locality/neighbour",
        "locality/reasoning",
        "locality/unrelated",
        "following",
        "kept",
        "changed",
    }
    assert core == {name: whole[name] for name in core}


@pytest.mark.parametrize("control", Control)
def test_controls_run(gpt2: LanguageModel, editor: Mend, records: list[EditRecord], control: Control) -> None:
    result = evaluate(editor, gpt2, load_task("this-fact"), records[:4], instruction=control)
    assert result.instruction == str(control)
    assert ("locality_prefixed" in result.metrics) == (control is not Control.NONE)


@pytest.mark.parametrize("protocol", Protocol)
def test_edit_without_effect_leaves_everything(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], records: list[EditRecord], protocol: Protocol
) -> None:
    idle = new_editor(gpt2, name="mend", step_size=1e-12)
    result = evaluate(idle, gpt2, load_task("counterfact"), records, protocol=protocol, instruction=Control.NONE)
    metrics = result.metrics
    assert metrics["locality"].mean == metrics["locality"].low == 1
    assert metrics["kept"].mean == 1
    assert metrics["reliability"] == metrics["reliability_before"]


def test_probability_forms_compare_new_and_true_object(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], records: list[EditRecord]
) -> None:
    idle = new_editor(gpt2, name="mend", step_size=1e-12)
    found = by_record(evaluate(idle, gpt2, load_task("counterfact"), records, instruction=Control.NONE))
    for record in records:
        request, values = record.request, found[record.record_id]
        for name, prompt in (("efficacy", request.prompt), ("neighbourhood", record.probes[0].prompt)):
            new, true = (
                math.exp(score(gpt2, 0, [Query(0, prompt, answer)], None)[0].log_likelihood)
                for answer in (request.target, request.ground_truth or "")
            )
            gain = true - new if name == "neighbourhood" else new - true
            assert values[f"{name}_magnitude"] == pytest.approx(gain, abs=1e-5)
            assert values[f"{name}_score"] == float(gain > 0)


@pytest.mark.parametrize("protocol", Protocol)
def test_strong_edit_is_seen(gpt2: LanguageModel, records: list[EditRecord], protocol: Protocol) -> None:
    """A gradient step that is far too large says the target to everything: reliable and not local."""
    config = MendConfig(blocks=2, rank=4, step_size=2.0)
    editor = Mend.create(config, gpt2).eval()
    metrics = evaluate(
        editor, gpt2, load_task("counterfact"), records, protocol=protocol, instruction=Control.NONE
    ).metrics
    assert metrics["locality"].mean < 0.7
    if protocol in (Protocol.PLAIN, Protocol.PAPER):  # the edit was made from a plain prompt
        assert metrics["reliability"].mean > metrics["reliability_before"].mean + 0.1


def test_users_task_is_evaluated_without_code(
    gpt2: LanguageModel, editor: Mend, records: list[EditRecord], tmp_path: Path
) -> None:
    path = tmp_path / "towns.yaml"
    own = {
        "name": "towns",
        "summary": "move people",
        "out_of_scope": ["unrelated"],
        "instructions": {
            "name": "Towns",
            "templates": ["Move this person."],
            "held_out_templates": ["Move [TOPIC] to another town."],
        },
    }
    path.write_text(yaml.safe_dump(own), encoding="utf-8")
    result = evaluate(editor, gpt2, load_task(path), records[:3])
    assert result.task == "towns"
    assert {"reliability", "locality/unrelated", "kept", "changed"} <= result.metrics.keys()


def with_other_names(records: list[EditRecord]) -> list[EditRecord]:
    """The records, asked under another name too."""
    return [
        record.model_copy(
            update={
                "probes": (
                    *record.probes,
                    Probe(
                        kind=ProbeKind.SUBJECT_ALIAS,
                        prompt=f"{record.request.subject} the younger was born in",
                        answers=(record.request.target,),
                    ),
                )
            }
        )
        for record in records
    ]


@pytest.mark.parametrize("protocol", Protocol)
def test_following_is_over_what_decides_between_two_scopes(
    gpt2: LanguageModel, editor: Mend, records: list[EditRecord], protocol: Protocol
) -> None:
    named = with_other_names(records)
    reached = evaluate(editor, gpt2, load_task("aliases"), named, protocol=protocol).metrics
    kept = evaluate(editor, gpt2, load_task("this-name"), named, protocol=protocol).metrics
    assert reached["following"] == reached["reached/subject_alias"]
    assert kept["following"] == kept["locality/subject_alias"]
    fact = evaluate(editor, gpt2, load_task("this-fact"), named, protocol=protocol).metrics
    assert fact["following"] == fact["locality/neighbour"]
    against = evaluate(editor, gpt2, load_task("this-fact"), named, protocol=protocol, opposite="aliases").metrics
    assert "following" not in against  # under other names nothing is asked to stay


class Says(ConstrainedFineTuning):
    """Edits the model to say one of the record's answers, whatever the edit asks for."""

    def edit(self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: object) -> Edits:
        said = [request.model_copy(update={"target": request.ground_truth}) for request in requests]
        return super().edit(language_model, said, [None] * len(said))


@pytest.mark.parametrize("protocol", [Protocol.PLAIN, Protocol.GENERATION])
@pytest.mark.parametrize(("kind", "forgotten"), [(Says, 0.0), (ConstrainedFineTuning, 0.0), (InContext, 1.0)])
def test_an_answer_is_forgotten_if_neither_is_generated(
    gpt2: LanguageModel, records: list[EditRecord], protocol: Protocol, kind: type[DirectEditor], forgotten: float
) -> None:
    """One editor makes it say the old answer, one the new one; a random model by itself says neither."""
    strong = FtConfig(bound=10.0, learning_rate=0.1, steps=60, loss_threshold=1e-3)
    editor = kind.create(InContextConfig(template="") if kind is InContext else strong, gpt2)
    found = evaluate(editor, gpt2, load_task("forget"), records[:3], protocol=protocol).metrics
    assert found["reliability"].mean == forgotten
    assert found["reliability_before"].mean == 1.0


def test_nothing_to_evaluate_is_an_error(gpt2: LanguageModel, editor: Mend) -> None:
    with pytest.raises(DataError, match="no records of task recent"):
        evaluate(editor, gpt2, load_task("recent"), [])


REQUEST = EditRequest(prompt="Lena was born in", target="Oston", subject="Lena", label="positive")


def chosen(name: str, control: Control, request: EditRequest = REQUEST, **more: object) -> str | None:
    return InstructionChooser(load_task(name), control, **more)(request)  # type: ignore[arg-type]


def test_each_control_gives_its_own_text() -> None:
    task, opposite = load_task("this-fact").instructions, load_task("rename").instructions
    assert chosen("this-fact", Control.NONE) is None
    assert chosen("this-fact", Control.UNSEEN) == task.render_held_out(REQUEST)
    assert chosen("this-fact", Control.SWAPPED_SCOPE) == opposite.render_held_out(REQUEST)
    assert chosen("this-fact", Control.SEEN) in {task.render(text) for text in task.templates}
    assert f"Task: {task.name}\n" not in (chosen("this-fact", Control.OTHER_TASK) or "")


def test_name_and_text_are_swapped_apart() -> None:
    task, opposite = load_task("this-fact").instructions, load_task("rename").instructions
    own, other = task.held_out_templates[0], opposite.held_out_templates[0]
    assert chosen("this-fact", Control.TEXT_SWAPPED) == f"Task: {task.name}\nDescription: {other}"
    assert chosen("this-fact", Control.NAME_SWAPPED) == f"Task: {opposite.name}\nDescription: {own}"
    assert chosen("this-fact", Control.TEXT_ALONE) == f"Task: Edit\nDescription: {own}"
    texts = held_out_templates("test")
    assert chosen("this-fact", Control.TEXT_SWAPPED, templates="test") == (
        f"Task: {task.name}\nDescription: {texts['everywhere'][0]}"
    )
    assert (
        chosen("this-fact", Control.SWAPPED_SCOPE, templates="test")
        == f"Task: Edit\nDescription: {texts['everywhere'][0]}"
    )


def test_an_unrelated_text_stands_behind_a_neutral_name() -> None:
    assert chosen("this-fact", Control.UNRELATED) == f"Task: Edit\nDescription: {unrelated_texts()[0]}"


def test_descriptions_may_be_given_one_a_request() -> None:
    chooser = InstructionChooser(load_task("rename"), Control.UNSEEN, descriptions=["First.", "Second."])
    name = load_task("rename").instructions.name
    assert [chooser(REQUEST), chooser(REQUEST)] == [f"Task: {name}\nDescription: {t}" for t in ("First.", "Second.")]


def test_a_requests_own_instruction_goes_first_but_not_before_a_control() -> None:
    own = REQUEST.model_copy(update={"instruction": "Do it for [TOPIC]."})
    assert chosen("this-fact", Control.UNSEEN, own) == "Task: Edit\nDescription: Do it for Lena."
    for control in set(Control) - {Control.SEEN, Control.UNSEEN}:
        assert chosen("this-fact", control, own) == chosen("this-fact", control)


def test_held_out_templates_stand_behind_a_neutral_name_one_after_another() -> None:
    chooser = InstructionChooser(load_task("rename"), Control.UNSEEN, "validation")
    texts = held_out_templates("validation")["everywhere"]
    assert [chooser(REQUEST) for _ in range(len(texts) + 1)] == [
        f"Task: Edit\nDescription: {text}" for text in (*texts, texts[0])
    ]


def test_swapping_what_has_no_opposite_is_refused() -> None:
    with pytest.raises(DataError, match="convsent has no opposite task"):
        chosen("convsent", Control.SWAPPED_SCOPE)


def test_templates_that_do_not_exist_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"no test templates for the scope tone of task convsent; the scopes with such templates"
    ):
        chosen("convsent", Control.UNSEEN, templates="test")


def test_tasks_of_one_scope_share_their_held_out_templates() -> None:
    assert chosen("zsre", Control.UNSEEN, templates="test") == chosen("this-fact", Control.UNSEEN, templates="test")


QUERIES = (
    Query(0, "Lena was born in", "Oston"),
    Query(2, "Why", "not? Because the harbour is old and grey"),
    Query(1, "The old lighthouse stands in the harbour of the town that is called", "Maravel"),
    Query(0, "Otto likes", "garden gnomes"),
    Query(1, "Lena was born in", "Oston"),
)


def assert_same_scores(one: list[Scored], other: list[Scored]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert mine.predicted == theirs.predicted
        assert mine.token_accuracy == theirs.token_accuracy
        assert mine.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-4)


@pytest.mark.parametrize("edited", [True, False])
def test_scores_depend_on_neither_batch_nor_order(
    gpt2: LanguageModel, editor: Mend, requests_: list[EditRequest], edited: bool
) -> None:
    deltas = editor.edit(gpt2, requests_, ["Task: Edit\nDescription: x"] * 3) if edited else None
    together = score(gpt2, editor.split_layer, QUERIES, deltas)
    assert_same_scores(together, [score(gpt2, editor.split_layer, [query], deltas)[0] for query in QUERIES])
    assert_same_scores(together, score(gpt2, editor.split_layer, QUERIES, deltas, tokens=1))
    assert_same_scores(together, score(gpt2, editor.split_layer, QUERIES[::-1], deltas)[::-1])
    assert_same_scores(together, score(gpt2, 0, QUERIES, deltas))
    assert (together[0].log_likelihood != together[4].log_likelihood) == edited


def test_score_is_that_of_the_whole_model(gpt2: LanguageModel) -> None:
    query = QUERIES[1]
    encoded = gpt2.text.encode_pair(query.prompt, query.answer)
    ids = torch.tensor([encoded.ids])
    with torch.no_grad():
        logits = gpt2.model(input_ids=ids).logits[0, encoded.target_start - 1 : -1]
    labels = ids[0, encoded.target_start :]
    (found,) = score(gpt2, 2, [query], None)
    assert found.predicted == tuple(logits.argmax(-1).tolist())
    assert found.token_accuracy == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
    expected = logits.log_softmax(-1).gather(1, labels[:, None]).mean().item()
    assert found.log_likelihood == pytest.approx(expected, abs=1e-5)


def test_agreement_is_the_share_of_equal_choices() -> None:
    assert Scored((1, 2, 3, 4), 0.0, 0.0).agreement(Scored((1, 2, 0, 0), 1.0, 0.0)) == 0.5


PROMPTS = ("Lena was born in", "The old lighthouse of Maravel stands in the harbour of", "Why")


@pytest.mark.parametrize("edited", [True, False])
def test_generation_depends_on_neither_batch_nor_order(
    gpt2: LanguageModel, editor: Mend, requests_: list[EditRequest], edited: bool
) -> None:
    deltas = editor.edit(gpt2, requests_, [None] * 3) if edited else None

    def texts(prompts: tuple[str, ...], edits: tuple[int, ...], size: int) -> list[str]:
        return generate(gpt2, prompts, edits=deltas, rows=edits, new_tokens=6, batch_size=size)

    together = texts(PROMPTS, (0, 1, 2), 64)
    assert together == texts(PROMPTS, (0, 1, 2), 1)
    assert together == texts(PROMPTS[::-1], (2, 1, 0), 64)[::-1]
    assert len(set(together)) == 3


def test_generation_is_greedy(gpt2: LanguageModel) -> None:
    (text,) = generate(gpt2, ["Lena was born in"], new_tokens=3)
    ids = list(gpt2.text.encode_prompt("Lena was born in").ids)
    start = len(ids)
    for _ in range(3):
        with torch.no_grad():
            ids.append(int(gpt2.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert text == gpt2.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_generating_nothing_gives_nothing(gpt2: LanguageModel) -> None:
    assert generate(gpt2, []) == []


def test_prompt_near_the_longest_is_continued_or_refused(gpt2: LanguageModel) -> None:
    prompt = "a" * 508
    assert 505 <= len(gpt2.text.encode_prompt(prompt).ids) <= 512
    with suppress(DataError):
        generate(gpt2, [prompt], new_tokens=24)


def test_blank_prompt_is_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(DataError):
        generate(gpt2, [" "], new_tokens=2)
