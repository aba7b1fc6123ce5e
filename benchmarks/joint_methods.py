"""Methods that put many edits into one model, all at once (batch) or one after the other (sequence).

ours, MEND    each edit by itself for the unedited model, then combined: `distil`, `merge`, `sum`. With `distil` and
              `merge` a sequence gives what a batch gives. In a sequence of `sum` every edit is made for the model that
              the edits before it have changed.
memit         batch: values of all edits, then one closed form a matrix (Meng et al. 2023, equation 14); sequence: one
              edit after the other
lora          batch: one adapter, trained on all edits; sequence: the same adapter, trained on one edit after the other
grace         one codebook; the value of the nearest key within its radius. The same in both.
retrieval     the most similar edit's fact stands before the question. The same in both.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from instructedit.deltas.delta import Delta, DeltaBatch, DeltaMetadata
from instructedit.deltas.factors import Dense, Factor
from instructedit.editors.base import Editor
from instructedit.editors.editing import make_edits
from instructedit.editors.fine_tuning import FineTuning
from instructedit.editors.grace import Codebooks, Grace
from instructedit.editors.incontext import InContext
from instructedit.editors.key_statistics import regularised_covariance
from instructedit.editors.memit import Memit
from instructedit.editors.signals import edit_loss
from instructedit.editors.subject_activations import SubjectActivations
from instructedit.merging.combining import answers_of, combine_edits
from instructedit.models.hooks import execution_device, removed_on_exit
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad
from instructedit.records import EditRequest
from instructedit.tasks.task import Task

#: Edits at a time.
BATCH = 32
#: Ways to combine the edits of trained editors.
COMBINATIONS = ("distil", "merge", "sum")


class Together:
    """All edits in one model; every row of a batch has them all."""

    edits = 0

    def __len__(self) -> int:
        return self.edits

    def everywhere(self, language_model: LanguageModel) -> AbstractContextManager[None]:
        """Return a context in which the model has the edits."""
        return nullcontext()

    def attached(self, language_model: LanguageModel, rows: Tensor) -> AbstractContextManager[None]:
        return self.everywhere(language_model)

    def rewrite_prompt(self, edit: int, prompt: str) -> str:
        return self.rewritten(prompt)

    def rewritten(self, prompt: str) -> str:
        """Return a prompt as the model is to read it."""
        return prompt

    def bytes(self) -> int:
        """Return the size of what has to be stored."""
        return 0


@dataclass(frozen=True)
class Change(Together):
    """A change of the weights."""

    delta: Delta
    edits: int

    @contextmanager
    def everywhere(self, language_model: LanguageModel) -> Iterator[None]:
        # Not Delta.attached, in which no editor makes an edit.
        with language_model.lock, ExitStack() as stack:
            for name, factor in self.delta.factors.items():
                module = language_model.model.get_submodule(name)
                stack.enter_context(
                    removed_on_exit(module.register_forward_hook(factor.hook(execution_device(module))))
                )
            yield

    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.delta.tensors.values())


@dataclass(frozen=True)
class Nearest(Together):
    """GRACE's codebook: the value of the nearest key, where it is near enough."""

    codebook: Codebooks
    edits: int

    @contextmanager
    def everywhere(self, language_model: LanguageModel) -> Iterator[None]:
        book = self.codebook

        def replaced(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0].reshape(-1, args[0].shape[-1]).float()
            distance, nearest = torch.cdist(x, book.keys.float()).min(-1)
            values = book.values.to(output.dtype)[nearest]
            flat = output.reshape(-1, output.shape[-1])
            return torch.where((distance <= book.radius)[:, None], values, flat).view_as(output)

        module = language_model.model.get_submodule(book.module)
        with language_model.lock, removed_on_exit(module.register_forward_hook(replaced)):
            yield

    def bytes(self) -> int:
        return 4 * (self.codebook.keys.numel() + self.codebook.values.numel())


