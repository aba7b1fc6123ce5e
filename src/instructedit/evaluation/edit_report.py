"""A report on the effect of an edit: success, probabilities, paraphrases, and unrelated answers that changed.

    success       free generation after the edit prompt gives exactly the target (as in WILD)
    probability   of the whole answer after the prompt, exp(sum of log p(token)), before and after the edit

Paraphrases are made from the shipped relation templates where one fits the prompt. A fixed set of unrelated prompts is
continued before and after the edit, and the answers that changed are listed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from instructedit.assets import read_yaml
from instructedit.data.facts import relation_templates
from instructedit.data.schemas.knowedit import question_form
from instructedit.deltas.delta import Delta
from instructedit.editors.base import Editor
from instructedit.editors.gradient import GradientEditor
from instructedit.evaluation.generation import generate, matches, natural_stop, normalised
from instructedit.evaluation.scoring import Query, Scored, score
from instructedit.models.language_model import LanguageModel, check_language_model
from instructedit.models.text import join_prompt_and_target
from instructedit.records import EditRequest

#: Paraphrases of one request, at most.
MAX_PARAPHRASES = 3
#: Unrelated prompts whose answers are compared.
UNRELATED = 24
#: Of these answers the first words are compared.
COMPARED_WORDS = 3
#: A delta's norm is unusual if it differs from those of its editor's training by more than this factor.
UNUSUAL_NORM_FACTOR = 2.0


@dataclass(frozen=True)
class Answer:
    """The answers to a prompt, by greedy decoding up to the end of the first sentence.

    Attributes:
        prompt: text before the answer.
        before: answer of the unedited model.
        after: answer of the edited model.
        success: whether the answer after the edit is the target; None for unrelated prompts.
    """

    prompt: str
    before: str
    after: str
    success: bool | None = None


@dataclass(frozen=True)
class RequestReport:
    """The effect on one request, with the whole delta attached.

    Attributes:
        request: the request.
        answer: answers to the edit prompt.
        target: probability of the target, (before, after).
        old: probability of the old answer, (before, after). The old answer is the request's ``ground_truth`` or,
            without one, the answer of the unedited model.
        paraphrases: answers to paraphrases of the edit prompt; empty where no template fits.
        warnings: what is wrong with the request or its edit, and what to do.
    """

    request: EditRequest
    answer: Answer
    target: tuple[float, float]
    old: tuple[float, float]
    paraphrases: tuple[Answer, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class EditReport:
    """The effect of a delta on its base model.

    Attributes:
        requests: one report per request.
        changed: the unrelated prompts whose answers begin in another way, in their first three words.
        unrelated: number of unrelated prompts.
        norm: Frobenius norm of the whole delta.
        warnings: about the delta as a whole.
    """

    requests: tuple[RequestReport, ...]
    changed: tuple[Answer, ...]
    unrelated: int
    norm: float
    warnings: tuple[str, ...]

    @property
    def succeeded(self) -> bool:
        """Whether the edited model gives the target of every request."""
        return all(report.answer.success for report in self.requests)

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON, with probabilities rounded to six places."""
        return {
            "succeeded": self.succeeded,
            "requests": [
                {
                    "request": report.request.model_dump(exclude_none=True),
                    **asdict(report.answer),
                    "target_probability": _before_and_after(report.target),
                    "old_answer_probability": _before_and_after(report.old),
                    "paraphrases": [asdict(answer) for answer in report.paraphrases],
                    "warnings": list(report.warnings),
                }
                for report in self.requests
            ],
            "unrelated": {"prompts": self.unrelated, "changed": [asdict(answer) for answer in self.changed]},
            "norm": round(self.norm, 6),
            "warnings": list(self.warnings),
        }


def _before_and_after(pair: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("before", "after"), (round(value, 6) for value in pair), strict=True))


