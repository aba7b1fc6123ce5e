"""A model with the edits of a ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

import instructedit.ledger.session
from instructedit.deltas.delta import Delta
from instructedit.editors.editing import make_edits
from instructedit.editors.mend import Mend
from instructedit.editors.saving import load_trained_editor, save_editor
from instructedit.errors import LedgerError
from instructedit.evaluation.health import Health, HealthLimits, measure_health
from instructedit.ledger import session as module
from instructedit.ledger.ledger import Ledger
from instructedit.ledger.session import Session
from instructedit.ledger.tables import State
from instructedit.merging import combining
from instructedit.merging.combining import Combine
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad
from instructedit.records import EditRequest

SUBJECTS = ("Lena", "Otto", "Mira", "Hugo")


def request(subject: str, target: str = "Oston") -> EditRequest:
    return EditRequest(subject=subject, prompt=f"{subject} was born in", target=target)


@pytest.fixture(scope="module")
def editor(gpt2: LanguageModel, new_editor: Callable[..., Mend], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("editor") / "editor.safetensors"
    save_editor(new_editor(gpt2, blocks=1, step_size=0.05), gpt2, path)
    return str(path)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "edits.db") as ledger:
        yield ledger


@torch.no_grad()
def logits(model: LanguageModel) -> torch.Tensor:
    queries = [model.text.encode_pair(f"{name} was born in", "Oston") for name in SUBJECTS]
    return model.split(0).full(pad(queries, model.text.pad_id))


def fresh(editor: str, model: LanguageModel, requests: list[EditRequest]) -> Delta | None:
    """The edits made afresh, each by itself, and added up."""
    method = load_trained_editor(editor, model)
    deltas = [make_edits(method, model, [each], None)[0] for each in requests]
    return sum(deltas[1:], start=deltas[0]) if deltas else None


def test_the_model_is_edited_inside_and_the_base_outside(gpt2: LanguageModel, opened: Ledger, editor: str) -> None:
    base = logits(gpt2)
    with Session(gpt2, opened, editor, combine="sum") as session:
        assert torch.equal(logits(gpt2), base)
        first, second = session.edit([request("Lena"), request("Otto", "Weil")])
        edited = logits(gpt2)
        assert not torch.equal(edited, base)
        session.set_state([first.id], State.DISABLED)
        session.set_state([second.id], State.DISABLED)
        assert torch.equal(logits(gpt2), base)
        session.set_state([second.id, first.id], State.ENABLED)
        assert torch.equal(logits(gpt2), edited)
    assert torch.equal(logits(gpt2), base)
    with Session(gpt2, opened, editor, combine="sum"):  # in another run of the program
        assert torch.equal(logits(gpt2), edited)


@pytest.mark.parametrize("how", ["merge", "distil"])
def test_merged_edits_do_not_depend_on_what_was_toggled_before(
    gpt2: LanguageModel, opened: Ledger, editor: str, monkeypatch: pytest.MonkeyPatch, how: Combine
) -> None:
    merges: list[int] = []
    merge = combining.merge

    def counted(deltas: list[Delta], *args: object, **options: object) -> Delta:
        merges.append(len(deltas))
        return merge(deltas, *args, **options, sentences=50)  # type: ignore[arg-type]

    monkeypatch.setattr(combining, "merge", counted)
    with Session(gpt2, opened, editor, combine=how) as session:
        session.edit([request(name) for name in SUBJECTS[:3]], report=False)
        edited = logits(gpt2)
        session.set_state([2], State.DISABLED)
        session.set_state([1], State.DISABLED)
        session.set_state([1, 2], State.ENABLED)
        assert torch.equal(logits(gpt2), edited)
    with Session(gpt2, opened, editor, combine=how):
        assert torch.equal(logits(gpt2), edited)
    assert merges == [3, 2, 3], "one edit is not merged, and what was merged last is kept"
    monkeypatch.setattr(instructedit.ledger.session, "REVISION", 0)
    with Session(gpt2, opened, editor, combine=how):
        assert merges == [3, 2, 3, 3], "what another version of the package combined is not taken over"


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose edits give their targets for every prompt about Lena."""

    def generate(model: LanguageModel, prompts: list[str], *, delta: Delta | None, new_tokens: int) -> list[str]:
        edited = delta is not None and delta.metadata.requests[0].target
        return [f" {edited}." if edited and "ena" in prompt else " nothing." for prompt in prompts]

    monkeypatch.setattr(module, "generate", generate)


