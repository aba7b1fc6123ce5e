"""The scores of all templates of a search, kept in its trace."""

from __future__ import annotations

from collections.abc import Sequence

from instructedit.errors import DataError
from instructedit.instructions.candidates import Candidate
from instructedit.instructions.proposals import RankedTemplate
from instructedit.instructions.search_trace import SearchTrace
from instructedit.instructions.trial import (
    METRICS,
    MetricValues,
    Trial,
    concatenated,
    metric_means,
    overall_score,
)
from instructedit.storage.reading import short_repr


class Leaderboard:
    """The templates of a search and their scores, read from the trace and appended to it; nothing is scored twice.

    Args:
        trial: scores templates.
        trace: the file that scores are kept in.

    Attributes:
        trial: as above.
        trace: as above.
        candidates: every template that was entered, by its text.

    Raises:
        DataError: the scores in the trace are inconsistent.
    """

    def __init__(self, trial: Trial, trace: SearchTrace) -> None:
        self.trial, self.trace = trial, trace
        self.candidates: dict[str, Candidate] = {}
        self._values: dict[str, MetricValues] = {}
        for event in trace.of("candidate"):
            self.candidates[event["text"]] = Candidate(**{key: value for key, value in event.items() if key != "event"})
        for event in trace.of("score"):
            if event["start"] != self.edits(event["text"]):
                raise DataError(
                    f"the scores of {short_repr(event['text'])} are inconsistent: the file was edited, or written by "
                    "two processes; give another --out",
                    file=trace.path,
                )
            self._append(event["text"], event["values"])

    def enter(self, candidate: Candidate) -> bool:
        """Add a template and return True, or return False where it was entered before."""
        if candidate.text in self.candidates:
            return False
        self.candidates[candidate.text] = candidate
        self.trace.add("candidate", **vars(candidate))
        return True

    def score(self, texts: Sequence[str], count: int) -> None:
        """Score the templates on the first ``count`` edits, as far as they have not been scored on them."""
        for start in sorted({self.edits(text) for text in texts if self.edits(text) < count}):
            behind = [text for text in texts if self.edits(text) == start]
            for text, values in zip(behind, self.trial.values(behind, start, count), strict=True):
                self.trace.add("score", text=text, start=start, stop=count, values=values)
                self._append(text, values)

    def edits(self, text: str) -> int:
        """Return how many edits a template has been scored on."""
        return len(self._values[text][METRICS[0]]) if text in self._values else 0

    def values(self, text: str, count: int) -> MetricValues:
        """Return a template's metric values on the first ``count`` edits."""
        return {name: row[:count] for name, row in self._values[text].items()}

    def ranked(self, count: int) -> list[RankedTemplate]:
        """Return all templates scored on at least ``count`` edits, by their scores on those, the best first."""
        templates = [
            RankedTemplate(text, metric_means(self.values(text, count)), overall_score(self.values(text, count)))
            for text in self.candidates
            if self.edits(text) >= count
        ]
        return sorted(templates, key=lambda template: (-template.score, template.text))

    def best(self, count: int, number: int) -> RankedTemplate:
        """Return the best template as of a round; a resumed search has later ones, and must not use them."""
        return next(template for template in self.ranked(count) if self.candidates[template.text].round <= number)

    def _append(self, text: str, values: MetricValues) -> None:
        self._values[text] = concatenated(self._values[text], values) if text in self._values else values
