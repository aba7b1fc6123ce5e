"""GRACE: a codebook beside one layer; an edit is not a weight delta but a key, a radius and a value.

Hartvigsen et al., "Aging with GRACE" (NeurIPS 2023). The key is the input of an MLP's last matrix at the last token of
the edit's prompt. Wherever a token's input lies within the radius of the key, the layer's output there is replaced by
the value, which was learned so that the model answers with the target:

    h(x) = v   if |x - k| <= radius,   else x W.

Locality is near perfect by construction, and paraphrases whose states lie farther away are not edited. Every edit of a
batch has its own codebook of one entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from instructedit.editors.base import DirectEditor, Edits
from instructedit.editors.direct import (
    AdamConfig,
    at_tokens,
    last_mlp_matrix,
    minimise_each_loss,
    trunk_of_requests,
)
from instructedit.models.hooks import removed_on_exit
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.records import EditRequest


class GraceConfig(AdamConfig):
    """Hyperparameters of GRACE; the defaults are the best of ten trials on the bundled base model."""

    block: int | None = Field(None, ge=0, description="whose MLP gets the codebook; None takes the one a sixth up")
    radius: float = Field(8.0, gt=0, description="of a key, a distance between inputs of the layer")
    steps: int = Field(50, ge=1, description="steps of Adam for the value, at most")
    learning_rate: float = Field(0.1, gt=0, description="of Adam")


@dataclass(frozen=True)
class Codebooks(Edits):
    """The codebooks of many edits, one entry each.

    Attributes:
        module: name of the layer whose output is replaced.
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
            edit = rows.to(x.device)
            near = (x - self.keys.to(x.device)[edit][:, None]).norm(dim=-1) <= self.radius  # (rows, tokens)
            values = self.values.to(output.device, output.dtype)[edit][:, None]
            return torch.where(near[..., None], values, output.view(len(rows), -1, output.shape[-1])).view_as(output)

        module = language_model.model.get_submodule(self.module)
        with language_model.lock, removed_on_exit(module.register_forward_hook(replace)):
            yield


class Grace(DirectEditor[GraceConfig]):
    """Replaces a layer's output by a learned value where its input is near the edit's key.

    Args:
        config: its hyperparameters.
        matrix: the layer with the codebook.
        split_layer: its block.
    """

    name = "grace"
    paper = "Hartvigsen et al. 2023"
    Config = GraceConfig

    def __init__(self, config: GraceConfig, matrix: Matrix, split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.matrix = matrix
        self.split_layer = split_layer

    @classmethod
    def create(cls, config: GraceConfig, language_model: LanguageModel) -> Self:
        """See :meth:`DirectEditor.create`."""
        block = len(language_model.structure.blocks) // 6 if config.block is None else config.block
        return cls(config, last_mlp_matrix(language_model, block), block)

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Codebooks:
        """See :meth:`Editor.edit`. Instructions are not read."""
        split, state = trunk_of_requests(language_model, requests, self.split_layer)
        rows = torch.arange(len(requests), device=language_model.device)
        last = state.batch.predicts.long().argmax(1)  # the first position that predicts the target: the prompt's end
        observed: list[tuple[Tensor, Tensor]] = []

        def read(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            observed.append((at_tokens(args[0], last).float(), at_tokens(output, last).float()))

        module = language_model.model.get_submodule(self.matrix.name)
        with torch.no_grad(), removed_on_exit(module.register_forward_hook(read)):
            split.top(state)
        keys, outputs = observed[0]
        values = outputs.clone().requires_grad_()
        codebooks = Codebooks(self.matrix.name, keys, values, self.config.radius)
        minimise_each_loss([values], lambda: codebooks.attached(language_model, rows), split, state, self.config)
        return Codebooks(self.matrix.name, keys, values.detach(), self.config.radius)