def report_edit(
    language_model: LanguageModel, delta: Delta, editor: Editor | None = None, *, new_tokens: int = 16
) -> EditReport:
    """Generate answers to a delta's requests, their paraphrases and unrelated prompts, without and with it attached.

    Args:
        language_model: the base model.
        delta: the edit, with its requests in ``metadata``.
        editor: the editor that made it; its usual delta norms are compared with the delta's.
        new_tokens: length of an answer, at most; longer targets raise it.

    Raises:
        DeltaError: the delta was made for another base model.
    """
    check_language_model(language_model)
    requests = delta.metadata.requests
    paraphrases = [paraphrases_of(request) for request in requests]
    rewrites = [(request.prompt, request) for request in requests]
    rewrites += [(prompt, request) for request, own in zip(requests, paraphrases, strict=True) for prompt in own]
    others = [prompt for prompt in unrelated_prompts() if not any(r.subject and r.subject in prompt for r in requests)]
    length = max([new_tokens, *(len(language_model.text.encode_pair("a", r.target).ids) + 4 for r in requests)])
    old = generate(language_model, [*(prompt for prompt, _ in rewrites), *others], new_tokens=length)
    certain = _most_certain(language_model, others, old[len(rewrites) :])
    unrelated = [others[index] for index in certain]
    old = [*old[: len(rewrites)], *(old[len(rewrites) + index] for index in certain)]
    new = generate(language_model, [*(prompt for prompt, _ in rewrites), *unrelated], delta=delta, new_tokens=length)
    answers = [
        Answer(prompt, natural_stop(before), natural_stop(after), matches(after, [request.target]))
        for (prompt, request), before, after in zip(rewrites, old, new, strict=False)
    ]
    unrelated_answers = [
        Answer(prompt, natural_stop(before), natural_stop(after))
        for prompt, before, after in zip(unrelated, old[len(rewrites) :], new[len(rewrites) :], strict=True)
    ]
    first, further = answers[: len(requests)], iter(answers[len(requests) :])
    probabilities = _probabilities(language_model, delta, requests, [answer.before for answer in first])
    reports = []
    for request, prompts_of, answer, (target, past) in zip(requests, paraphrases, first, probabilities, strict=True):
        own = tuple(next(further) for _ in prompts_of)
        alone = len(requests) == 1
        warnings = (*_about_request(language_model, request, editor), *_about_answer(answer, request, target, alone))
        reports.append(RequestReport(request, answer, target, past, own, warnings))
    changed = tuple(answer for answer in unrelated_answers if _beginning(answer.before) != _beginning(answer.after))
    norm = delta.norm()
    return EditReport(
        tuple(reports),
        changed,
        len(unrelated),
        norm,
        tuple(_about_delta(norm, reports, changed, len(unrelated), editor)),
    )


def _beginning(answer: str) -> list[str]:
    """Return the words of an answer that are compared: a model that goes on talking changes a later word easily."""
    return normalised(answer).split()[:COMPARED_WORDS]


def _most_certain(language_model: LanguageModel, prompts: Sequence[str], answers: Sequence[str]) -> list[int]:
    """Return the indices of the :data:`UNRELATED` prompts whose answers the base model is most certain of, in order.

    Where a model only rambles on, any edit changes a word sooner or later, which says nothing about the edit.
    """
    texts = [natural_stop(answer) for answer in answers]
    answered = [index for index, text in enumerate(texts) if text]
    scored = score(language_model, 0, [Query(0, prompts[index], texts[index]) for index in answered], None)
    certainty = dict(zip(answered, (each.log_likelihood for each in scored), strict=True))
    return sorted(sorted(answered, key=lambda index: -certainty[index])[:UNRELATED])


@cache
def unrelated_prompts() -> tuple[str, ...]:
    """Return fixed prompts that are unrelated to most edits; :func:`report_edit` asks some of them."""
    return tuple(read_yaml("unrelated_prompts.yaml")["prompts"])


def paraphrases_of(request: EditRequest) -> tuple[str, ...]:
    """Return paraphrases of the edit prompt from the relation templates that it fits; empty where none does."""
    subject = request.subject
    if not subject or subject not in request.prompt:
        return ()
    pattern = request.prompt.replace(subject, "{subject}").strip()
    for templates in relation_templates().values():
        ways = [*templates["questions"], *templates["statements"]]
        if pattern in ways:
            others = [way for way in ways if way != pattern]
            return tuple(way.replace("{subject}", subject) for way in others[:MAX_PARAPHRASES])
    question = question_form(request.prompt)
    return (question,) if question else ()


