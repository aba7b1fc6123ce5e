"""Candidates, proposers, the trace and the loop, with a trial whose best text is known."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from instructedit.cli.optimize import seconds_of
from instructedit.errors import DataError
from instructedit.instructions.candidates import Candidate, validation_error
from instructedit.instructions.grammar import scope_grammar
from instructedit.instructions.offline_proposer import OfflineProposer
from instructedit.instructions.proposals import Proposal, ProposalContext, RankedTemplate
from instructedit.instructions.search import Budget, optimise
from instructedit.instructions.search_trace import SearchTrace
from instructedit.instructions.template_files import with_templates, write_templates
from instructedit.instructions.trial import METRICS, Trial, concatenated, edit_means, metric_means, overall_score
from instructedit.records import EditRecord, EditRequest
from instructedit.tasks.loading import load_task, shipped_tasks

ZSRE = load_task("zsre")
EDITS = 36


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "is not a string"),
        (["a list"], "is not a string"),
        ("  ", "is blank"),
        ("Change the fact\nand nothing else.", "contains a line break"),
        ("Change the fact\u2028and nothing else.", "contains a line break"),
        ("Change \ud800 and nothing else.", "is not valid Unicode"),
        ("Change it.", "has 2 words"),
        ("word " * 81, "has 81 words"),
        ("Change what is said about [TOPIC] now.", "contains [TOPIC], which the task"),
        ("w" * 999 + " o r d s", "has more than 1,000 characters"),
        ("Change *** and nothing else.", "*** in place of one"),
    ],
)
def test_what_cannot_be_an_instruction_is_reported(text: object, reason: str) -> None:
    assert reason in (validation_error(text, ZSRE) or "")


def test_placeholders_of_a_task_may_not_be_dropped() -> None:
    talk = load_task("convsent")
    assert validation_error("Make it [LABEL] about [TOPIC] from now on.", talk) is None
    assert validation_error("Make it [LABEL] from now on.", talk) == "lacks [TOPIC]"
    assert validation_error("Make it nice from now on.", talk) == "lacks [LABEL] and [TOPIC]"


@pytest.mark.parametrize("name", [name for name, task in shipped_tasks().items() if task.instructions.scope])
def test_offline_proposals_are_usable_and_repeatable(name: str) -> None:
    task = load_task(name)
    ranked = tuple(RankedTemplate(text, {}, 1.0) for text in task.instructions.all_templates)
    context = ProposalContext(task, (), ranked, 40, 3)
    texts = OfflineProposer(5).propose(context, lambda call: None)
    assert texts == OfflineProposer(5).propose(context, lambda call: None)
    assert texts != OfflineProposer(6).propose(context, lambda call: None)
    usable = [text for text, _ in texts if validation_error(text, task) is None]
    assert len(set(usable)) >= 20
    assert {parent for _, parent in texts} - {None} <= {r.text for r in ranked}


def quality(text: str) -> float:
    """What the pretended trial makes of a text: the more often it says `other`, the better."""
    return min(0.95, 0.5 + 0.1 * text.casefold().count("other"))


class PretendedTrial(Trial):
    """Scores texts by their words. Attributes: calls, what was requested; deaths, after how many calls to die."""

    def __init__(self, dies_after: int | None = None, judge: Callable[[str], float] = quality) -> None:
        record = EditRecord(record_id="r", request=EditRequest(prompt="Who?", target="Ann"))
        records = [record.model_copy(update={"record_id": f"r{index}"}) for index in range(EDITS)]
        super().__init__(None, None, ZSRE, records)  # type: ignore[arg-type]
        object.__setattr__(self, "calls", [])
        object.__setattr__(self, "dies_after", dies_after)
        object.__setattr__(self, "judge", judge)

    calls: list[tuple[str, int, int]]
    dies_after: int | None
    judge: Callable[[str], float]

    def values(
        self, texts: Sequence[str], start: int, stop: int, on_edits: Callable[[int], None] = lambda done: None
    ) -> list[dict[str, list[float | None]]]:
        if self.dies_after is not None and len(self.calls) >= self.dies_after:
            raise KeyboardInterrupt
        found = []
        for text in texts:
            self.calls.append((text, start, stop))
            noise = [random.Random(f"{text}-{index}").uniform(-0.02, 0.02) for index in range(start, stop)]
            row: dict[str, list[float | None]] = {name: [self.judge(text) + n for n in noise] for name in METRICS}
            row["portability"] = [None] * (stop - start)
            found.append(row)
        return found


SETTINGS = {"task": "zsre", "seed": 0}
BUDGET = Budget(seconds=60, rounds=6, candidates=12)


def test_better_texts_are_found_and_the_gain_is_measured_on_other_edits(tmp_path: Path) -> None:
    trial = PretendedTrial()
    outcome = optimise(ZSRE, trial, OfflineProposer(0), SearchTrace(tmp_path / "t.jsonl", SETTINGS), BUDGET)
    assert outcome.improved
    assert outcome.gain.low > 0
    assert outcome.gain.count == EDITS - 2 * EDITS // 3
    assert quality(outcome.templates[0].text) > max(map(quality, ZSRE.instructions.all_templates))
    assert outcome.templates[0].proposer == "offline"
    assert len({text.text for text in outcome.templates}) == 10
    assert outcome.metrics["new"]["reliability"] > outcome.metrics["start"]["reliability"]


def test_no_gain_is_reported_and_keeps_the_tasks_own_templates(tmp_path: Path) -> None:
    trial = PretendedTrial(judge=lambda text: 0.9 if text in ZSRE.instructions.all_templates else 0.2)
    outcome = optimise(ZSRE, trial, OfflineProposer(0), SearchTrace(tmp_path / "t.jsonl", SETTINGS), BUDGET)
    assert not outcome.improved
    assert [text.text for text in outcome.templates] == list(ZSRE.instructions.all_templates)
    assert outcome.stopped == "no metric improved in 3 rounds"
    assert outcome.rounds == 3


def test_candidates_are_halved(tmp_path: Path) -> None:
    """Of a round's candidates all are tried on 8 edits, and few on all that choose."""
    trial = PretendedTrial()
    budget = Budget(seconds=60, rounds=1, candidates=16)
    optimise(ZSRE, trial, OfflineProposer(0), SearchTrace(tmp_path / "t.jsonl", SETTINGS), budget)
    proposed = [call for call in trial.calls if call[0] not in ZSRE.instructions.all_templates]
    first = {text for text, start, _ in proposed if start == 0}
    assert {stop for text, start, stop in proposed if start == 0} == {8}
    assert len({text for text, start, _ in proposed if start == 8}) == -(-len(first) // 2)
    assert len({text for text, start, _ in proposed if start == 16}) == (-(-len(first) // 2) + 1) // 2


@pytest.mark.parametrize("dies_after", [1, 9, 15, 30, 50])
def test_killed_run_goes_on_and_tries_nothing_twice(tmp_path: Path, dies_after: int) -> None:
    whole = optimise(
        ZSRE, PretendedTrial(), OfflineProposer(0), SearchTrace(tmp_path / "whole.jsonl", SETTINGS), BUDGET
    )
    path = tmp_path / "killed.jsonl"
    first, second = PretendedTrial(dies_after), PretendedTrial()
    with pytest.raises(KeyboardInterrupt):
        optimise(ZSRE, first, OfflineProposer(0), SearchTrace(path, SETTINGS), BUDGET)
    with path.open("a") as stream:  # what a kill in the middle of a line leaves
        stream.write('{"event": "sco')
    again = optimise(ZSRE, second, OfflineProposer(0), SearchTrace(path, SETTINGS), BUDGET)
    assert (again.templates, again.gain, again.rounds) == (whole.templates, whole.gain, whole.rounds)
    kept = [(event["text"], event["start"], event["stop"]) for event in SearchTrace(path, SETTINGS).of("score")]
    assert len(kept) == len(set(kept))
    assert not set(kept[: len(kept) - len(second.calls)]) & set(second.calls)


class Improves:
    """A proposer whose every round is better than the one before."""

    name = "improves"

    def propose(self, context: ProposalContext, on_call: Callable[[dict[str, Any]], None]) -> list[Proposal]:
        return [(f"In round {context.round} we say {number} {'better ' * context.round}", None) for number in range(3)]


def improving(text: str) -> float:
    return 0.3 + 0.04 * text.count("better")


@pytest.mark.parametrize("rounds", [4, 7])
def test_killed_run_judges_each_round_by_what_was_known_then(tmp_path: Path, rounds: int) -> None:
    """Patience is counted as in an unbroken run, though later rounds are in the trace already."""
    budget = Budget(seconds=60, rounds=10, patience=2)
    whole = optimise(
        ZSRE, PretendedTrial(judge=improving), Improves(), SearchTrace(tmp_path / "whole.jsonl", SETTINGS), budget
    )
    path = tmp_path / "killed.jsonl"
    few = Budget(seconds=60, rounds=rounds, patience=2)
    optimise(ZSRE, PretendedTrial(judge=improving), Improves(), SearchTrace(path, SETTINGS), few)
    again = optimise(ZSRE, PretendedTrial(judge=improving), Improves(), SearchTrace(path, SETTINGS), budget)
    assert whole.rounds == again.rounds == 10
    assert whole.templates == again.templates


def test_finished_rounds_cost_no_time(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    optimise(ZSRE, PretendedTrial(), OfflineProposer(0), SearchTrace(path, SETTINGS), Budget(seconds=60, rounds=2))
    again = optimise(
        ZSRE, PretendedTrial(), OfflineProposer(0), SearchTrace(path, SETTINGS), Budget(seconds=0, rounds=9)
    )
    assert (again.rounds, again.stopped) == (2, "the time limit is reached")


def test_too_few_edits_are_reported(tmp_path: Path) -> None:
    trial = PretendedTrial()
    object.__setattr__(trial, "records", trial.records[:2])
    with pytest.raises(DataError, match="needs 3 or more validation edits, found 2"):
        optimise(ZSRE, trial, OfflineProposer(0), SearchTrace(tmp_path / "t.jsonl", SETTINGS), BUDGET)


@pytest.mark.parametrize("content", ['{"prompt": "Who?"}\n{"cut off', "[1]\n", '"start"\n', "no line end"])
def test_a_file_that_is_not_a_trace_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"t\.jsonl: is not the trace of a template search"):
        SearchTrace(path, SETTINGS)
    assert path.read_text() == content


def test_any_text_survives_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    text = "one\u2028two\u0085three \ud800"
    SearchTrace(path, SETTINGS).add("rejected", text=text)
    assert [event["text"] for event in SearchTrace(path, SETTINGS).of("rejected")] == [text]


def test_generated_texts_keep_to_the_tasks_scope() -> None:
    ranked = tuple(RankedTemplate(text, {}, 1.0) for text in ZSRE.instructions.all_templates)
    texts = OfflineProposer(0, exploration_rate=0.0).propose(
        ProposalContext(ZSRE, (), ranked, 30, 1), lambda call: None
    )
    known = {text for text, parent in texts if parent is None}
    rng = random.Random(0)
    assert len(known) >= 14
    assert not known & {scope_grammar().draw("forget", rng) for _ in range(2000)}


def test_trace_of_other_settings_is_refused(tmp_path: Path) -> None:
    SearchTrace(tmp_path / "t.jsonl", SETTINGS)
    with pytest.raises(DataError, match=r"another search \(seed differ\)"):
        SearchTrace(tmp_path / "t.jsonl", {**SETTINGS, "seed": 1})


def test_damaged_trace_is_reported_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    SearchTrace(path, SETTINGS)
    path.write_text(path.read_text() + "{oh\n")
    with pytest.raises(DataError, match="line 2 is not valid JSON"):
        SearchTrace(path, SETTINGS)


def written(folder: Path, *events: object, end: str = "\n") -> Path:
    """A trace with these lines after its first."""
    path = folder / "t.jsonl"
    with SearchTrace(path, SETTINGS):
        pass
    with path.open("a") as stream:
        stream.write("\n".join(json.dumps(event) for event in events) + end)
    return path


@pytest.mark.parametrize("length", [1, 5, 18, 30, 60])
def test_a_trace_torn_in_its_first_line_is_started_anew(tmp_path: Path, length: int) -> None:
    path = written(tmp_path, end="")
    content = path.read_bytes()
    path.write_bytes(content[:length])
    with SearchTrace(path, SETTINGS) as trace:
        assert [event["event"] for event in trace.events] == ["start"]
    assert path.read_bytes() == content


SCORE = {"event": "score", "text": "a b c", "start": 0, "stop": 1, "values": {name: [0.5] for name in METRICS}}
CANDIDATE = {"event": "candidate", "text": "a b c", "proposer": "x", "parent": None, "round": 0}


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ([1], "is not an event"),
        ("score", "is not an event"),
        ({"text": "a"}, "is not an event"),
        ({"event": 3}, "is not an event"),
        ({"event": "candidate", "text": "a"}, "proposer, parent, round of candidate"),
        (CANDIDATE | {"text": 5}, "text of candidate"),
        (CANDIDATE | {"more": 5}, "more of candidate"),
        (CANDIDATE | {"round": True}, "round of candidate"),
        (SCORE | {"values": []}, "values of score"),
        (SCORE | {"values": {"reliability": [0.5]}}, "values of score"),
        (SCORE | {"values": {name: [0.5, 0.5] for name in METRICS}}, "values of score"),
        (SCORE | {"values": {name: ["a"] for name in METRICS}}, "values of score"),
        (SCORE | {"start": "0"}, "start of score"),
        ({"event": "round", "number": 1}, "seconds of round"),
        ({"event": "proposed"}, "round of proposed"),
        ({"event": "start"}, "settings of start"),
    ],
)
def test_an_event_without_what_is_read_of_it_is_reported_by_its_line(
    tmp_path: Path, event: object, problem: str
) -> None:
    path = written(tmp_path, CANDIDATE, event)
    before = path.read_bytes()
    with pytest.raises(DataError, match=rf"t\.jsonl: line 3 .*{problem}"):
        SearchTrace(path, SETTINGS)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"[" * 2000, b"1" * 5000, b'{"event": "round", "number": 1, "seconds": NaN}']
)
def test_a_line_that_nothing_can_read_is_reported(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path, end="")
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(DataError, match=r"t\.jsonl: line 2 "):
        SearchTrace(path, SETTINGS)


