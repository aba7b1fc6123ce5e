"""The search for better instruction templates: propose, score, show the proposer the scores, and propose again.

After the paper's section on instruction construction (GPT-4 and a trial editor, until no metric improves), with what
it leaves open: cheap trials by successive halving (Jamieson & Talwalkar 2016), a budget, a trace from which a killed
search resumes, and a final comparison with the task's own templates on edits that no candidate was chosen by.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from instructedit.errors import DataError
from instructedit.evaluation.intervals import Estimate, estimate
from instructedit.instructions.candidates import Candidate, validation_error
from instructedit.instructions.leaderboard import Leaderboard
from instructedit.instructions.proposals import ProposalContext, Proposer, RankedTemplate
from instructedit.instructions.search_trace import SearchTrace
from instructedit.instructions.trial import METRICS, MetricValues, Trial, edit_means, metric_means, overall_score
from instructedit.tasks.task import Task

FEWEST_EDITS = 3
#: Edits of the first round of successive halving.
FIRST_RUNG = 8
#: How many of the best templates a search returns.
TEMPLATES = 10


@dataclass(frozen=True)
class Budget:
    """When a search stops.

    Attributes:
        seconds: seconds of work, over all runs of one trace.
        rounds: at most this many rounds of proposals.
        patience: rounds without a better metric before it stops.
        candidates: candidates per round.
    """

    seconds: float = 1200.0
    rounds: int = 100
    patience: int = 3
    candidates: int = 24


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        templates: ten templates, the best first and the second best last, where it becomes the held-out template; the
            task's own where nothing better was found.
        gain: their scores minus those of the task's own, edit by edit, on edits that no candidate was chosen by.
        improved: whether that interval is above zero.
        metrics: metrics of the new and the task's own templates (``new``, ``start``), on those edits.
        scores: each template's mean metrics on the edits that candidates were chosen by.
        stopped: why it ended.
        rounds: how many rounds there were.
        tried: how many templates were scored.
    """

    templates: tuple[Candidate, ...]
    gain: Estimate
    improved: bool
    metrics: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, Mapping[str, float]]
    stopped: str
    rounds: int
    tried: int


def optimise(
    task: Task,
    trial: Trial,
    proposer: Proposer,
    trace: SearchTrace,
    budget: Budget,
    on_round: Callable[[int, RankedTemplate], None] = lambda number, best: None,
) -> SearchResult:
    """Search for better instruction templates of a task; what the trace already has is not done again.

    Candidates are chosen by the first two thirds of the trial's edits; the last third compares the ten best with the
    task's own templates.

    Args:
        task: the task.
        trial: scores templates on validation edits.
        proposer: writes candidates.
        trace: the file that the search is kept in.
        budget: when to stop.
        on_round: called after every round with its number and the best template so far.

    Raises:
        DataError: there are too few edits, or the trace is damaged or cannot be written.
        EditorError: the proposer fails for good. The trace keeps what there is, and the same call resumes from it.
    """
    if len(trial.records) < FEWEST_EDITS:
        raise DataError(
            f"the search needs {FEWEST_EDITS} or more validation edits, found {len(trial.records)}; give another --data"
        )
    choosing = 2 * len(trial.records) // 3
    board = Leaderboard(trial, trace)
    clock = _Clock(trace)
    start = list(task.instructions.all_templates)
    for text in start:
        board.enter(Candidate(text, "task"))
    board.score(start, choosing)
    best = board.best(choosing, 0)
    stale, rounds, stopped = 0, 0, "the maximum number of rounds is reached"
    for number in range(1, budget.rounds + 1):
        if number > clock.rounds and clock.seconds() > budget.seconds:
            stopped = "the time limit is reached"
            break
        if stale >= budget.patience:
            stopped = f"no metric improved in {stale} rounds"
            break
        _halve(board, _propose(task, proposer, board, number, budget.candidates, choosing), choosing)
        now = board.best(choosing, number)
        stale = 0 if _improves(now, best) else stale + 1
        best, rounds = now, number
        if number > clock.rounds:
            clock.record(number)
        on_round(number, best)
    chosen = [template.text for template in board.ranked(choosing)[:TEMPLATES]]
    return _compare(board, chosen, start, choosing, stopped, rounds)