def _probabilities(
    language_model: LanguageModel, delta: Delta, requests: Sequence[EditRequest], answers: Sequence[str]
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return each request's probabilities of the target and of the old answer, each as (before, after)."""
    olds = [request.ground_truth or answer or "." for request, answer in zip(requests, answers, strict=True)]
    queries = [Query(0, r.prompt, text) for r, old in zip(requests, olds, strict=True) for text in (r.target, old)]
    before = score(language_model, 0, queries, None)
    with delta.attached(language_model):
        after = score(language_model, 0, queries, None)

    def probability(scored: Scored) -> float:
        return math.exp(scored.log_likelihood * len(scored.predicted))

    pairs = [(probability(old), probability(new)) for old, new in zip(before, after, strict=True)]
    return list(zip(pairs[::2], pairs[1::2], strict=True))  # of the target, of the old answer


def _about_request(language_model: LanguageModel, request: EditRequest, editor: Editor | None) -> list[str]:
    """Return warnings that do not depend on the edit."""
    warnings = []
    if isinstance(editor, GradientEditor) and editor.reads_other_subject and not request.subject:
        warnings.append(
            f"the request {request.prompt!r} does not name its subject, so the editor cannot compare it with another "
            "subject, and other subjects may change too. Give the subject, spelled as in the prompt"
        )
    if request.subject and request.subject.casefold() not in request.prompt.casefold():
        warnings.append(
            f"the subject {request.subject!r} does not occur in the prompt {request.prompt!r}; spell it as the prompt "
            "does, or leave it out"
        )
    odd = unwritable(language_model, request.target)
    if odd:
        warnings.append(
            f"the tokenizer has no token for {odd!r} in the target {request.target!r} and encodes it as bytes, so it "
            "was rare or absent in pretraining. Choose another spelling of the target"
        )
    return warnings


def unwritable(language_model: LanguageModel, text: str) -> str:
    """Return the characters of a text that the tokenizer encodes as several bytes, or the text if it is not decoded."""
    tokenizer = language_model.tokenizer

    def tokens(piece: str) -> int:
        return len(tokenizer(piece, add_special_tokens=False)["input_ids"])

    spelled = [c for c in dict.fromkeys(text) if not c.isascii() and tokens(c) > tokens("x")]
    if spelled:
        return "".join(spelled)
    ids = tokenizer("".join(join_prompt_and_target("a", text)), add_special_tokens=False)["input_ids"]
    back = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    return "" if "".join(text.split()) in "".join(back.split()) else text


def _about_answer(answer: Answer, request: EditRequest, target: tuple[float, float], alone: bool) -> list[str]:
    if answer.success:
        return []
    verb = "still gives" if normalised(answer.after) == normalised(answer.before) else "gives"
    advice = "Rephrase the prompt, or try another --editor"
    return [
        f"the edit failed: after {request.prompt!r} the model {verb} {answer.after!r} instead of "
        f"{request.target!r} (probability {target[0]:.3f} before, {target[1]:.3f} after). "
        + (advice if alone else f"{advice}; it may also hold by itself, and be lost among the others")
    ]


def _about_delta(
    norm: float, reports: Sequence[RequestReport], changed: Sequence[Answer], unrelated: int, editor: Editor | None
) -> list[str]:
    warnings = []
    failed = sum(not report.answer.success for report in reports)
    if failed and len(reports) > 1:
        warnings.append(
            f"{failed} of {len(reports)} edits failed. From about five on, deltas that are added up (`--combine sum`, "
            "--apply twice, a + b) interfere; `instructedit edit --requests FILE --combine distil` keeps most of a "
            "hundred"
        )
    if len(changed) > unrelated / 4:
        warnings.append(
            f"{len(changed)} of {unrelated} unrelated answers changed: the edit damages the model. "
            + ("Make fewer edits at once" if len(reports) > 1 else "Choose a narrower --task or --instruction")
            + ", or scale the delta down (in Python: delta.scale(0.7))"
        )
    usual = editor.usual_norms if isinstance(editor, GradientEditor) else None
    if usual is not None and not usual[0] / UNUSUAL_NORM_FACTOR <= norm <= usual[1] * UNUSUAL_NORM_FACTOR * math.sqrt(
        len(reports)
    ):
        warnings.append(
            f"the delta has a norm of {norm:.3g}, outside of the range of the editor's training ({usual[0]:.3g} to "
            f"{usual[1]:.3g}). The request differs from the training requests; check the answers"
        )
    return warnings
