"""Tensors in the cache folder, which can be computed again."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from instructedit.errors import DataError
from instructedit.storage.cache import CACHE_VARIABLE, cache_folder
from instructedit.storage.writing import write_atomically

logger = logging.getLogger(__name__)

_NAME = "tensor"


def cached_tensor(name: str | Path, shape: tuple[int, ...]) -> Tensor | None:
    """Return a cached tensor in float32; None where there is none, it is damaged, or has another shape.

    Args:
        name: of its file in the cache folder.
        shape: that it has to have.
    """
    try:
        with safe_open(str(cache_folder() / name), framework="pt") as stored:
            tensor: Tensor = stored.get_tensor(_NAME)
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return None
    usable = tensor.shape == shape and tensor.dtype is torch.float32 and bool(tensor.isfinite().all())
    return tensor if usable else None


def keep_tensor(name: str | Path, tensor: Tensor, what: str) -> None:
    """Cache a tensor; where that is not possible, warn that ``what`` will be computed again."""
    try:
        write_atomically(cache_folder() / name, save({_NAME: tensor.float().cpu().contiguous()}))
    except DataError as error:
        logger.warning("%s; %s are not cached. Set %s to another folder", error, what, CACHE_VARIABLE)
