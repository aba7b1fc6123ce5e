"""How much memory a training run will take, told before it starts.

Weights and Adam's moments are counted. What autograd keeps for the backward pass depends on the
family's own code, so it is weighed: one step is run with two edits and one with four, every tensor that an operation
makes is counted while it lives, and the peak is carried on in a straight line to the recipe's batch.
"""

from __future__ import annotations

import random
import resource
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from instructedit.editors.gradient import GradientEditor, create_editor
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.training.mixture import Example, WeightedTarget
from instructedit.training.objective import loss_and_backward
from instructedit.training.recipe import Recipe

#: What the C library keeps beyond the tensors that live; 1.0 to 1.25 of them were measured.
CPU_SLACK = 1.15


@dataclass(frozen=True)
class TextLengths:
    """Tokens of a typical edit (prompt and target), of its target, and of a locality prompt with its answer."""

    edit: int = 32
    target: int = 4
    locality: int = 20


@dataclass(frozen=True)
class Memory:
    """Predicted bytes.

    Attributes:
        base: the base model's weights as loaded.
        editor: the editor's weights and Adam's two moments.
        activations: what a step holds besides at its peak, gradients included.
    """

    base: int
    editor: int
    activations: int

    @property
    def total(self) -> int:
        return self.base + self.editor + self.activations


def predict(language_model: LanguageModel, recipe: Recipe, lengths: TextLengths) -> Memory:
    """Peak memory of training ``recipe`` on a loaded base model."""
    editor = create_editor(recipe.editor, language_model).to(language_model.device).train()
    parameters = [p for p in editor.parameters() if p.requires_grad]
    two, four = (_peak_of_step(editor, language_model, recipe, lengths, edits) for edits in (2, 4))
    activations = two + (recipe.optimisation.batch - 2) * max(0, four - two) / 2
    slack = CPU_SLACK if language_model.device.type == "cpu" else 1.0
    return Memory(
        base=sum(p.numel() * p.element_size() for p in language_model.model.parameters()),
        editor=3 * sum(p.numel() * p.element_size() for p in parameters),
        activations=round(slack * activations),
    )


def _peak_of_step(
    editor: GradientEditor, language_model: LanguageModel, recipe: Recipe, lengths: TextLengths, edits: int
) -> int:
    """Bytes that live at the peak of a step, beyond weights."""
    examples = typical_examples(language_model, recipe, lengths, edits)
    editor.zero_grad(set_to_none=True)
    with _Meter() as meter:
        deltas = editor(language_model, [e.request for e in examples], [e.instruction for e in examples])
        loss_and_backward(editor, language_model, deltas, examples, recipe.objective)
    editor.zero_grad(set_to_none=True)
    return int(meter.peak)


def typical_examples(language_model: LanguageModel, recipe: Recipe, lengths: TextLengths, edits: int) -> list[Example]:
    """Edits of the recipe's numbers of prompts and of about these lengths."""

    def text(tokens: int) -> str:
        """About so many tokens of the base model's."""
        words = ["the"]
        while len(language_model.text.encode_prompt(" ".join(words)).ids) < tokens:
            words.append("the")
        return " ".join(words)

    target = text(lengths.target)
    request = EditRequest(prompt=text(lengths.edit - lengths.target), target=target, subject="it", label="positive")
    weights = (1.0, recipe.objective.rephrase_weight)
    likelihood = tuple(WeightedTarget(request.prompt, target, weight) for weight in weights if weight > 0)
    locality = ((text(lengths.locality - lengths.target), target),) * recipe.objective.locality_probes
    rng = random.Random(0)
    return [Example("a", request, f"Task: {rng.random()}", likelihood, (), locality) for _ in range(edits)]


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Meter(TorchDispatchMode):
    """Counts the bytes of every tensor that an operation makes, while its storage lives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.now -= size