def test_scores_that_two_processes_wrote_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, CANDIDATE, SCORE, SCORE)
    with pytest.raises(DataError, match="are inconsistent"):
        optimise(ZSRE, PretendedTrial(), OfflineProposer(0), SearchTrace(path, SETTINGS), BUDGET)


HOLDS = """
import sys, time
from pathlib import Path
from instructedit.instructions.search_trace import SearchTrace
trace = SearchTrace(Path(sys.argv[1]), {"task": "zsre", "seed": 0})
print("open", flush=True)
time.sleep(60)
"""


def test_a_trace_is_open_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        before = path.read_bytes()
        with pytest.raises(DataError, match=r"t\.jsonl: another process is writing here"):
            SearchTrace(path, SETTINGS)
        assert path.read_bytes() == before
    finally:
        other.kill()
        other.wait()
    with SearchTrace(path, SETTINGS) as trace:
        assert len(trace.events) == 1


def test_a_trace_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        SearchTrace(tmp_path / "file" / "t.jsonl", SETTINGS)
    with pytest.raises(DataError, match="it is a folder"):
        SearchTrace(tmp_path, SETTINGS)
    trace = SearchTrace(tmp_path / "t.jsonl", SETTINGS)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"t\.jsonl: cannot be written: No space left"):
        optimise(ZSRE, PretendedTrial(), OfflineProposer(0), trace, BUDGET)