def _improves(new: RankedTemplate, old: RankedTemplate) -> bool:
    """Return whether the score and at least one metric are better."""
    return new.score > old.score and any(value > old.metrics[name] for name, value in new.metrics.items())


def _propose(task: Task, proposer: Proposer, board: Leaderboard, number: int, count: int, choosing: int) -> list[str]:
    """Return the valid candidates of a round: those of the trace, or new ones."""
    if not any(event["round"] == number for event in board.trace.of("proposed")):
        context = ProposalContext(task, board.trial.records[:4], board.ranked(choosing), count, number)
        for text, parent in proposer.propose(context, lambda call: board.trace.add("call", **call)):
            reason = validation_error(text, task)
            if reason is None and not board.enter(Candidate(text, proposer.name, parent, number)):
                reason = "is a duplicate"
            if reason is not None:
                board.trace.add("rejected", text=text, round=number, reason=reason)
        board.trace.add("proposed", round=number)
    return [text for text, candidate in board.candidates.items() if candidate.round == number]


def _halve(board: Leaderboard, texts: Sequence[str], count: int) -> None:
    """Score all templates on a few edits, the better half on twice as many, and so on up to ``count``."""
    left, edits = list(texts), min(FIRST_RUNG, count)
    while left:
        board.score(left, edits)
        if edits == count:
            return
        left.sort(key=lambda text: (-overall_score(board.values(text, edits)), text))
        left, edits = left[: -(-len(left) // 2)], min(2 * edits, count)


def _compare(
    board: Leaderboard, chosen: Sequence[str], start: Sequence[str], choosing: int, stopped: str, rounds: int
) -> SearchResult:
    """Compare the chosen templates with the task's own on the edits that chose nothing."""
    total = len(board.trial.records)
    board.score([*dict.fromkeys([*chosen, *start])], total)

    def fresh(text: str) -> MetricValues:
        return {name: row[choosing:] for name, row in board.values(text, total).items()}

    def mean_by_edit(texts: Sequence[str]) -> list[float]:
        return [statistics.fmean(column) for column in zip(*(edit_means(fresh(text)) for text in texts), strict=True)]

    def mean_metrics(texts: Sequence[str]) -> dict[str, float]:
        means = [metric_means(fresh(text)) for text in texts]
        return {
            name: statistics.fmean(values)
            for name in METRICS
            if (values := [each[name] for each in means if name in each])
        }

    gain = estimate([new - old for new, old in zip(mean_by_edit(chosen), mean_by_edit(start), strict=True)])
    improved = gain.low > 0
    chosen = [chosen[0], *chosen[2:], chosen[1]]
    return SearchResult(
        templates=tuple(board.candidates[text] for text in (chosen if improved else start)),
        gain=gain,
        improved=improved,
        metrics={"new": mean_metrics(chosen), "start": mean_metrics(start)},
        scores={
            text: {name: round(value, 4) for name, value in metric_means(board.values(text, choosing)).items()}
            for text in (*chosen, *start)
        },
        stopped=stopped,
        rounds=rounds,
        tried=sum(board.edits(text) > 0 for text in board.candidates),
    )


class _Clock:
    """Seconds of work over all runs of a trace.

    Attributes:
        rounds: how many rounds earlier runs have finished.
    """

    def __init__(self, trace: SearchTrace) -> None:
        self._trace = trace
        self._before = max((event["seconds"] for event in trace.of("round")), default=0.0)
        self.rounds = max((event["number"] for event in trace.of("round")), default=0)
        self._began = time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def record(self, number: int) -> None:
        self._trace.add("round", number=number, seconds=round(self.seconds(), 1))
