"""The loop: propose, try, show the proposer what came out, and propose again.

After the paper's section on instruction construction (GPT-4 and a trial editor, until no metric improves), with what
that leaves out: cheap trials by successive halving (Jamieson & Talwalkar 2016), a budget, a trace that a killed run
goes on from, and a last comparison with the starting instructions on edits that no candidate was chosen by.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from instructedit.errors import DataError
from instructedit.evaluation.intervals import Estimate, estimate
from instructedit.instructions.candidates import Candidate, fault
from instructedit.instructions.proposers import Asked, Proposer, Ranked
from instructedit.instructions.trace import Trace
from instructedit.instructions.trial import METRICS, Trial, Values, by_edit, joined, means, overall
from instructedit.storage.reading import short_repr
from instructedit.tasks.task import Task

FEWEST_EDITS = 3
FIRST_RUNG = 8
BANK = 10


@dataclass(frozen=True)
class Budget:
    """When to stop.

    Attributes:
        seconds: of work, over all runs of one trace.
        rounds: of proposals, at most.
        patience: rounds without a better metric.
        candidates: a round.
    """

    seconds: float = 1200.0
    rounds: int = 100
    patience: int = 3
    candidates: int = 24


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        texts: the bank: ten descriptions, the best first and the second best last, where evaluations look for one; the
            starting ones where nothing better was found.
        gain: their scores less those of the starting ones, edit by edit, on edits that no candidate was chosen by.
        improved: whether that interval lies above zero.
        metrics: of the new and the starting texts, on those edits.
        scores: each text's means on the edits that chose.
        stopped: why it ended.
        rounds: how many there were.
        tried: how many texts were scored.
    """

    texts: tuple[Candidate, ...]
    gain: Estimate
    improved: bool
    metrics: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, Mapping[str, float]]
    stopped: str
    rounds: int
    tried: int


class Board:
    """What is known of every text, read from the trace and added to it; nothing is scored twice.

    Args:
        trial: that scores.
        trace: where scores are kept.
    """

    def __init__(self, trial: Trial, trace: Trace) -> None:
        self.trial, self.trace = trial, trace
        self.candidates: dict[str, Candidate] = {}
        self._known: dict[str, Values] = {}
        for event in trace.of("candidate"):
            self.candidates[event["text"]] = Candidate(**{key: value for key, value in event.items() if key != "event"})
        for event in trace.of("score"):
            if event["start"] != self.edits(event["text"]):
                raise DataError(
                    f"holds scores of {short_repr(event['text'])} that do not follow one another: two processes wrote "
                    "it or it was changed; give another --out",
                    file=trace.path,
                )
            self._add(event["text"], event["values"])

    def enter(self, candidate: Candidate) -> bool:
        """Take a text in; False where it is known already."""
        if candidate.text in self.candidates:
            return False
        self.candidates[candidate.text] = candidate
        self.trace.add("candidate", **vars(candidate))
        return True

    def score(self, texts: Sequence[str], count: int) -> None:
        """See to it that every text has been tried on the first ``count`` edits."""
        for start in sorted({self.edits(text) for text in texts if self.edits(text) < count}):
            behind = [text for text in texts if self.edits(text) == start]
            for text, values in zip(behind, self.trial.values(behind, start, count), strict=True):
                self.trace.add("score", text=text, start=start, stop=count, values=values)
                self._add(text, values)

    def edits(self, text: str) -> int:
        """How many edits a text has been tried on."""
        return len(self._known[text][METRICS[0]]) if text in self._known else 0

    def values(self, text: str, count: int) -> Values:
        """Its values on the first ``count`` edits."""
        return {name: row[:count] for name, row in self._known[text].items()}

    def ranked(self, count: int) -> list[Ranked]:
        """All texts that were tried on at least ``count`` edits, by their scores on those, the best first."""
        found = [
            Ranked(text, means(self.values(text, count)), overall(self.values(text, count)))
            for text in self.candidates
            if self.edits(text) >= count
        ]
        return sorted(found, key=lambda ranked: (-ranked.score, ranked.text))

    def best(self, count: int, number: int) -> Ranked:
        """The best as of a round. A run that goes on knows later rounds already, and is not to judge by them."""
        return next(found for found in self.ranked(count) if self.candidates[found.text].round <= number)

    def _add(self, text: str, values: Values) -> None:
        self._known[text] = joined(self._known[text], values) if text in self._known else values


