"""A delta as a LoRA adapter: the changes of all matrices with one rank, as the servers of language models load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instructedit.deltas.delta import Delta
from instructedit.deltas.factors import LowRank
from instructedit.errors import DeltaError
from instructedit.models.language_model import LanguageModel

#: The ranks that vLLM accepts; the largest one that it loads without --max-lora-rank.
RANKS, DEFAULT_MAXIMUM = (8, 16, 32, 64, 128, 256, 320, 512), 16


@dataclass(frozen=True)
class LoraAdapter:
    """The change alpha / r * B A of the weights (outputs, inputs) of linear layers, with alpha = r.

    Attributes:
        rank: r, the same for all matrices.
        a: A by module name, (rank, inputs).
        b: B by module name, (outputs, rank).
        warnings: what a server may refuse, and what to do.
    """

    rank: int
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    warnings: tuple[str, ...] = ()


def as_lora(delta: Delta, language_model: LanguageModel, *, fill_blocks: bool = False) -> LoraAdapter:
    """Return the delta as a LoRA adapter in float32; factors are padded with zeros to one of :data:`RANKS`.

    Args:
        delta: the edit.
        language_model: its base model.
        fill_blocks: add zeros for the matrices that some edited block changes and another edited block does not, so
            that the adapter can be described by its blocks and by the last part of its modules' names.

    Raises:
        DeltaError: the delta does not belong to the model, its rank is too high, or a matrix is no plain linear layer.
    """
    delta.check(language_model)
    highest = max(factor.rank for factor in delta.factors.values())
    rank = next((rank for rank in RANKS if rank >= highest), None)
    if rank is None:
        raise DeltaError(f"the delta has rank {highest}; servers load at most {RANKS[-1]}. Compress it with --rank")
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for name, factor in delta.factors.items():
        if not isinstance(language_model.model.get_submodule(name), nn.Linear):
            raise DeltaError(
                f"{name} is not a plain linear layer (GPT-2 has transposed ones), and servers load no LoRA for such "
                "layers; use --format merged"
            )
        low = factor if isinstance(factor, LowRank) else factor.compress(rank)[0]
        a[name] = _padded(low.a.mT, rank)
        b[name] = _padded(low.b, rank).mT.contiguous()
    if fill_blocks:
        for name, (inputs, outputs) in _unchanged(delta, language_model).items():
            a[name], b[name] = torch.zeros(rank, inputs), torch.zeros(outputs, rank)
    warnings = []
    if rank > DEFAULT_MAXIMUM:
        warnings.append(
            f"rank {rank}: start vLLM with --max-lora-rank {rank}, its default is {DEFAULT_MAXIMUM}; or compress the "
            f"delta with --rank {DEFAULT_MAXIMUM}"
        )
    return LoraAdapter(rank, a, b, tuple(warnings))


def edited_blocks(delta: Delta, language_model: LanguageModel) -> tuple[list[int], list[str]]:
    """Return the indices of the edited blocks, and the last parts of the names of what is edited in them.

    Raises:
        ModelError: a matrix is not part of a block.
    """
    blocks = sorted({language_model.structure.block_of(name) for name in delta.factors})
    return blocks, sorted({name.rpartition(".")[2] for name in delta.factors})


def _unchanged(delta: Delta, language_model: LanguageModel) -> dict[str, tuple[int, int]]:
    """Return the shapes of the matrices that :func:`as_lora` fills up, by name."""
    blocks, endings = edited_blocks(delta, language_model)
    prefixes = tuple(f"{language_model.structure.blocks[block]}." for block in blocks)
    return {
        name: (module.in_features, module.out_features)
        for name, module in language_model.model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(prefixes)
        and name.rpartition(".")[2] in endings
        and name not in delta.factors
    }


def _padded(rows: Tensor, rank: int) -> Tensor:
    """Return (rank, width) in float32: the rows, then zeros."""
    padded = torch.zeros(rank, rows.shape[1])
    padded[: rows.shape[0]] = rows.detach().float().cpu()
    return padded
