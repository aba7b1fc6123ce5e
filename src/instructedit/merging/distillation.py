"""Distillation of many edits into one change: gradient steps on what the model says, after the normal equation.

The normal equation fits the outputs of each matrix. What remains of its error in each of them adds up on the way
through the model. So the merged change D is trained on, with the edits as its teachers:

    L(D) = mean over the edits' texts of KL(base with that edit alone || base with D)
         + keep * mean over ordinary text of KL(base || base with D)

with the divergences of the next token, in the edits' texts at every token of the answer. The texts are those of the
merge; ordinary text is what the model writes by itself (:mod:`instructedit.editors.ordinary_text`). The steps are those
of Adam (Kingma & Ba 2015); their size is relative to the entries of the merged change, so that it fits any model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from instructedit.deltas.delta import Delta
from instructedit.editors.ordinary_text import OnText, fact_sentences, written_texts
from instructedit.merging.stacking import Text, stack, text_batches
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import SplitForward, TrunkState
from instructedit.models.text import Encoded, pad

#: Passes over the edits' texts, and steps at least.
PASSES, LEAST_STEPS = 3, 20
#: Size of a step relative to the root mean square of the entries of the merged change.
STEP = 0.05
#: Weight of ordinary text.
KEEP = 2.0
#: Weight of an edit's own prompt against each of its other texts.
OWN_WEIGHT = 3.0
#: Texts of edits and ordinary texts at a time.
BATCH, ORDINARY_BATCH = 32, 16
#: Sentences about facts among the ordinary texts.
SENTENCES = 128
#: Most likely tokens of a teacher's distribution that are compared one by one; all others count as one.
TOP = 128


@dataclass(frozen=True)
class Distribution:
    """Next-token distributions, of their most likely tokens and of all other tokens together.

    Attributes:
        tokens: (labels, :data:`TOP`) the most likely tokens.
        log_probs: (labels, :data:`TOP` + 1) of these and of the others.
    """

    tokens: Tensor
    log_probs: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Distribution:
        """Return the distributions of logits (labels, vocabulary)."""
        tokens = logits.topk(min(TOP, logits.shape[-1] - 1), dim=-1).indices
        return cls(tokens, _log_probs(logits, tokens))

    def divergence(self, logits: Tensor) -> Tensor:
        """Return KL(these || softmax(logits)), (labels,); never more than that of the whole distributions."""
        return (self.log_probs.exp() * (self.log_probs - _log_probs(logits, self.tokens))).sum(-1)


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    chosen, others = logits.gather(-1, tokens), logits.scatter(-1, tokens, -torch.inf)
    return torch.cat((chosen, others.logsumexp(-1, keepdim=True)), -1) - logits.logsumexp(-1, keepdim=True)


@dataclass(frozen=True)
class _Lesson:
    """Texts, and what the merged change is to say there.

    Attributes:
        state: the trunk's state of the texts.
        taught: the teachers' distributions at the labels.
        weights: (labels,) with sum 1.
    """

    state: TrunkState
    taught: Distribution
    weights: Tensor

    def loss(self, split: SplitForward) -> Tensor:
        """Return the mean divergence of the model as it is."""
        return (self.taught.divergence(split.top(self.state).float()) * self.weights).sum()


def distil(
    merged: Delta,
    deltas: Sequence[Delta],
    texts: Sequence[Sequence[Text]],
    language_model: LanguageModel,
    *,
    passes: int = PASSES,
    step_size: float = STEP,
    keep: float = KEEP,
    most_steps: int | None = None,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    on_text: OnText = lambda written, texts: None,
) -> Delta:
    """Return the merged delta, trained to do what each of the deltas does alone.

    Args:
        merged: where training starts; what :func:`instructedit.merging.normal_equation.merge` returned, or its
            approximation of a low rank: the rank stays.
        deltas: the edits, each made by itself for the base model.
        texts: of each edit, its own prompt first; see :mod:`instructedit.merging.texts`.
        language_model: the base model.
        passes: over all texts of the edits.
        step_size: see :data:`STEP`.
        keep: weight of ordinary text.
        most_steps: even if they are fewer passes; None sets no limit.
        seed: of the order of the texts.
        on_step: called after every step with its number, the number of steps and the loss.
        on_text: called while the model writes ordinary text, which it does once; see :func:`written_texts`.
    """
    names = list(merged.factors)
    first_block = min(language_model.structure.block_of(name) for name in names)
    split = language_model.split(first_block)
    lessons = list(_lessons_of_edits(deltas, texts, language_model, split, names))
    ordinary = list(_lessons_of_ordinary_text(language_model, split, seed, on_text))
    factors = {name: factor.map(_parameter) for name, factor in merged.factors.items()}
    parameters = chain.from_iterable(factor.tensors.values() for factor in factors.values())
    groups = [{"params": [p], "lr": step_size * p.detach().square().mean().sqrt().item()} for p in parameters]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
    steps = max(passes * len(lessons), LEAST_STEPS)
    steps = steps if most_steps is None else min(steps, most_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, (step + 1) / 5) * (1 - 0.9 * step / steps))
    rng = random.Random(seed)
    order = _shuffled(lessons, rng), _shuffled(ordinary, rng)
    dtype = language_model.model.dtype

    def in_precision(tensor: Tensor) -> Tensor:
        return tensor.to(dtype)

    # What was lost by an earlier compression is trained away, at least in part.
    error = 0.0 if merged.metadata.compression_error == 0 else None
    about = merged.metadata.model_copy(update={"compression_error": error})
    for step, lesson, other in zip(range(steps), *order, strict=False):
        student = Delta({name: factor.map(in_precision) for name, factor in factors.items()}, about)
        with student.attached(language_model):
            loss = lesson.loss(split) + keep * other.loss(split)
            loss.backward()
        adam.step()
        schedule.step()
        adam.zero_grad()
        on_step(step + 1, steps, loss.item())
    return Delta({name: factor.map(Tensor.detach) for name, factor in factors.items()}, about)


@torch.no_grad()
def _lessons_of_edits(
    deltas: Sequence[Delta],
    texts: Sequence[Sequence[Text]],
    language_model: LanguageModel,
    split: SplitForward,
    names: Sequence[str],
) -> Iterator[_Lesson]:
    """Yield the edits' texts, those of similar length together, with each text's own edit as its teacher."""
    for part in text_batches(deltas, texts, language_model, split.split_layer, BATCH):
        with stack(part.deltas, names).attached(language_model, part.rows):
            taught = Distribution.of(split.top(part.state).float())
        weights = part.own_prompt_weights(OWN_WEIGHT).to(part.state.hidden.device)[part.state.batch.rows]
        yield _Lesson(part.state, taught, weights / weights.sum())


@torch.no_grad()
def _lessons_of_ordinary_text(
    language_model: LanguageModel, split: SplitForward, seed: int, on_text: OnText
) -> Iterator[_Lesson]:
    """Yield ordinary texts, those of similar length together, with the base model as their teacher."""
    sentences = [language_model.text.encode_prompt(text) for text in fact_sentences(SENTENCES, seed)]
    written = written_texts(language_model, seed, on_text)
    texts = [*(Encoded(each.ids, 1) for each in sentences if len(each.ids) > 1), *written]
    texts.sort(key=lambda text: len(text.ids))
    for start in range(0, len(texts), ORDINARY_BATCH):
        batch = pad(texts[start : start + ORDINARY_BATCH], language_model.text.pad_id).to(language_model.device)
        state = split.trunk(batch)
        taught = Distribution.of(split.top(state).float())
        weights = torch.full((len(taught.tokens),), 1 / len(taught.tokens), device=state.hidden.device)
        yield _Lesson(state, taught, weights)


def _parameter(tensor: Tensor) -> Tensor:
    return tensor.detach().float().clone().requires_grad_()


def _shuffled(lessons: Sequence[_Lesson], rng: random.Random) -> Iterator[_Lesson]:
    """Yield lessons for ever, in a new order every time round."""
    while True:
        yield from rng.sample(lessons, len(lessons))
