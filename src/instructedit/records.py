"""Edit requests, the probes that evaluate an edit, and the records that hold both."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

Text = Annotated[str, StringConstraints(pattern=r"\S")]


class ProbeKind(StrEnum):
    """What a probe tests; the kinds follow the fields of the public data sets."""

    REPHRASE = "rephrase"  # the edit prompt rephrased; the new target is expected
    NEIGHBOUR = "neighbour"  # another subject whose object in the same relation is the edit's old object
    SAME_SUBJECT = "same_subject"  # another fact about the edited subject (KnowEdit: Relation_Specificity)
    FORGETFULNESS = "forgetfulness"  # KnowEdit: a prompt that explicitly asks for the old answer
    UNRELATED = "unrelated"  # a fact or question without any relation to the edit
    OTHER_TOPIC = "other_topic"  # ConvSent: an opinion about another entity
    REASONING = "reasoning"  # portability: a two-hop question that the new fact changes
    SUBJECT_ALIAS = "subject_alias"  # portability: the subject under another name
    LOGICAL = "logical"  # portability: symmetric, inverse and otherwise implied facts


PORTABILITY_KINDS = (ProbeKind.REASONING, ProbeKind.SUBJECT_ALIAS, ProbeKind.LOGICAL)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EditRequest(_Frozen):
    """A single edit: after ``prompt`` the model should generate ``target``.

    Attributes:
        prompt: text before the answer.
        target: the new answer. Exactly one space separates it from the prompt
            (see :func:`instructedit.models.text.join_prompt_and_target`).
        subject: the entity that the prompt is about, spelled as in the prompt.
        ground_truth: the old answer.
        task: name of the task that the request belongs to.
        instruction: instruction in the user's own words. The editor reads it instead of the task's name and
            instruction templates.
        label: ConvSent only: the requested sentiment, ``positive`` or ``negative``.
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
    def _reject_blank(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError(
                "the instruction is empty. Leave it out to use the task's instruction template; to edit without an "
                "instruction, use --no-instruction (in Python: tasks=None)"
            )
        return text


class Probe(_Frozen):
    """A query that evaluates an edit.

    Attributes:
        kind: what the probe tests.
        prompt: text before the answer.
        answers: aliases of one correct answer, the preferred one first.
    """

    kind: ProbeKind
    prompt: Text
    answers: tuple[Text, ...] = Field(min_length=1)


class EditRecord(_Frozen):
    """A request with all its probes, as read from a data file.

    Attributes:
        record_id: identifier that is unique within its file, so that results can be traced back to the data.
        request: the edit.
        rephrases: the edit prompt rephrased (generalization).
        probes: all other probes, of any kind.
        same_label_replies: ConvSent only: replies about the topic with the requested sentiment; the request's target
            is one of them.
        other_label_replies: ConvSent only: replies about the topic with the opposite sentiment.
    """

    record_id: str
    request: EditRequest
    rephrases: tuple[Text, ...] = ()
    probes: tuple[Probe, ...] = ()
    same_label_replies: tuple[Text, ...] = ()
    other_label_replies: tuple[Text, ...] = ()

    def of_kind(self, *kinds: ProbeKind) -> tuple[Probe, ...]:
        """Return the probes of these kinds, in the record's order."""
        return tuple(probe for probe in self.probes if probe.kind in kinds)
