"""MEND: a hypernetwork turns the raw gradient of one edit into a low-rank weight delta.

Mitchell et al., "Fast Model Editing at Scale" (ICLR 2022), as InstructEdit uses it: for every edited matrix,

    Delta W_l = - alpha_l * sum_t u~_t^T delta~_t,    (u~, delta~) = g(u, delta),

where t runs over the tokens with a gradient. The step size alpha_l = exp(log_lr_l) is learned per matrix and can
not change its sign. All matrices of one shape share one g.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from instructedit.deltas.delta import DeltaBatch
from instructedit.deltas.factors import Factor
from instructedit.editors.contrast import OtherInputs, read_other_inputs, with_other_subject
from instructedit.editors.gradient import GradientEditor, GradientEditorConfig, stack_tokens
from instructedit.editors.hypernetwork import Hypernetwork
from instructedit.editors.signals import Signal
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.models.text import Encoded
from instructedit.records import EditRequest


class HypernetworkConfig(GradientEditorConfig):
    """What MEND and InstructEdit are both configured by."""

    rank: int = Field(256, ge=1, le=65_536, description="of the hypernetwork's layers (the paper: 1920)")
    layers: int = Field(2, ge=1, le=100, description="of the hypernetwork")
    last_relu: bool = Field(False, description="ReLU in the last layer too, as in MEND's network")
    contrast: bool = Field(
        False,
        description="subtract from the inputs what they are with another subject in the prompt, so that an edit keeps "
        "to its subject; costs one more forward pass",
    )


class MendConfig(HypernetworkConfig):
    """Hyperparameters of MEND."""

    name: Literal["mend"] = Field("mend", description="of the method")


#: Contrast at the start: kappa = sigmoid(2) = 0.88.
CONTRAST_LOGIT = 2.0

HypernetworkConfigT = TypeVar("HypernetworkConfigT", bound=HypernetworkConfig)


class HypernetworkEditor(GradientEditor[HypernetworkConfigT]):
    """What MEND and InstructEdit have in common: hypernetworks, one for each shape of matrix.

    Args:
        config: its hyperparameters.
        matrices: the edited matrices, from the bottom up.
        split_layer: index of the block that contains the lowest of them; the trunk is what lies below.
        embedding_dim: width of the instruction embedding; 0 without conditioning.
    """

    def __init__(
        self, config: HypernetworkConfigT, matrices: Sequence[Matrix], split_layer: int, embedding_dim: int = 0
    ) -> None:
        super().__init__(config, matrices, split_layer)
        self._groups: dict[str, list[Matrix]] = {}
        for matrix in matrices:
            self._groups.setdefault(f"{matrix.inputs}x{matrix.outputs}", []).append(matrix)
        self.hypernetworks = nn.ModuleDict(
            {
                shape: Hypernetwork(
                    group[0].inputs,
                    group[0].outputs,
                    rank=config.rank,
                    layers=config.layers,
                    matrices=len(group),
                    embedding_dim=embedding_dim,
                    last_relu=config.last_relu,
                )
                for shape, group in self._groups.items()
            }
        )
        self.log_lr = nn.Parameter(torch.full((len(self.matrices),), config.step_size).log())
        self.log_lr_condition = _zero_linear(embedding_dim, len(self.matrices))
        self.contrast_logit: nn.Parameter | None = None
        self.contrast_condition: nn.Linear | None = None
        if config.contrast:
            self.contrast_logit = nn.Parameter(torch.full((len(self.matrices),), CONTRAST_LOGIT))
            self.contrast_condition = _zero_linear(embedding_dim, len(self.matrices))

    def round_in_place(self, dtype: torch.dtype) -> None:
        """Let the hypernetworks compute in ``dtype``, which is then that of the deltas; for use after training."""
        for network in self.hypernetworks.values():
            assert isinstance(network, Hypernetwork)
            network.round_in_place(dtype)

    def step_sizes(self, embeddings: Tensor | None) -> Tensor:
        """Return alpha, (1, matrices), or (edits, matrices) where embeddings condition it.

        alpha = exp(log_lr), or with an embedding c exp(log_lr + S c), where S = 0 at the start.
        """
        if self.log_lr_condition is None or embeddings is None:
            return self.log_lr.exp()[None]
        alpha: Tensor = (self.log_lr + self.log_lr_condition(embeddings)).exp()
        return alpha

    def contrasts(self, embeddings: Tensor | None) -> Tensor | None:
        """Return kappa of :mod:`instructedit.editors.contrast`, of the shape of :meth:`step_sizes`; None without it.

        kappa = sigmoid(logit), or with an embedding c sigmoid(logit + K c), where K = 0 at the start.
        """
        if self.contrast_logit is None:
            return None
        if self.contrast_condition is None or embeddings is None:
            return self.contrast_logit.sigmoid()[None]
        kappa: Tensor = (self.contrast_logit + self.contrast_condition(embeddings)).sigmoid()
        return kappa

    def other_inputs(
        self,
        language_model: LanguageModel,
        requests: Sequence[EditRequest],
        instructions: Sequence[str | None],
        queries: Sequence[Encoded],
    ) -> OtherInputs | None:
        """See :meth:`GradientEditor.other_inputs`."""
        if not self.config.contrast:
            return None
        prompts = [self.prompt(*pair) for pair in zip(requests, instructions, strict=True)]
        others = [with_other_subject(prompt, r.subject) for prompt, r in zip(prompts, requests, strict=True)]
        encoded = [
            None if other is None else language_model.text.encode_pair(other, self.answer(request.target))
            for other, request in zip(others, requests, strict=True)
        ]
        return read_other_inputs(language_model, queries, encoded, self.split_layer, self.matrices)

    def deltas(self, signals: Mapping[str, Signal], embeddings: Tensor | None, edits: int) -> DeltaBatch:
        """See :meth:`GradientEditor.deltas`; one call of each hypernetwork for all its matrices."""
        device = self.log_lr.device
        index = {matrix.name: number for number, matrix in enumerate(self.matrices)}
        step_sizes = self.step_sizes(embeddings).expand(edits, -1)
        contrasts = self.contrasts(embeddings)
        factors: dict[str, Factor] = {}
        for shape, group in self._groups.items():
            inputs = [signals[matrix.name] for matrix in group]
            u = torch.cat([signal.u for signal in inputs]).to(device)
            delta = torch.cat([signal.delta for signal in inputs]).to(device)
            edit = torch.cat([signal.edit for signal in inputs]).to(device)
            sizes = [len(signal.edit) for signal in inputs]
            network = self.hypernetworks[shape]
            assert isinstance(network, Hypernetwork)
            if self.training:
                network.observe(u, delta)
            others = None
            if contrasts is not None and all(signal.other_u is not None for signal in inputs):
                kappa = contrasts.expand(edits, -1)
                parts = [kappa[s.edit.to(device), index[m.name], None] for m, s in zip(group, inputs, strict=True)]
                other_u = torch.cat([signal.other_u for signal in inputs if signal.other_u is not None]).to(device)
                others = (other_u, torch.cat(parts))
            pseudo_u, pseudo_delta = network(u, delta, sizes, embeddings, edit, others)
            for matrix, signal, a, b in zip(
                group, inputs, pseudo_u.split(sizes), pseudo_delta.split(sizes), strict=True
            ):
                alpha = step_sizes[:, index[matrix.name]][signal.edit.to(device)].to(b.dtype)
                factors[matrix.name] = stack_tokens(a, -alpha[:, None] * b, signal.edit, edits)
        ranks = {name: torch.bincount(signal.edit, minlength=edits).to(device) for name, signal in signals.items()}
        return DeltaBatch({matrix.name: factors[matrix.name] for matrix in self.matrices}, ranks)


def _zero_linear(embedding_dim: int, outputs: int) -> nn.Linear | None:
    """Return a linear map of the instruction embedding that is zero at the start; None without an embedding."""
    if not embedding_dim:
        return None
    linear = nn.Linear(embedding_dim, outputs, bias=False)
    nn.init.zeros_(linear.weight)
    return linear


class Mend(HypernetworkEditor[MendConfig]):
    """Maps the gradient to a low-rank delta by a trained hypernetwork; ignores instructions."""

    name = "mend"
    paper = "Mitchell et al. 2022"
    Config = MendConfig
