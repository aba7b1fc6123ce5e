"""Prediction of the memory that a training run takes, before it starts.

Weights and Adam's moments are counted. Activations depend on the model family's own code, so they are measured: one
step is run with two edits and one with four, every tensor that an operation creates is counted while it is alive, and
the peak is extrapolated linearly to the recipe's batch.
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

from instructedit.editors.footprint import editor_parameters
from instructedit.editors.gradient import GradientEditor, create_editor
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.training.mixture import Example, WeightedTarget
from instructedit.training.objective import loss_and_backward
from instructedit.training.recipe import Recipe

#: Memory that the C library holds, relative to the live tensors; 1.0 to 1.25 was measured.
CPU_SLACK = 1.15


@dataclass(frozen=True)
class TextLengths:
    """Numbers of tokens in typical data.

    Attributes:
        edit: Prompt and target of an edit.
        target: The target alone.
        locality: A locality prompt with its answer.
    """

    edit: int = 32
    target: int = 4
    locality: int = 20


@dataclass(frozen=True)
class Memory:
    """Predicted bytes of a training run.

    Attributes:
        base: Weights of the base model as loaded.
        editor: Weights of the editor and Adam's two moments.
        activations: Everything else at the peak of a step, gradients included.
    """

    base: int
    editor: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.base + self.editor + self.activations


def predict_memory(language_model: LanguageModel, recipe: Recipe, lengths: TextLengths) -> Memory:
    """Predict the peak memory of training.

    Args:
        language_model: The base model, on the device of the training.
        recipe: Settings of the stage.
        lengths: Typical lengths of its data.
    """
    editor = create_editor(recipe.editor, language_model).to(language_model.device).train()
    two, four = (_measure_step(editor, language_model, recipe, lengths, edits) for edits in (2, 4))
    activations = two + (recipe.optimisation.batch - 2) * max(0, four - two) / 2
    slack = CPU_SLACK if language_model.device.type == "cpu" else 1.0
    return Memory(
        base=language_model.parameter_bytes,
        editor=3 * 4 * editor_parameters(recipe.editor, language_model),
        activations=round(slack * activations),
    )


def _measure_step(
    editor: GradientEditor, language_model: LanguageModel, recipe: Recipe, lengths: TextLengths, edits: int
) -> int:
    """Return the bytes of live tensors at the peak of a step, without weights."""
    examples = typical_examples(language_model, recipe, lengths, edits)
    editor.zero_grad(set_to_none=True)
    with _LiveTensors() as live_tensors:
        deltas = editor(language_model, [e.request for e in examples], [e.instruction for e in examples])
        loss_and_backward(editor, language_model, deltas, examples, recipe.objective)
    editor.zero_grad(set_to_none=True)
    return int(live_tensors.peak)


def typical_examples(language_model: LanguageModel, recipe: Recipe, lengths: TextLengths, edits: int) -> list[Example]:
    """Return ``edits`` examples with as many prompts as the recipe's, of about these lengths."""

    def text(tokens: int) -> str:
        """Return a text of at least so many tokens."""
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
    """Return the peak memory of this process until now."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _LiveTensors(TorchDispatchMode):
    """Bytes of all tensors that operations create inside the ``with``, while their storage is alive.

    Attributes:
        current: Bytes alive now.
        peak: Most bytes that were alive at a time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self._sizes: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[storage] = size
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.current -= size
