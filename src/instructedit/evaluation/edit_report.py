"""An edit's report on itself: whether it took, how surely, in which other words, and what else moved.

    took          greedy decoding of the edit prompt gives the target (WILD's way: free generation, whole answer)
    probability   of the whole answer after the prompt, exp(sum of log p(token)), before and after the edit

Paraphrases are made from the shipped relation templates where one fits the prompt. A fixed set of unrelated prompts is
continued before and after; every answer that differs has moved.
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
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import join
from instructedit.records import EditRequest

#: Paraphrases of one request that are asked at most.
PARAPHRASES = 3
#: A delta is far outside what its editor made in training beyond this factor.
FAR = 2.0


@dataclass(frozen=True)
class Answer:
    """A prompt with the model's answer, by greedy decoding up to its natural end, before and after the edit.

    Attributes:
        took: whether the answer after the edit is the target; None where no target is asked for.
    """

    prompt: str
    before: str
    after: str
    took: bool | None = None


@dataclass(frozen=True)
class RequestReport:
    """What became of one request, with all requests of its delta attached.

    Attributes:
        answer: to the edit prompt.
        target, old: (before, after) the probability of the target and of the old answer, which is the request's
            ``ground_truth`` or, without one, what the unedited model says.
        paraphrases: answers to the prompt in other words; empty where no template fits.
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
    """What a delta did to its base model.

    Attributes:
        requests: one report a request.
        moved: the unrelated prompts whose answers changed.
        unrelated: how many unrelated prompts were asked.
        norm: Frobenius norm of the whole delta.
        warnings: about the delta as a whole.
    """

    requests: tuple[RequestReport, ...]
    moved: tuple[Answer, ...]
    unrelated: int
    norm: float
    warnings: tuple[str, ...]

    @property
    def succeeded(self) -> bool:
        """Whether every request took."""
        return all(report.answer.took for report in self.requests)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; probabilities rounded to six places."""
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
            "unrelated": {"asked": self.unrelated, "moved": [asdict(answer) for answer in self.moved]},
            "norm": round(self.norm, 6),
            "warnings": list(self.warnings),
        }


def _before_and_after(pair: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("before", "after"), (round(value, 6) for value in pair), strict=True))


def report_edit(
    language_model: LanguageModel, delta: Delta, editor: Editor | None = None, *, new_tokens: int = 16
) -> EditReport:
    """Ask the model about a delta's requests, their paraphrases and unrelated prompts, without and with it attached.

    Args:
        delta: with its requests in ``metadata``.
        editor: that made it, whose usual delta size it is compared with.
        new_tokens: of every answer at least; a longer target gets as many as it needs.

    Raises:
        DeltaError: the delta was made for another base model.
    """
    requests = delta.metadata.requests
    paraphrases = [paraphrases_of(request) for request in requests]
    asked = [(request.prompt, request) for request in requests]
    asked += [(prompt, request) for request, own in zip(requests, paraphrases, strict=True) for prompt in own]
    unrelated = [
        prompt for prompt in unrelated_prompts() if not any(r.subject and r.subject in prompt for r in requests)
    ]
    prompts = [*(prompt for prompt, _ in asked), *unrelated]
    length = max([new_tokens, *(len(language_model.text.pair("a", r.target).ids) + 4 for r in requests)])
    old = generate(language_model, prompts, new_tokens=length)
    new = generate(language_model, prompts, delta=delta, new_tokens=length)
    answers = [
        Answer(prompt, natural_stop(before), natural_stop(after), matches(after, [request.target]))
        for (prompt, request), before, after in zip(asked, old, new, strict=False)
    ]
    beside = [
        Answer(prompt, natural_stop(before), natural_stop(after))
        for prompt, before, after in zip(unrelated, old[len(asked) :], new[len(asked) :], strict=True)
    ]
    first, others = answers[: len(requests)], iter(answers[len(requests) :])
    probabilities = _probabilities(language_model, delta, requests, [answer.before for answer in first])
    reports = []
    for request, prompts_of, answer, (target, past) in zip(requests, paraphrases, first, probabilities, strict=True):
        own = tuple(next(others) for _ in prompts_of)
        warnings = (*_about_request(language_model, request), *_about_answer(answer, request, target))
        reports.append(RequestReport(request, answer, target, past, own, warnings))
    moved = tuple(answer for answer in beside if normalised(answer.before) != normalised(answer.after))
    norm = delta.norm()
    return EditReport(
        tuple(reports), moved, len(unrelated), norm, tuple(_about_delta(norm, reports, moved, len(unrelated), editor))
    )


@cache
def unrelated_prompts() -> tuple[str, ...]:
    """The fixed prompts that have nothing to do with most edits."""
    return tuple(read_yaml("unrelated_prompts.yaml")["prompts"])


def paraphrases_of(request: EditRequest) -> tuple[str, ...]:
    """The edit prompt in other words, from the relation templates that it fits; empty where none does."""
    subject = request.subject
    if not subject or subject not in request.prompt:
        return ()
    pattern = request.prompt.replace(subject, "{subject}").strip()
    for templates in relation_templates().values():
        ways = [*templates["questions"], *templates["statements"]]
        if pattern in ways:
            others = [way for way in ways if way != pattern]
            return tuple(way.replace("{subject}", subject) for way in others[:PARAPHRASES])
    question = question_form(request.prompt)
    return (question,) if question else ()


def _probabilities(
    language_model: LanguageModel, delta: Delta, requests: Sequence[EditRequest], said: Sequence[str]
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Of each request's target and old answer, (before, after) each."""
    olds = [request.ground_truth or answer or "." for request, answer in zip(requests, said, strict=True)]
    queries = [Query(0, r.prompt, text) for r, old in zip(requests, olds, strict=True) for text in (r.target, old)]
    before = score(language_model, 0, queries, None)
    with delta.attached(language_model):
        after = score(language_model, 0, queries, None)

    def probability(scored: Scored) -> float:
        return math.exp(scored.log_likelihood * len(scored.predicted))

    pairs = [(probability(old), probability(new)) for old, new in zip(before, after, strict=True)]
    return list(zip(pairs[::2], pairs[1::2], strict=True))  # of the target, of the old answer