@pytest.mark.usefixtures("answering")
def test_an_edit_of_another_model_is_left_alone_and_rebuilt(
    gpt2: LanguageModel, tiny: Callable[[str], LanguageModel], opened: Ledger, editor: str
) -> None:
    llama = tiny("llama")
    with Session(gpt2, opened, editor) as session:
        session.edit([request("Lena"), request("Otto")], report=False)
    base = logits(llama)
    with Session(llama, opened, "ft") as session:
        assert torch.equal(logits(llama), base)
        assert session.enabled() == []
        lena, otto = session.rebuild([1, 2], report=False)
        assert (lena.new.base, lena.new.editor) == (llama.fingerprint, "ft")
        assert lena.new.made_from == lena.old.uid
        assert (lena.succeeds, otto.succeeds) == (True, False)
        assert session.enabled() == [lena.new], "an edit that fails is added disabled"
        assert not torch.equal(logits(llama), base)
    states = [entry.state for entry in opened.edits(base=gpt2.fingerprint)]
    assert states == [State.ENABLED, State.ENABLED], "those of the other model stay as they are"


@pytest.mark.usefixtures("answering")
def test_a_rebuilt_edit_takes_the_place_of_the_old_one(gpt2: LanguageModel, opened: Ledger, editor: str) -> None:
    with Session(gpt2, opened, editor) as session:
        session.edit(request("Lena"), report=False)
        session.rebuild([1], report=False)
    assert [entry.state for entry in opened.edits()] == [State.DISABLED, State.ENABLED]
    assert opened.events(1)[-1].reason == "rebuilt"


@pytest.mark.usefixtures("answering")
def test_a_contradiction_in_other_words_is_seen_by_the_model(gpt2: LanguageModel, opened: Ledger, editor: str) -> None:
    with Session(gpt2, opened, editor) as session:
        session.edit([request("Lena"), request("Otto")], report=False)
        other_words = EditRequest(subject="lena", prompt="Lena's place of birth:", target="Weil")
        with pytest.raises(LedgerError, match="edit 1"):
            session.edit(other_words, report=False)
        session.edit(other_words.model_copy(update={"target": "Oston"}), report=False)  # the same answer
        session.edit(EditRequest(subject="Otto", prompt="Otto plays", target="Weil"), report=False)
        session.edit(other_words, on_conflict="replace", report=False)
    assert opened.edit(1).state is State.DISABLED


def test_an_unhealthy_model_is_refused_or_flagged(gpt2: LanguageModel, opened: Ledger, editor: str) -> None:
    strict = HealthLimits(norm=1e-9)
    with Session(gpt2, opened, editor, limits=strict) as session:
        with pytest.raises(LedgerError, match="the model is not healthy: the change is"):
            session.edit(request("Lena"), report=False)
        assert opened.edits() == []
        [entry] = session.edit(request("Lena"), gate="flag", report=False)
    assert entry.health is not None
    assert len(entry.health["exceeded"]) == 1
    with Session(gpt2, opened, editor, limits=HealthLimits(perplexity=None, divergence=None, changed=None)) as session:
        [entry] = session.edit(request("Otto"), report=False)
    assert entry.health is not None
    assert entry.health["exceeded"] == []


