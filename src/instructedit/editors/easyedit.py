"""MEND checkpoints of EasyEdit, and of MEND's own code, as editors.

Both save the hypernetwork's state with pickle; it is read with ``weights_only``, which runs no code of the file. What
its names leave out, the order of the edited parameters above all, is in the YAML file that the training was configured
with (``inner_params``, ``rank``, ``n_hidden``, ``norm``, ``combine``, ``shared``).

Their update is +lr g~, with a learned lr of either sign, where ours is -alpha g~ with alpha > 0. So alpha = |lr|, and
the matrices with lr > 0 are those whose step goes up (:attr:`HypernetworkConfig.ascending`). Everything else is the
same network under other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from instructedit.editors.gradient import create_editor
from instructedit.editors.mend import Mend, MendConfig
from instructedit.errors import DataError, EditorError, validation_messages
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import linear_shape
from instructedit.storage.reading import read_yaml_file

_LAYER = re.compile(r"mlp\.layers\.(\d+)\.(u|v|bias|mode_scale\.weight|mode_shift\.weight)")
_STATISTICS = {"u_mean": "norm_u.mean", "u_s": "norm_u.square", "v_mean": "norm_delta.mean", "v_s": "norm_delta.square"}
_LAYER_NAMES = {
    "u": "up", "v": "down", "bias": "bias", "mode_scale.weight": "scale", "mode_shift.weight": "shift",
}  # fmt: skip


class EasyEditConfig(BaseModel):
    """The part of the other program's configuration that decides what its checkpoint means."""

    model_config = ConfigDict(extra="ignore")

    inner_params: list[str] = Field(min_length=1, description="names of the edited parameters, in this order")
    rank: int = Field(ge=1, description="of the hypernetwork's layers")
    n_hidden: int = Field(1, ge=0, description="layers of the hypernetwork, less one")
    norm: bool = Field(True, description="whether its inputs are normalised")
    combine: bool = Field(True, description="whether it reads input and gradient together")
    shared: bool = Field(True, description="whether matrices of one shape share a network")
    init: str = Field("id", description="of the layers; `id` adds the input to the output")
    mlp_class: str = Field("IDMLP", description="kind of network")


def convert_easyedit(checkpoint: Path, config_file: Path, language_model: LanguageModel) -> Mend:
    """Return the editor of a checkpoint; its edits are those of the program that trained it.

    Args:
        checkpoint: what the other program's trainer wrote.
        config_file: its YAML configuration.
        language_model: the base model that the checkpoint was trained for.

    Raises:
        DataError: a file cannot be read, or is something else.
        EditorError: the checkpoint is of another model, or of a variant that this project does not have.
    """
    try:
        theirs = EasyEditConfig.model_validate(read_yaml_file(config_file))
    except ValidationError as error:
        raise DataError("; ".join(validation_messages(error)), file=config_file) from None
    _check_variant(theirs, config_file)
    state = _state(checkpoint, language_model)
    names = [name.removesuffix(".weight") for name in theirs.inner_params]
    shapes = {name: _shape(language_model, name, config_file) for name in names}
    rates = state["edit_lrs"].float()
    if len(rates) != len(names):
        raise EditorError(f"the checkpoint has {len(rates)} step sizes, {config_file} {len(names)} inner_params")
    config = MendConfig(
        matrices=tuple(names),
        rank=theirs.rank,
        layers=theirs.n_hidden + 1,
        last_relu=True,
        ascending=tuple(name for name, rate in zip(names, rates.tolist(), strict=True) if rate > 0),
    )
    editor = create_editor(config, language_model)
    assert isinstance(editor, Mend)
    ours: dict[str, Tensor] = {}
    for shape in dict.fromkeys(shapes.values()):
        theirs_in_order = [name for name in names if shapes[name] == shape]
        ours_in_order = [matrix.name for matrix in editor.matrices if (matrix.inputs, matrix.outputs) == shape]
        network = str(shape) if theirs.shared else theirs_in_order[0].replace(".", "#") + "#weight"
        if not theirs.shared and len(theirs_in_order) > 1:
            raise EditorError("matrices of one shape have networks of their own (shared: false); here they share one")
        order = torch.tensor([theirs_in_order.index(name) for name in ours_in_order])
        prefix = f"mend.{network}."
        part = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        converted = _network(part, order, theirs.norm)
        ours |= {f"hypernetworks.{shape[0]}x{shape[1]}.{key}": tensor for key, tensor in converted.items()}
    sizes = {name: max(abs(rate), 1e-30) for name, rate in zip(names, rates.tolist(), strict=True)}
    ours["log_lr"] = torch.tensor([sizes[matrix.name] for matrix in editor.matrices]).log()
    try:
        editor.load_state_dict(ours)
    except RuntimeError as error:
        raise EditorError(f"the checkpoint does not fit {config_file} and the model: {error}") from None
    return editor.eval()


def _check_variant(config: EasyEditConfig, file: Path) -> None:
    """Raise an EditorError for a network that this project does not have."""
    for name, wanted in (("combine", True), ("init", "id"), ("mlp_class", "IDMLP")):
        value = getattr(config, name)
        if value != wanted:
            raise EditorError(f"{file}: only checkpoints with `{name}: {wanted}` can be converted, this has {value}")


def _state(checkpoint: Path, language_model: LanguageModel) -> Mapping[str, Tensor]:
    """Return the tensors of a checkpoint.

    It also contains the base model's config, as an object of its class, which is the only class that is let in.
    """
    try:
        with torch.serialization.safe_globals([type(language_model.model.config)]):
            content: Any = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch's reader has no error class of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot be read as a checkpoint without running its code: {reason}", file=checkpoint) from None
    state = content.get("model", content) if isinstance(content, dict) else {}
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if "edit_lrs" not in tensors:
        raise DataError("is not a checkpoint of MEND: it has no `edit_lrs`", file=checkpoint)
    return tensors


def _shape(language_model: LanguageModel, name: str, file: Path) -> tuple[int, int]:
    try:
        shape = linear_shape(language_model.model.get_submodule(name))
    except AttributeError:
        shape = None
    if shape is None:
        raise EditorError(f"{file}: the model has no linear layer {name}; is it the base model of the checkpoint?")
    return shape


def _network(part: Mapping[str, Tensor], order: Tensor, norm: bool) -> dict[str, Tensor]:
    """Return a network's tensors under our names, with the rows of the matrices in our order."""
    converted: dict[str, Tensor] = {}
    for key, tensor in part.items():
        layer = _LAYER.fullmatch(key)
        if key in _STATISTICS:
            converted[_STATISTICS[key]] = tensor.float()
        elif layer is not None:
            rows = tensor[order] if layer[2].startswith("mode") else tensor
            converted[f"layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}"] = rows.float()
    counts = part.get("k", torch.zeros(1)).double().squeeze()
    # Without normalisation, as before any training step, nothing was counted.
    count = counts if norm and bool(counts.isfinite()) else torch.zeros((), dtype=torch.float64)
    if not count:
        converted |= {key: torch.zeros_like(tensor) for key, tensor in converted.items() if key.startswith("norm_")}
    return converted | {"norm_u.count": count, "norm_delta.count": count}
