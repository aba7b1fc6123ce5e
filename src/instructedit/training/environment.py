"""Conditions of a training run: CPU threads, precision of matrix products, and the trunk cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from instructedit.models.language_model import LanguageModel
from instructedit.models.trunk_cache import TrunkCache
from instructedit.training.recipe import Optimisation, TrunkCacheSettings


@contextmanager
def numerics(opt: Optimisation) -> Iterator[None]:
    """Use the recipe's threads and matrix product precision, which PyTorch keeps per process, inside the ``with``."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    if opt.threads is not None:
        torch.set_num_threads(opt.threads)
    torch.set_float32_matmul_precision(opt.matmul_precision)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


@contextmanager
def trunk_cache(
    settings: TrunkCacheSettings, language_model: LanguageModel, split_layer: int
) -> Iterator[TrunkCache | None]:
    """Cache trunk states inside the ``with``; None if the settings disable the cache or there is no trunk."""
    if split_layer == 0 or settings.memory == 0:
        yield None
        return
    folder = None if settings.folder is None else Path(settings.folder)
    memory, disk = int(settings.memory * 1e9), int(settings.disk * 1e9)
    with language_model.cache_trunk(split_layer, memory=memory, folder=folder, disk=disk) as cache:
        yield cache
