"""The texts at whose tokens a merged edit is to do what the edit does alone.

Its own prompt is not enough: the merged change would answer to that wording only. So the prompt also stands behind
another sentence, is put about similar subjects, and the edit's subject is put into other sentences: of the shipped
templates that call for a similar next word, those in which the edit's own answer is most likely. A text need not be
right: what is kept is what the edit does there.

About similar subjects, an edit means what it does to most of them. An edit of one fact leaves most as they are, and the
few that it changes are its mistakes: there the merged change is to do what the base model does. An edit of all such
facts changes most, and is followed. Subjects that share the old answer are counted by themselves, because an edit may
be meant for these alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
        [Text(way.replace("{subject}", subject), answer) for way in near] if (subject := _subject(request)) else []
        for request, answer, near in zip(requests, answers, nearest, strict=True)
    ]
    chosen = _where_they_hold(deltas, candidates, language_model, used)
    others = _about_similar_subjects(deltas, requests, answers, language_model, SIMILAR * counts.others)
    texts = []
    for request, answer, filled, similar in zip(requests, answers, chosen, others, strict=True):
        rng = random.Random(f"{seed}-{request.prompt}-{request.target}")
        drawn = rng.sample(similar, min(len(similar), counts.others))
        prompts = [f"{rng.choice(facts).sentence(rng)} {request.prompt}" for _ in range(counts.prefixed)]
        prompts += filled[: counts.templates]
        prompts += [f"{rng.choice(facts).sentence(rng)} {text}" for text in filled[: counts.prefixed_templates]]
        texts.append([Text(request.prompt, answer), *drawn, *(Text(prompt, answer) for prompt in prompts)])
    return texts


def _subject(request: EditRequest) -> str | None:
    """Return the subject of a request; None where the prompt does not name it."""
    return request.subject if request.subject and request.subject in request.prompt else None


def _about_similar_subjects(
    deltas: Sequence[Delta],
    requests: Sequence[EditRequest],
    answers: Sequence[str],
    language_model: LanguageModel,
    count: int,
) -> list[list[Text]]:
    """Return for each request its prompt about the ``count`` most similar subjects, the most similar first.

    Those are :attr:`Text.kept` after which the edit does not change what it changes only after few of them.
    """
    if not any(_subject(request) for request in requests):
        return [[] for _ in requests]
    nearest = SimilarSubjects(language_model).nearest
    texts = [
        [
            Text(request.prompt, answer),
            *(Text(request.prompt.replace(subject, other), answer) for other in nearest(subject, count)),
        ]
        if (subject := _subject(request))
        else []
        for request, answer in zip(requests, answers, strict=True)
    ]
    decided = []
    for own, words in zip(texts, _next_words(deltas, texts, language_model), strict=True):
        # By whether the base model's answer is the one that it has for the edit's own prompt.
        changed: dict[bool, list[bool]] = {True: [], False: []}
        for before, after in words[1:]:
            changed[before == words[0][0]].append(before != after)
        few = {same: 2 * sum(group) < len(group) for same, group in changed.items()}
        decided.append(
            [
                replace(text, kept=few[before == words[0][0]])
                for text, (before, _) in zip(own[1:], words[1:], strict=True)
            ]
        )
    return decided


@torch.no_grad()
def _next_words(
    deltas: Sequence[Delta], texts: Sequence[Sequence[Text]], language_model: LanguageModel
) -> list[list[tuple[int, int]]]:
    """Return for each text the most likely token after its prompt without its edit and with it."""
    names = list(dict.fromkeys(name for delta in deltas for name in delta.factors))
    split = language_model.split(min(language_model.structure.block_of(name) for name in names))
    words: list[list[tuple[int, int]]] = [[(0, 0)] * len(own) for own in texts]
    for part in text_batches(deltas, texts, language_model, split.split_layer, BATCH):
        rows = part.state.batch.rows.cpu()
        first = torch.searchsorted(rows, torch.arange(len(part.owners)))  # label of each text's first token
        before = split.top(part.state)[first].argmax(-1)
        with stack(part.deltas, names).attached(language_model, part.rows):
            after = split.top(part.state)[first].argmax(-1)
        for (edit, number), *both in zip(part.owners, before.tolist(), after.tolist(), strict=True):
            words[edit][number] = (both[0], both[1])
    return words


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
            scored[edit].append((loss, texts[edit][number].prompt))
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
