"""A query about an edit, and the result of putting it to the edited and the unedited model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

#: Length of a generated text, in tokens.
TEXT_TOKENS = 60


class ResponseKind(StrEnum):
    """How the model responds to a query.

    ANSWER: teacher forcing or free generation, depending on the protocol; scored by the query's criterion, in [0, 1].
    LIKELIHOOD: teacher forcing; scored by the mean log probability of the answer's tokens, in nats.
    TEXT: greedy decoding of :data:`TEXT_TOKENS` tokens; not scored, the metric reads the text.
    """

    ANSWER = "answer"
    LIKELIHOOD = "likelihood"
    TEXT = "text"


class Criterion(StrEnum):
    """When an ANSWER response is right.

    GIVEN: the response is one of the query's answers.
    UNCHANGED: the response is that of the unedited model.
    ABSENT: the response is none of the query's answers.
    """

    GIVEN = "given"
    UNCHANGED = "unchanged"
    ABSENT = "absent"


@dataclass(frozen=True, eq=False)
class MetricQuery:
    """A prompt for the model with one edit; two metrics that need the same query share the object.

    Attributes:
        edit: row of the edit in its batch.
        prompt: text before the response.
        answers: aliases of the right answer, the preferred one first; with :attr:`Criterion.ABSENT` all unwanted ones.
        kind: how the model responds.
        criterion: when an ANSWER response is right.
        before: whether a LIKELIHOOD query is put to the unedited model as well; ANSWER queries always are, TEXT
            queries never.
    """

    edit: int
    prompt: str
    answers: tuple[str, ...] = ()
    kind: ResponseKind = ResponseKind.ANSWER
    criterion: Criterion = Criterion.GIVEN
    before: bool = True


@dataclass(frozen=True)
class Result:
    """The responses to one query.

    Attributes:
        query: the query.
        score: of the edited model's response, see :class:`ResponseKind`; NaN for TEXT.
        score_before: of the unedited model's response; NaN where it was not queried.
        text: what the edited model generated; empty under teacher forcing.
    """

    query: MetricQuery
    score: float = math.nan
    score_before: float = math.nan
    text: str = ""
