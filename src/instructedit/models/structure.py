"""Detection of a language model's blocks and MLPs from its module tree and weight shapes.

No class name, model type or parameter name is used, so a new architecture works without a change if its blocks have
the usual structure.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from instructedit.errors import ModelError


@dataclass(frozen=True)
class Matrix:
    """A linear layer y = x W (+ bias) that can be edited.

    Attributes:
        name: the module's dotted name in the model.
        inputs: width of x.
        outputs: width of y.
    """

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Structure:
    """The parts of a decoder-only model that editing uses.

    Attributes:
        blocks: names of the transformer blocks, first to last.
        mlps: for each block, the matrices of its MLP in the order of the module tree.
        final_norm: name of the norm after the last block; None if there is none.
        head: name of the output layer, which computes the logits.
        hidden: hidden size, the width of the residual stream.
    """

    blocks: tuple[str, ...]
    mlps: tuple[tuple[Matrix, ...], ...]
    final_norm: str | None
    head: str
    hidden: int

    def last_mlps(self, blocks: int) -> tuple[Matrix, ...]:
        """Return the MLP matrices of the last ``blocks`` blocks, first to last (the paper edits the last 3).

        Raises:
            ModelError: the model has fewer blocks.
        """
        if not 1 <= blocks <= len(self.blocks):
            raise ModelError(
                f"cannot edit the last {blocks} blocks: the model has {len(self.blocks)}. Set editor.blocks to at most "
                "that number"
            )
        return tuple(matrix for mlp in self.mlps[-blocks:] for matrix in mlp)

    def block_of(self, name: str) -> int:
        """Return the index of the block that contains the module ``name``.

        Raises:
            ModelError: the module is not part of any block.
        """
        for index, block in enumerate(self.blocks):
            if name.startswith(block + "."):
                return index
        raise ModelError(f"module {name} is not part of a block; the blocks are {self.blocks[0]} … {self.blocks[-1]}")


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (inputs, outputs) of a linear layer or of GPT-2's transposed ``Conv1D``; None for any other module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return int(inputs), int(outputs)
    return None


def find_structure(model: PreTrainedModel) -> Structure:
    """Find the blocks, MLPs, final norm and head of a model.

    Raises:
        ModelError: the model is an encoder-decoder or a mixture of experts, or has no recognisable blocks or MLPs. The
            message lists the modules that were considered.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError("this is an encoder-decoder model; only decoder-only causal language models can be edited")
    hidden = int(model.config.get_text_config().hidden_size)
    names = {module: name for name, module in model.named_modules()}
    stack = _block_stack(model)
    mlps = []
    for block in stack:
        _refuse_experts(block, names[block])
        mlps.append(_mlp(block, names[block], hidden))
    head = model.get_output_embeddings()
    if head is None or head not in names:
        raise ModelError("the model has no output embeddings; load it as a causal language model")
    return Structure(
        blocks=tuple(names[block] for block in stack),
        mlps=tuple(mlps),
        final_norm=_final_norm(model, stack, hidden),
        head=names[head],
        hidden=hidden,
    )


def _block_stack(model: nn.Module) -> list[nn.Module]:
    """Return the blocks: the children of the ``ModuleList`` of one module type that has the most parameters."""
    candidates = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 0
        and len({type(child) for child in module}) == 1
        and sum(linear_shape(part) is not None for part in module[0].modules()) >= 2
    ]
    if not candidates:
        lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        raise ModelError(
            f"found no stack of transformer blocks in {type(model).__name__}; its module lists: {lists or 'none'}"
        )
    return max(candidates, key=lambda stack: sum(p.numel() for block in stack for p in block.parameters()))


def _refuse_experts(block: nn.Module, name: str) -> None:
    fused = [n for n, p in block.named_parameters() if p.ndim == 3]
    listed = [
        n
        for n, module in block.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 1
        and any(linear_shape(part) for part in module.modules())
    ]
    if fused or listed:
        raise ModelError(
            f"block {name} is a mixture of experts ({(fused + listed)[0]}), which routes tokens to several MLPs. Only "
            "dense models can be edited"
        )


def _mlp(block: nn.Module, name: str, hidden: int) -> tuple[Matrix, ...]:
    """Return the matrices of a block's MLP.

    An MLP consists of sibling modules: one down projection (inner -> hidden) and one or two up projections
    (hidden -> inner, or hidden -> 2 * inner where gate and up are fused). Attention with fused projections can have the
    same pattern but is narrower, so the group with the largest inner width is the MLP.
    """
    groups: list[tuple[int, tuple[Matrix, ...]]] = []
    shapes = []
    for prefix, parent in block.named_modules(prefix=name):
        matrices = tuple(
            Matrix(f"{prefix}.{child_name}", *shape)
            for child_name, child in parent.named_children()
            if (shape := linear_shape(child)) is not None
        )
        shapes += [f"{m.name} {m.inputs}->{m.outputs}" for m in matrices]
        inner = _inner_width(matrices, hidden)
        if inner is not None:
            groups.append((inner, matrices))
    if not groups:
        raise ModelError(
            f"found no MLP in block {name} (hidden size {hidden}); its linear layers: {'; '.join(shapes) or 'none'}. "
            "Name the matrices to edit in the recipe (editor.matrices)"
        )
    return max(groups, key=lambda group: group[0])[1]


def _inner_width(matrices: tuple[Matrix, ...], hidden: int) -> int | None:
    """Return the inner width of an MLP that consists of these matrices; None if they do not form one."""
    if not 2 <= len(matrices) <= 3:
        return None
    for down in matrices:
        others = [m for m in matrices if m is not down]
        fused = len(others) == 1 and others[0].outputs == 2 * down.inputs
        if (
            down.outputs == hidden
            and all(m.inputs == hidden for m in others)
            and (fused or all(m.outputs == down.inputs for m in others))
        ):
            return down.inputs
    return None


def _final_norm(model: nn.Module, stack: list[nn.Module], hidden: int) -> str | None:
    """Return the name of the last module outside the blocks whose weight is a vector of the hidden size."""
    inside = {module for block in stack for module in block.modules()}
    norms = [
        name
        for name, module in model.named_modules()
        if module not in inside and [tuple(p.shape) for p in module.parameters(recurse=False)][:1] == [(hidden,)]
    ]
    return norms[-1] if norms else None
