"""In-context editing: the new fact stands before the question, and no weight changes.

After IKE (Zheng et al., EMNLP 2023) without its retrieved demonstrations: what a user can always do, and so what
every method has to beat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from instructedit.editors.base import DirectEditor, register
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import join_prompt_and_target
from instructedit.records import EditRequest


class InContextConfig(BaseModel):
    """Words around the fact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str = Field("New fact: {fact}.\n", description="what stands before every question; {fact} is filled in")


@dataclass(frozen=True)
class PromptEdits:
    """Texts that stand before the questions, one an edit."""

    prefixes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prefixes)

    @contextmanager
    def attached(self, language_model: LanguageModel, rows: Tensor) -> Iterator[None]:
        """Nothing changes in the model."""
        yield

    def rewrite_prompt(self, edit: int, prompt: str) -> str:
        """The fact, then the prompt."""
        return self.prefixes[edit] + prompt


@register("in-context")
class InContext(DirectEditor):
    """States each edit in the prompt."""

    Config = InContextConfig

    def __init__(self, config: InContextConfig, split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.split_layer = split_layer

    @classmethod
    def create(cls, config: BaseModel, language_model: LanguageModel) -> InContext:
        """See :meth:`DirectEditor.create`."""
        assert isinstance(config, InContextConfig)
        return cls(config, len(language_model.structure.blocks) - 1)

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> PromptEdits:
        """See :meth:`Editor.edit`. Instructions are not read."""
        facts = ("".join(join_prompt_and_target(request.prompt, request.target)).rstrip(".") for request in requests)
        return PromptEdits(tuple(self.config.template.replace("{fact}", fact) for fact in facts))