class Writes:
    """A proposer that writes what it is told to."""

    name = "told"

    def __init__(self, *texts: Any) -> None:
        self.texts = texts

    def propose(self, context: ProposalContext, on_call: Callable[[dict[str, Any]], None]) -> list[Proposal]:
        return [(text, None) for text in self.texts]


def test_unusable_proposals_are_rejected_with_a_reason(tmp_path: Path) -> None:
    trace = SearchTrace(tmp_path / "t.jsonl", SETTINGS)
    bad = [
        "two words",
        "with a\nline break in it",
        7,
        "Change [TOPIC] and nothing else.",
        ZSRE.instructions.all_templates[3],
    ]
    outcome = optimise(ZSRE, PretendedTrial(), Writes(*bad), trace, Budget(rounds=1))
    reasons = {str(event["text"]): event["reason"] for event in trace.of("rejected")}
    assert reasons.keys() == set(map(str, bad))
    assert reasons[bad[-1]] == "is a duplicate"  # type: ignore[index]
    assert not outcome.improved


def test_template_file_goes_back_into_the_task(tmp_path: Path) -> None:
    texts = [Candidate("Change this fact and no other.", "offline", None, 2), Candidate("Leave all others be.", "task")]
    path = tmp_path / "templates.yaml"
    write_templates(path, ZSRE, texts, {"seed": 3}, {texts[0].text: {"reliability": 0.5}})
    assert with_templates(ZSRE, path).instructions.all_templates == tuple(text.text for text in texts)
    assert with_templates(ZSRE, path).out_of_scope == ZSRE.out_of_scope
    kept = yaml.safe_load(path.read_text())["provenance"]
    assert (kept["task"], kept["seed"]) == ("zsre", 3)
    assert kept["texts"][0] == {
        "text": texts[0].text,
        "proposer": "offline",
        "round": 2,
        "scores": {"reliability": 0.5},
    }


