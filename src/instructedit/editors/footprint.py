"""How large an editor for a model is, before it is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from instructedit.editors.gradient import GradientEditorConfig, create_editor
from instructedit.models.language_model import LanguageModel


@dataclass(frozen=True)
class Footprint:
    """Bytes of a base model and its editor, without activations.

    Attributes:
        base: the base model's parameters as loaded.
        editor: the editor's parameters in float32.
        training: editor, its gradients and Adam's two moments.
    """

    base: int
    editor: int
    training: int


def editor_parameters(config: GradientEditorConfig, language_model: LanguageModel) -> int:
    """Return how many parameters an editor has, counted on the meta device, where it takes no memory.

    Raises:
        EditorError: no method has the config's name.
        ModelError: the base model lacks what the config says is edited.
    """
    with torch.device("meta"):
        editor = create_editor(config, language_model)
    return sum(parameter.numel() for parameter in editor.parameters() if parameter.requires_grad)


def footprint(config: GradientEditorConfig, language_model: LanguageModel) -> Footprint:
    """Return the sizes of a base model and of an editor for it; errors as of :func:`editor_parameters`."""
    editor = 4 * editor_parameters(config, language_model)
    return Footprint(language_model.parameter_bytes, editor, 4 * editor)
