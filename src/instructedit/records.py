"""What every room speaks: an edit request, the probes that judge it, and the record that holds both."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

Text = Annotated[str, StringConstraints(pattern=r"\S")]


class ProbeKind(StrEnum):
    """What a probe asks of the edited model. The kinds come from the data sets' own fields."""

    REPHRASE = "rephrase"  # the edit prompt in other words; the new target is wanted
    NEIGHBOUR = "neighbour"  # another subject that has the OLD object in the same relation
    SAME_SUBJECT = "same_subject"  # another fact of the edited subject (KnowEdit: Relation_Specificity)
    FORGETFULNESS = "forgetfulness"  # KnowEdit: the old answer is asked for explicitly
    UNRELATED = "unrelated"  # a fact or question that has nothing to do with the edit
    OTHER_TOPIC = "other_topic"  # ConvSent: an opinion about another entity
    REASONING = "reasoning"  # portability: follows from the new fact in one more step
    SUBJECT_ALIAS = "subject_alias"  # portability: the subject under another name
    LOGICAL = "logical"  # portability: symmetric, inverse or otherwise implied facts


PORTABILITY_KINDS = (ProbeKind.REASONING, ProbeKind.SUBJECT_ALIAS, ProbeKind.LOGICAL)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EditRequest(_Frozen):
    """One wish: after ``prompt`` the model is to say ``target``.

    ``prompt`` and ``target`` are joined by one space when neither brings one (see ``models.text.join``).
    ``instruction`` is a text of the user's own; it is read alone, without the name or text of any task beside it.
    ``label`` is ConvSent's wanted sentiment.
    """

    prompt: Text
    target: Text
    subject: str | None = None
    ground_truth: str | None = None
    task: str | None = None
    instruction: str | None = None
    label: str | None = None

    @field_validator("instruction")
    @classmethod
    def _says_something(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError(
                "the instruction is empty. Leave it out to take the task's own text; to edit without any, give "
                "--no-instruction (in Python: tasks=None)"
            )
        return text


class Probe(_Frozen):
    """A query that judges an edit. ``answers`` are aliases of one right answer, the preferred one first."""

    kind: ProbeKind
    prompt: Text
    answers: tuple[Text, ...] = Field(min_length=1)


class EditRecord(_Frozen):
    """A request with all its probes, as read from a data file.

    Attributes:
        record_id: unique inside its file; keeps results traceable to the data.
        rephrases: the edit prompt in other words (Generalization).
        probes: every other query, by kind.
        same_label_replies, other_label_replies: ConvSent only: replies about the topic with the wanted and
            with the opposite sentiment. The request's target is one of the wanted ones.
    """

    record_id: str
    request: EditRequest
    rephrases: tuple[Text, ...] = ()
    probes: tuple[Probe, ...] = ()
    same_label_replies: tuple[Text, ...] = ()
    other_label_replies: tuple[Text, ...] = ()

    def of_kind(self, *kinds: ProbeKind) -> tuple[Probe, ...]:
        """The probes of these kinds, in the record's order."""
        return tuple(probe for probe in self.probes if probe.kind in kinds)
