"""GRACE: a codebook beside one layer; an edit is not a weight delta but a key, a radius and a value.

Hartvigsen et al., "Aging with GRACE" (NeurIPS 2023). The key is what flows into an MLP's last matrix at the last
token of the edit's prompt. Wherever a token's input lies within the radius of the key, the layer's output there is
replaced by the value, which was learned to make the model say the target:

    h(x) = v   if |x - k| <= radius,   else x W.

Locality is near perfect by construction, and so is the failure on paraphrases whose states lie farther away. Every
edit of a batch has its own codebook of one entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from instructedit.editors.base import DirectEditor, Edits, register
from instructedit.editors.direct import Descent, at_tokens, descend_each, last_mlp_matrix, requests_state
from instructedit.models.hooks import removed_on_exit
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.records import EditRequest


class GraceConfig(Descent):
    """GRACE's numbers; the defaults are the best of ten trials on the bundled base model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    block: int | None = Field(None, ge=0, description="beside whose MLP the codebook lies; None takes one sixth up")
    radius: float = Field(8.0, gt=0, description="in units of the layer's input")
    steps: int = Field(50, ge=1, description="of Adam, for the value")
    learning_rate: float = Field(0.1, gt=0)


@dataclass(frozen=True)
class Codebooks(Edits):
    """One entry an edit.

    Attributes:
        module: beside which they lie.
        keys: (edits, inputs).
        values: (edits, outputs).
        radius: of every key.
    """

    module: str
    keys: Tensor
    values: Tensor
    radius: float

    def __len__(self) -> int:
        return len(self.keys)

    @contextmanager
    def attached(self, language_model: LanguageModel, rows: Tensor) -> Iterator[None]:
        """See :class:`~instructedit.editors.base.Edits`."""

        def replace(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0].reshape(len(rows), -1, args[0].shape[-1]).float()
            places = rows.to(x.device)
            near = (x - self.keys.to(x.device)[places][:, None]).norm(dim=-1) <= self.radius  # (rows, tokens)
            values = self.values.to(output.device, output.dtype)[places][:, None]
            return torch.where(near[..., None], values, output.view(len(rows), -1, output.shape[-1])).view_as(output)

        module = language_model.model.get_submodule(self.module)
        with language_model.lock, removed_on_exit(module.register_forward_hook(replace)):
            yield


@register("grace")
class Grace(DirectEditor):
    """Learns a value for every request's own key.

    Args:
        config: its numbers.
        matrix: beside which the codebook lies.
        split_layer: its block.
    """

    Config = GraceConfig

    def __init__(self, config: GraceConfig, matrix: Matrix, split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.matrix = matrix
        self.split_layer = split_layer

    @classmethod
    def create(cls, config: BaseModel, language_model: LanguageModel) -> Grace:
        """See :meth:`DirectEditor.create`."""
        assert isinstance(config, GraceConfig)
        block = len(language_model.structure.blocks) // 6 if config.block is None else config.block
        return cls(config, last_mlp_matrix(language_model, block), block)

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Codebooks:
        """See :meth:`Editor.edit`. Instructions are not read."""
        split, state = requests_state(language_model, requests, self.split_layer)
        rows = torch.arange(len(requests), device=language_model.device)
        last = state.batch.predicts.long().argmax(1)  # the first position that predicts the target: the prompt's end
        seen: list[tuple[Tensor, Tensor]] = []

        def read(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append((at_tokens(args[0], last).float(), at_tokens(output, last).float()))

        module = language_model.model.get_submodule(self.matrix.name)
        with torch.no_grad(), removed_on_exit(module.register_forward_hook(read)):
            split.top(state)
        keys, first = seen[0]
        values = first.clone().requires_grad_()
        books = Codebooks(self.matrix.name, keys, values, self.config.radius)
        descend_each([values], lambda: books.attached(language_model, rows), split, state, self.config)
        return Codebooks(self.matrix.name, keys, values.detach(), self.config.radius)
