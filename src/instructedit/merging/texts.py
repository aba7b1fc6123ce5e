"""The texts at whose tokens a merged edit is to do what the edit does alone.

Its own prompt is not enough: the merged change would answer to that wording only. So the prompt also stands behind
another sentence, is put about similar subjects, which the edit may leave as they are, and its subject is put into other
sentences: of the shipped templates that call for a similar next word, those in which the edit's own answer is most
likely. A text need not be right: what is kept is what the edit does there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from instructedit.data.facts import relation_templates, shipped_facts
from instructedit.deltas.delta import Delta
from instructedit.editors.contrast import OTHER_SUBJECT, with_other_subject
from instructedit.editors.similar_subjects import SimilarSubjects
from instructedit.merging.stacking import Text, stack, text_batches
from instructedit.models.language_model import LanguageModel
from instructedit.models.next_token import next_token_log_probs
from instructedit.records import EditRequest

#: Templates that an edit tries for each that it uses, and texts at a time.
CANDIDATES, BATCH = 2, 64
#: Similar subjects from which an edit draws each that it uses.
SIMILAR = 3


@dataclass(frozen=True)
class Counts:
    """How many texts of each kind an edit gets, beside its own prompt.

    Attributes:
        others: the prompt about a similar subject.
        prefixed: the prompt behind another sentence.
        templates: the subject in relation templates, see the module.
        prefixed_templates: the same, behind another sentence.
    """

    others: int = 6
    prefixed: int = 2
    templates: int = 9
    prefixed_templates: int = 6


def texts_of(
    deltas: Sequence[Delta],
    requests: Sequence[EditRequest],
    answers: Sequence[str],
    language_model: LanguageModel,
    counts: Counts | None = None,
    seed: int = 0,
) -> list[list[Text]]:
    """Return the texts of each request, its own prompt first.

    A request whose subject is not in its prompt has no texts about subjects.

    Args:
        deltas: the edits.
        requests: what they change.
        answers: the text that follows each prompt; see :meth:`GradientEditor.answer`.
        language_model: the base model.
        counts: of the texts.
        seed: of their choice; each request's texts depend on itself and the seed alone.
    """
    counts = counts or Counts()
    facts = shipped_facts()
    templates = [way for entry in relation_templates().values() for way in (*entry["statements"], *entry["questions"])]
    used = max(counts.templates, counts.prefixed_templates)
    nearest = _nearest(requests, language_model, templates, CANDIDATES * used)
    candidates = [
        [(way.replace("{subject}", subject), answer) for way in near] if (subject := _subject(request)) else []
        for request, answer, near in zip(requests, answers, nearest, strict=True)
    ]
    chosen = _where_they_hold(deltas, candidates, language_model, used)
    similar = SimilarSubjects(language_model) if any(_subject(request) for request in requests) else None
    texts = []
    for request, answer, filled in zip(requests, answers, chosen, strict=True):
        rng = random.Random(f"{seed}-{request.prompt}-{request.target}")
        prompts = [request.prompt]
        if similar and (subject := _subject(request)):
            near = similar.nearest(subject, SIMILAR * counts.others)
            drawn = rng.sample(near, min(len(near), counts.others))
            prompts += [request.prompt.replace(subject, other) for other in drawn]
        prompts += [f"{rng.choice(facts).sentence(rng)} {request.prompt}" for _ in range(counts.prefixed)]
        prompts += filled[: counts.templates]
        prompts += [f"{rng.choice(facts).sentence(rng)} {text}" for text in filled[: counts.prefixed_templates]]
        texts.append([(prompt, answer) for prompt in prompts])
    return texts


def _subject(request: EditRequest) -> str | None:
    """Return the subject of a request; None where the prompt does not name it."""
    return request.subject if request.subject and request.subject in request.prompt else None


@torch.no_grad()
def _where_they_hold(
    deltas: Sequence[Delta], texts: Sequence[Sequence[Text]], language_model: LanguageModel, count: int
) -> list[list[str]]:
    """Return for each edit the ``count`` of its prompts after which it makes its answer most likely, best first."""
    names = list(dict.fromkeys(name for delta in deltas for name in delta.factors))
    split = language_model.split(min(language_model.structure.block_of(name) for name in names))
    scored: list[list[tuple[float, str]]] = [[] for _ in texts]
    for part in text_batches(deltas, texts, language_model, split.split_layer, BATCH):
        labels, rows = part.state.batch.labels, part.state.batch.rows.cpu()
        with stack(part.deltas, names).attached(language_model, part.rows):
            losses = functional.cross_entropy(split.top(part.state).float(), labels, reduction="none").cpu()
        worst = torch.zeros(len(part.owners)).scatter_reduce(0, rows, losses, "amax")
        for (edit, number), loss in zip(part.owners, worst.tolist(), strict=True):
            scored[edit].append((loss, texts[edit][number][0]))
    return [[prompt for _, prompt in sorted(own)[:count]] for own in scored]


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