def optimise(
    task: Task,
    trial: Trial,
    proposer: Proposer,
    trace: Trace,
    budget: Budget,
    on_round: Callable[[int, Ranked], None] = lambda number, best: None,
) -> Outcome:
    """Look for better instructions of a task; the trace says what has been done already.

    The first two thirds of the trial's edits choose, the last third compares the ten best with the starting ones.

    Raises:
        DataError: there are too few edits, or the trace is damaged or cannot be written.
        EditorError: the proposer fails for good. The trace keeps what there is, and the same call goes on.
    """
    if len(trial.records) < FEWEST_EDITS:
        raise DataError(
            f"instructions are chosen and compared on {FEWEST_EDITS} edits at least; {len(trial.records)} fit"
        )
    choosing = 2 * len(trial.records) // 3
    board = Board(trial, trace)
    clock = _Clock(trace)
    for text in task.instructions.descriptions:
        board.enter(Candidate(text, "bank"))
    start = list(task.instructions.descriptions)
    board.score(start, choosing)
    best = board.best(choosing, 0)
    stale, rounds, stopped = 0, 0, "the rounds are used up"
    for number in range(1, budget.rounds + 1):
        if number > clock.rounds and clock.seconds() > budget.seconds:
            stopped = "the time is spent"
            break
        if stale >= budget.patience:
            stopped = f"no metric improved in {stale} rounds"
            break
        _halve(board, _proposed(task, trial, proposer, board, number, budget.candidates, choosing), choosing)
        now = board.best(choosing, number)
        better = (
            [name for name in now.metrics if now.metrics[name] > best.metrics[name]] if now.score > best.score else []
        )
        stale = 0 if better else stale + 1
        best, rounds = now, number
        if number > clock.rounds:
            clock.keep(number)
        on_round(number, best)
    chosen = [ranked.text for ranked in board.ranked(choosing)[:BANK]]
    return _compared(board, chosen, start, choosing, stopped, rounds)


def _proposed(
    task: Task, trial: Trial, proposer: Proposer, board: Board, number: int, count: int, choosing: int
) -> list[str]:
    """The usable candidates of a round: those of the trace, or new ones."""
    if not any(event["round"] == number for event in board.trace.of("proposed")):
        asked = Asked(task, trial.records[:4], board.ranked(choosing), count, number)
        for text, parent in proposer.propose(asked, lambda call: board.trace.add("call", **call)):
            reason = fault(text, task)
            if reason is None and not board.enter(Candidate(text, proposer.name, parent, number)):
                reason = "was there before"
            if reason is not None:
                board.trace.add("rejected", text=text, round=number, reason=reason)
        board.trace.add("proposed", round=number)
    return [text for text, candidate in board.candidates.items() if candidate.round == number]


def _halve(board: Board, texts: Sequence[str], count: int) -> None:
    """All texts on a few edits, the better half on twice as many, and so on up to ``count``."""
    left, edits = list(texts), min(FIRST_RUNG, count)
    while left:
        board.score(left, edits)
        if edits == count:
            return
        left.sort(key=lambda text: (-overall(board.values(text, edits)), text))
        left, edits = left[: -(-len(left) // 2)], min(2 * edits, count)


def _compared(
    board: Board, chosen: Sequence[str], start: Sequence[str], choosing: int, stopped: str, rounds: int
) -> Outcome:
    total = len(board.trial.records)
    board.score([*dict.fromkeys([*chosen, *start])], total)

    def fresh(text: str) -> Values:
        return {name: row[choosing:] for name, row in board.values(text, total).items()}

    def mean_by_edit(texts: Sequence[str]) -> list[float]:
        return [statistics.fmean(column) for column in zip(*(by_edit(fresh(text)) for text in texts), strict=True)]

    def mean_metrics(texts: Sequence[str]) -> dict[str, float]:
        found = [means(fresh(text)) for text in texts]
        return {
            name: statistics.fmean(known)
            for name in METRICS
            if (known := [each[name] for each in found if name in each])
        }

    gain = estimate([new - old for new, old in zip(mean_by_edit(chosen), mean_by_edit(start), strict=True)])
    improved = gain.low > 0
    chosen = [chosen[0], *chosen[2:], chosen[1]]
    return Outcome(
        texts=tuple(board.candidates[text] for text in (chosen if improved else start)),
        gain=gain,
        improved=improved,
        metrics={"new": mean_metrics(chosen), "start": mean_metrics(start)},
        scores={
            text: {k: round(v, 4) for k, v in means(board.values(text, choosing)).items()} for text in (*chosen, *start)
        },
        stopped=stopped,
        rounds=rounds,
        tried=sum(board.edits(text) > 0 for text in board.candidates),
    )


class _Clock:
    """Seconds of work over all runs of a trace."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._before = max((event["seconds"] for event in trace.of("round")), default=0.0)
        #: How many rounds earlier runs have finished.
        self.rounds = max((event["number"] for event in trace.of("round")), default=0)
        self._began = time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def keep(self, number: int) -> None:
        self._trace.add("round", number=number, seconds=round(self.seconds(), 1))
