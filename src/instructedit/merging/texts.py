"""The texts at whose tokens a merged edit is to do what the edit does alone.

Its own prompt is not enough: the merged change would answer to that wording only. So the prompt also stands behind
another sentence, is put about other subjects, which the edit may leave as they are, and its subject is put into
sentences about the same relation in other words. A text need not be right: what is kept is what the edit does there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn import functional

from instructedit.data.facts import relation_templates, shipped_facts
from instructedit.editors.contrast import OTHER_SUBJECT, with_other_subject
from instructedit.models.language_model import LanguageModel
from instructedit.models.next_token import next_token_log_probs
from instructedit.records import EditRequest

#: A prompt and the answer after it.
Text = tuple[str, str]


@dataclass(frozen=True)
class Counts:
    """How many texts of each kind an edit gets, beside its own prompt.

    Attributes:
        others: the prompt about another subject.
        prefixed: the prompt behind another sentence.
        templates: the subject in the relation templates that are most like the prompt.
        prefixed_templates: the same, behind another sentence.
    """

    others: int = 2
    prefixed: int = 2
    templates: int = 4
    prefixed_templates: int = 2


def texts_of(
    requests: Sequence[EditRequest],
    language_model: LanguageModel,
    answers: Sequence[str],
    counts: Counts | None = None,
    seed: int = 0,
) -> list[list[Text]]:
    """Return the texts of each request, its own prompt first.

    A request whose subject is not in its prompt has no texts about subjects.

    Args:
        requests: the edits.
        language_model: the base model.
        answers: the text that follows each prompt; see :meth:`GradientEditor.answer`.
        counts: of the texts.
        seed: of their choice; each request's texts depend on itself and the seed alone.
    """
    counts = counts or Counts()
    facts = shipped_facts()
    templates = [way for entry in relation_templates().values() for way in (*entry["statements"], *entry["questions"])]
    nearest = _nearest(requests, language_model, templates, max(counts.templates, counts.prefixed_templates))
    texts = []
    for request, answer, near in zip(requests, answers, nearest, strict=True):
        rng = random.Random(f"{seed}-{request.prompt}-{request.target}")
        prompts = [request.prompt]
        subject = request.subject if request.subject and request.subject in request.prompt else None
        if subject is not None:
            prompts += [request.prompt.replace(subject, rng.choice(facts).subject) for _ in range(counts.others)]
        prompts += [f"{rng.choice(facts).sentence(rng)} {request.prompt}" for _ in range(counts.prefixed)]
        if subject is not None:
            filled = [template.replace("{subject}", subject) for template in near]
            prompts += filled[: counts.templates]
            prompts += [f"{rng.choice(facts).sentence(rng)} {text}" for text in filled[: counts.prefixed_templates]]
        texts.append([(prompt, answer) for prompt in prompts])
    return texts


def _nearest(
    requests: Sequence[EditRequest], language_model: LanguageModel, templates: Sequence[str], count: int
) -> list[list[str]]:
    """Return for each request the templates after which the base model expects the most similar next words."""
    prompts = [with_other_subject(request.prompt, request.subject) or request.prompt for request in requests]
    ways = [template.replace("{subject}", OTHER_SUBJECT) for template in templates]
    expected = next_token_log_probs(language_model, [*prompts, *ways])
    expected = functional.normalize(expected - expected[len(prompts) :].mean(0), dim=-1)
    similar = expected[: len(prompts)] @ expected[len(prompts) :].mT
    best = similar.topk(min(count, len(templates)), dim=-1).indices.tolist()
    return [[templates[index] for index in row] for row in best]
