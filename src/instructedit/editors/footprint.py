"""How large an editor for a model is, before it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instructedit.editors.gradient import EditorConfig
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix


@dataclass(frozen=True)
class Footprint:
    """Bytes that a base model and its editor take, activations left out.

    Attributes:
        base: the base model's parameters as loaded.
        editor: its parameters in float32.
        training: editor, its gradients and Adam's two moments.
    """

    base: int
    editor: int
    training: int


def editor_parameters(matrices: Sequence[Matrix], config: EditorConfig) -> int:
    """Parameters of an editor without its encoder.

    Of hypernetworks, per shape and layer: U, V, bias, scale and shift, and the code's map. Of KnowledgeEditor, per
    matrix: the map from code to gate and offset.
    """
    if config.name == "ke":
        return sum(1 + (config.embedding_dim + 1) * (2 * (m.inputs + m.outputs) + 1) for m in matrices)
    groups: dict[tuple[int, int], int] = {}
    for matrix in matrices:
        shape = (matrix.inputs, matrix.outputs)
        groups[shape] = groups.get(shape, 0) + 1
    embedding_dim = config.embedding_dim if config.conditions_hypernetwork else 0
    total = len(matrices) * (1 + embedding_dim)  # theta and its condition
    for (inputs, outputs), count in groups.items():
        width = inputs + outputs
        layer = 2 * width * min(config.rank, width) + width + 2 * count * width + 2 * width * embedding_dim
        total += config.layers * layer
    return total


def footprint(language_model: LanguageModel, matrices: Sequence[Matrix], config: EditorConfig) -> Footprint:
    """Estimate; the instruction encoder is left out, it is small beside the rest."""
    base = sum(p.numel() * p.element_size() for p in language_model.model.parameters())
    editor = 4 * editor_parameters(matrices, config)
    return Footprint(base, editor, 4 * editor)