def _about_request(language_model: LanguageModel, request: EditRequest) -> list[str]:
    """What can be told without editing."""
    warnings = []
    if request.subject and request.subject.casefold() not in request.prompt.casefold():
        warnings.append(
            f"the subject {request.subject!r} does not stand in the prompt {request.prompt!r}; write it as the prompt "
            "does, or leave it out"
        )
    odd = unwritable(language_model, request.target)
    if odd:
        warnings.append(
            f"the model can hardly write {odd!r} of the target {request.target!r}: its tokenizer has no token for it "
            "and spells it in bytes, so the model has seen it rarely or never. Choose another spelling of the target"
        )
    return warnings


def unwritable(language_model: LanguageModel, text: str) -> str:
    """The characters of a text that the tokenizer spells in several byte tokens, or does not give back at all."""
    tokenizer = language_model.tokenizer

    def tokens(piece: str) -> int:
        return len(tokenizer(piece, add_special_tokens=False)["input_ids"])

    spelled = [c for c in dict.fromkeys(text) if not c.isascii() and tokens(c) > tokens("x")]
    if spelled:
        return "".join(spelled)
    ids = tokenizer("".join(join("a", text)), add_special_tokens=False)["input_ids"]
    back = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    return "" if "".join(text.split()) in "".join(back.split()) else text


def _about_answer(answer: Answer, request: EditRequest, target: tuple[float, float]) -> list[str]:
    if answer.took:
        return []
    changed = "still says" if normalised(answer.after) == normalised(answer.before) else "says"
    return [
        f"the edit did not take: after {request.prompt!r} the model {changed} {answer.after!r} instead of "
        f"{request.target!r} (probability {target[0]:.3f} before, {target[1]:.3f} after). Ask in other words, take "
        "another --editor, or make fewer edits at once"
    ]


def _about_delta(
    norm: float, reports: Sequence[RequestReport], moved: Sequence[Answer], unrelated: int, editor: Editor | None
) -> list[str]:
    warnings = []
    failed = sum(not report.answer.took for report in reports)
    if failed and len(reports) > 1:
        warnings.append(
            f"{failed} of {len(reports)} edits did not take. Deltas that are added up disturb one another: from about "
            "five on the bundled model begins to lose them"
        )
    if len(moved) > unrelated / 4:
        warnings.append(
            f"{len(moved)} of {unrelated} unrelated answers changed: the model is damaged. Make fewer edits at "
            "once, or smaller ones"
        )
    usual = editor.usual_norms if isinstance(editor, GradientEditor) else None
    if usual is not None and not usual[0] / FAR <= norm <= usual[1] * FAR * math.sqrt(len(reports)):
        warnings.append(
            f"the delta has a norm of {norm:.3g}; the editor's own edits had {usual[0]:.3g} to {usual[1]:.3g} in "
            "training. The request is unlike those that it was trained on; check the answers"
        )
    return warnings