@dataclass(frozen=True)
class Retrieved(Together):
    """The fact whose words are the most similar to the question's stands before it.

    Similarity is the cosine of counts of words, each weighted by its inverse document frequency among the edits.
    """

    prefixes: tuple[str, ...]
    requests: tuple[EditRequest, ...]
    edits: int
    _vectors: list[Counter[str]] = field(default_factory=list)
    _frequency: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        texts = [_words(request.prompt) for request in self.requests]
        self._frequency.update(word for words in texts for word in set(words))
        self._vectors.extend(Counter(words) for words in texts)

    def rewritten(self, prompt: str) -> str:
        query = Counter(_words(prompt))
        best = max(range(self.edits), key=lambda edit: self._cosine(query, self._vectors[edit]))
        return self.prefixes[best] + prompt

    def _cosine(self, a: Counter[str], b: Counter[str]) -> float:
        weight = {word: math.log((1 + self.edits) / (1 + self._frequency[word])) + 1 for word in a | b}
        product = sum(a[word] * b[word] * weight[word] ** 2 for word in a & b)
        norms = [math.sqrt(sum((count * weight[word]) ** 2 for word, count in v.items())) for v in (a, b)]
        return product / (norms[0] * norms[1] or 1.0)

    def bytes(self) -> int:
        return sum(len(prefix.encode()) for prefix in self.prefixes)


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.casefold()).split()


def trained(
    editor: Editor,
    language_model: LanguageModel,
    requests: Sequence[EditRequest],
    task: Task,
    how: str,
    order: str,
    rank: int | None,
    most_steps: int | None,
) -> Together:
    """Return the edits of a trained editor, combined by ``how``."""
    if how == "sum" and order == "sequence":
        total = Change(Delta({}, DeltaMetadata(base=language_model.fingerprint)), 0)
        for request in requests:
            with total.everywhere(language_model):
                [delta] = make_edits(editor, language_model, [request], task)
            total = Change(total.delta + delta, total.edits + 1)
        return total
    deltas = make_edits(editor, language_model, requests, task)
    assert how in COMBINATIONS
    together = combine_edits(
        how,  # type: ignore[arg-type]
        deltas,
        requests,
        answers_of(editor, requests),
        language_model,
        rank=rank,
        most_steps=most_steps,
    )
    return Change(together, len(requests))


def fine_tuned(
    editor: FineTuning, language_model: LanguageModel, requests: Sequence[EditRequest], order: str
) -> Together:
    """Return one change that was trained on all requests, with as many passes as the config has steps."""
    config = editor.config
    factors = editor.initial_factors(1, language_model.device)
    parameters = [tensor for factor in factors.values() for tensor in factor.tensors.values()]

    def change() -> Change:
        return Change(Delta({name: _first(factor) for name, factor in factors.items()}), len(requests))

    def train(parts: Sequence[Sequence[EditRequest]]) -> None:
        optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
        split, pair = language_model.split(editor.split_layer), language_model.text.encode_pair
        batches = [pad([pair(r.prompt, r.target) for r in part], language_model.text.pad_id) for part in parts]
        states = [split.trunk(batch) for batch in batches]
        for _ in range(config.steps):
            worst = 0.0
            for state in random.Random(0).sample(states, len(states)):
                with change().everywhere(language_model):
                    losses = edit_loss(split.top(state), state.batch)
                    optimizer.zero_grad()
                    losses.mean().backward()
                worst = max(worst, losses.max().item())
                if losses.max() >= config.loss_threshold:
                    optimizer.step()
                    with torch.no_grad():
                        editor.project(factors)
            if worst < config.loss_threshold:
                return

    if order == "batch":
        train([requests[start : start + BATCH] for start in range(0, len(requests), BATCH)])
    else:
        for request in requests:
            train([[request]])
    delta = change().delta
    return Change(replace(delta, factors={n: f.map(Tensor.detach) for n, f in delta.factors.items()}), len(requests))