def test_health_of_an_edit_that_changes_nothing(gpt2: LanguageModel, editor: str) -> None:
    delta = fresh(editor, gpt2, [request("Lena")])
    assert delta is not None
    nothing = measure_health(gpt2, delta.scale(0.0))
    assert (nothing.perplexity_increase, nothing.divergence, nothing.changed, nothing.norm) == (0, 0, 0, 0)
    large = measure_health(gpt2, delta.scale(1e3))
    assert large.perplexity_increase > 0.01
    exceeded = large.exceeded(HealthLimits(perplexity=0.01))
    assert len(exceeded) == 4, exceeded
    assert Health.from_dict(large.as_dict()) == large
    assert large.exceeded(HealthLimits(perplexity=None, divergence=None, changed=None, norm=None)) == []


def test_what_is_not_a_number_is_over_any_limit() -> None:
    nan = float("nan")
    assert len(Health((1.0, nan), nan, nan, nan).exceeded(HealthLimits())) == 4


def toggling(model: LanguageModel, editor: str, folder: Path) -> type[RuleBasedStateMachine]:
    """Random adding, enabling, disabling, reverting and rebuilding; only the set that survives may count."""
    base = logits(model)
    made: dict[EditRequest, Delta] = {}

    class Toggling(RuleBasedStateMachine):
        numbers = Bundle("numbers")
        counter = 0

        def __init__(self) -> None:
            super().__init__()
            Toggling.counter += 1
            self.ledger = Ledger(folder / f"{Toggling.counter}.db")
            self.session = Session(model, self.ledger, editor, combine="sum").__enter__()
            self.expected: dict[int, tuple[EditRequest, State]] = {}

        def teardown(self) -> None:
            self.session.__exit__()
            assert torch.equal(logits(model), base)
            assert self.ledger.problems() == []
            self.ledger.database.close()

        @rule(target=numbers, subject=st.sampled_from(SUBJECTS), target_text=st.sampled_from(["Oston", "Weil"]))
        def add(self, subject: str, target_text: str) -> int:
            [entry] = self.session.edit(request(subject, target_text), on_conflict="keep", report=False)
            self.expected[entry.id] = entry.request, State.ENABLED
            return entry.id

        @rule(number=numbers, state=st.sampled_from([State.ENABLED, State.DISABLED]))
        def toggle(self, number: int, state: State) -> None:
            self.session.set_state([number], state)
            self.expected[number] = self.expected[number][0], state

        @rule(number=consumes(numbers))
        def revert(self, number: int) -> None:
            self.session.set_state([number], State.REVERTED)
            self.expected[number] = self.expected[number][0], State.REVERTED
            with pytest.raises(LedgerError):
                self.session.set_state([number], State.ENABLED)

        @rule(target=numbers, number=numbers)
        def rebuild(self, number: int) -> int:
            [rebuilt] = self.session.rebuild([number], report=False)
            old, state = self.expected[number]
            if rebuilt.succeeds and state is State.ENABLED:
                self.expected[number] = old, State.DISABLED
            self.expected[rebuilt.new.id] = old, rebuilt.new.state
            return rebuilt.new.id

        @invariant()
        def only_the_surviving_edits_count(self) -> None:
            surviving = [each for _, (each, state) in sorted(self.expected.items()) if state is State.ENABLED]
            if not surviving:
                assert torch.equal(logits(model), base)
                return
            now = logits(model)
            self.session._attached.close()
            for each in surviving:
                if each not in made:
                    afresh = fresh(editor, model, [each])
                    assert afresh is not None
                    made[each] = afresh
            deltas = [made[each] for each in surviving]
            with sum(deltas[1:], start=deltas[0]).attached(model):
                assert torch.equal(logits(model), now)
            self.session.refresh()

    return Toggling


def test_a_thousand_random_operations(gpt2: LanguageModel, editor: str, tmp_path: Path) -> None:
    settings_ = settings(
        max_examples=20, stateful_step_count=50, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(toggling(gpt2, editor, tmp_path), settings=settings_)