def test_what_is_not_a_template_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(json.dumps({"name": "x", "templates": ["one only"]}))
    with pytest.raises(DataError, match=r"templates\.yaml: is not a file of instruction templates: held_out_templates"):
        with_templates(ZSRE, path)


def test_template_file_of_another_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "templates.yaml"
    write_templates(
        path, ZSRE, [Candidate("Change this fact and no other.", "a"), Candidate("Leave others be.", "b")], {}, {}
    )
    with pytest.raises(DataError, match="was made for task zsre, not for recent"):
        with_templates(load_task("recent"), path)


def test_scores_are_over_what_the_edits_have() -> None:
    values = {"reliability": [1.0, 0.0], "locality": [None, 0.5]}
    assert metric_means(values) == {"reliability": 0.5, "locality": 0.5}
    assert overall_score(values) == 0.5
    assert edit_means(values) == [1.0, 0.25]
    assert overall_score({"reliability": [0.0], "locality": [1.0]}) == 0.0
    empty = {name: [] for name in METRICS}
    one = {name: [0.5] for name in METRICS}
    assert concatenated(empty, one) == one


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("2", 120)])
def test_budgets_are_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_budget_that_is_not_a_time_is_reported() -> None:
    with pytest.raises(DataError, match="90s, 20m or 2h, not 'soon'"):
        seconds_of("soon")