def _first(factor: Factor) -> Factor:
    return factor.map(lambda tensor: tensor[0])


def memit(editor: Memit, language_model: LanguageModel, requests: Sequence[EditRequest], order: str) -> Together:
    """Return all facts by MEMIT."""
    parts = [requests] if order == "batch" else [[request] for request in requests]
    total = Change(Delta({}, DeltaMetadata(base=language_model.fingerprint)), 0)
    for part in parts:
        with total.everywhere(language_model):
            added = _memit(editor, language_model, part)
        total = Change(total.delta + added, total.edits + len(part))
    return total


class _JointBatch(DeltaBatch):
    """One change for every row."""

    @contextmanager
    def attached(self, language_model: LanguageModel, rows: Tensor) -> Iterator[None]:
        with Change(Delta(self.factors), 0).everywhere(language_model):
            yield


def _memit(editor: Memit, language_model: LanguageModel, requests: Sequence[EditRequest]) -> Delta:
    config, structure = editor.config, language_model.structure
    readers = [
        SubjectActivations(language_model, requests[start : start + BATCH], config, editor.split_layer)
        for start in range(0, len(requests), BATCH)
    ]
    top = structure.blocks[structure.block_of(editor.matrices[-1].name)]
    targets = [reader.outputs(top) + reader.optimal_shift(editor.matrices[-1].name) for reader in readers]
    factors: dict[str, Factor] = {}
    for index, matrix in enumerate(editor.matrices):
        below = _JointBatch(dict(factors))
        missing = torch.cat([t - reader.outputs(top, below) for t, reader in zip(targets, readers, strict=True)])
        keys = torch.cat([reader.keys(matrix.name, below) for reader in readers])
        covariance = regularised_covariance(language_model, matrix.name, config.sentences, config.ridge)
        left = config.mom2_update_weight * covariance + keys.T @ keys
        right = keys.T @ (missing / (len(editor.matrices) - index))
        factors[matrix.name] = Dense(torch.linalg.solve(left.double(), right.double()).float())
    return Delta(factors, DeltaMetadata(base=language_model.fingerprint))


def grace(editor: Grace, language_model: LanguageModel, requests: Sequence[EditRequest]) -> Together:
    """Return one codebook with an entry for every request."""
    books = [
        editor.edit(language_model, requests[start : start + BATCH], [None] * BATCH)
        for start in range(0, len(requests), BATCH)
    ]
    keys, values = (torch.cat([getattr(book, name) for book in books]) for name in ("keys", "values"))
    return Nearest(replace(books[0], keys=keys, values=values), len(requests))


def retrieval(editor: InContext, language_model: LanguageModel, requests: Sequence[EditRequest]) -> Together:
    """Return the facts, of which the most similar stands before a question."""
    edits = editor.edit(language_model, requests, [None] * len(requests))
    return Retrieved(edits.prefixes, tuple(requests), len(requests))


def put_together(
    editor: Editor,
    language_model: LanguageModel,
    requests: Sequence[EditRequest],
    task: Task,
    how: str,
    order: str,
    rank: int | None = None,
    most_steps: int | None = None,
) -> Together:
    """Return many edits in one model by the method of an editor.

    Args:
        editor: a trained editor, or one of the methods of this module.
        language_model: the base model.
        requests: the edits.
        task: of all of them.
        how: of trained editors, how edits are combined.
        order: ``batch`` or ``sequence``.
        rank: of every matrix's change, of trained editors; None leaves it free.
        most_steps: of distillation; None sets no limit.
    """
    if isinstance(editor, Memit):
        return memit(editor, language_model, requests, order)
    if isinstance(editor, FineTuning):
        return fine_tuned(editor, language_model, requests, order)
    if isinstance(editor, Grace):
        return grace(editor, language_model, requests)
    if isinstance(editor, InContext):
        return retrieval(editor, language_model, requests)
    return trained(editor, language_model, requests, task, how, order, rank, most_steps)
