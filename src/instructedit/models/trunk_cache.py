"""A cache of trunk states: a text that occurs again does not pass the frozen trunk again.

The trunk is frozen, so the hidden states of a text at the first edited block never change. Training has the same edits
and locality prompts in every epoch, and every trial editor has them again. States are kept in memory up to a number of
bytes, on the device that computed them. With a folder they are kept in the host's memory and also written to disk, one
safetensors file per text, where later processes find them.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instructedit.errors import DataError
from instructedit.models.text import Encoded, TokenBatch, pad
from instructedit.storage.tensors import pack, unpack
from instructedit.storage.writing import write_atomically

logger = logging.getLogger(__name__)

FORMAT = "instructedit-trunk-state/1"

#: The trunk: a padded batch of (rows, length) tokens to hidden states (rows, length, width).
Trunk = Callable[[TokenBatch], Tensor]


@dataclass(frozen=True)
class TrunkKey:
    """Identity of a trunk; states of different trunks are kept apart.

    Attributes:
        model: Fingerprint of the base model.
        split_layer: Index of the first block above the trunk.
        dtype: Of the states.
    """

    model: str
    split_layer: int
    dtype: str

    @property
    def folder_name(self) -> str:
        """Name of the folder for the trunk's states."""
        return f"{self.model}-{self.split_layer}-{self.dtype}"


class TrunkCache:
    """Trunk states by text, of which the least recently used leave memory first.

    Args:
        key: The trunk.
        memory: Largest size in memory, in bytes.
        folder: Where states are also written; None keeps them in memory only.
        disk: Largest size on disk, in bytes; nothing more is written once it is reached.

    Attributes:
        hits: Number of texts whose states were in the cache.
        misses: Number of texts that passed the trunk.
    """

    def __init__(self, key: TrunkKey, *, memory: int, folder: Path | None = None, disk: int = 0) -> None:
        self.memory = memory
        self.hits = self.misses = 0
        self._states: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._files = None if folder is None else _StateFiles(key, folder / key.folder_name, disk)

    @property
    def hit_rate(self) -> float:
        """Share of the texts whose states were in the cache."""
        texts = self.hits + self.misses
        return self.hits / texts if texts else 0.0

    def states(self, batch: TokenBatch, trunk: Trunk) -> Tensor:
        """Return the hidden states (rows, length, width) of a batch: those of ``trunk(batch)``, and zeros at padding.

        The trunk runs once over the texts that are not cached, in another order and with other padding than in the
        batch, so the last digits may differ from those without a cache.
        """
        device = batch.ids.device
        ids, mask = batch.ids.cpu(), batch.mask.cpu()
        texts = [row[is_token] for row, is_token in zip(ids, mask, strict=True)]
        names = [hashlib.blake2b(text.numpy().tobytes(), digest_size=16).hexdigest() for text in texts]
        states = {name: state for name in dict.fromkeys(names) if (state := self._get(name)) is not None}
        self.hits += sum(name in states for name in names)
        self.misses += sum(name not in states for name in names)
        missing = {name: text for name, text in zip(names, texts, strict=True) if name not in states}
        if missing:
            queries = [Encoded(tuple(text.tolist()), len(text)) for text in missing.values()]
            computed = trunk(pad(queries, 0).to(device))
            if self._files is not None:  # states from disk and from the trunk meet in the host's memory
                computed = computed.cpu()
            for name, query, row in zip(missing, queries, computed, strict=True):
                states[name] = row[: len(query.ids)].clone()
                self._keep(name, states[name])
                if self._files is not None:
                    self._files.write(name, states[name])
        first = states[names[0]]
        hidden = first.new_zeros(*mask.shape, first.shape[-1])
        hidden[mask.to(first.device)] = torch.cat([states[name] for name in names])
        return hidden.to(device)

    def clear(self) -> None:
        """Empty the memory; states on disk stay."""
        self._states.clear()
        self._bytes = 0

    def _get(self, name: str) -> Tensor | None:
        if name in self._states:
            self._states.move_to_end(name)
            return self._states[name]
        state = None if self._files is None else self._files.read(name)
        if state is not None:
            self._keep(name, state)
        return state

    def _keep(self, name: str, state: Tensor) -> None:
        self._states[name] = state
        self._bytes += state.nbytes
        while self._bytes > self.memory and self._states:
            _, oldest = self._states.popitem(last=False)
            self._bytes -= oldest.nbytes


class _StateFiles:
    """States on disk, one file per text.

    Args:
        key: The trunk, which each file names.
        folder: Of the files.
        max_bytes: Nothing more is written once the files are that large together.
    """

    def __init__(self, key: TrunkKey, folder: Path, max_bytes: int) -> None:
        self._header = {"format": FORMAT, "trunk": key.folder_name}
        self._folder = folder
        self._free = max_bytes - sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    def read(self, name: str) -> Tensor | None:
        """Return the states of a text or None; a file that is damaged or of another trunk is deleted."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            header, tensors = unpack(path, FORMAT, "trunk states", DataError)
            if header.get("trunk") != self._header["trunk"] or tensors.keys() != {"state"}:
                raise DataError("belongs to another trunk", file=path)
        except DataError as error:
            logger.warning("%s: it is deleted, and its states are computed again", error)
            with suppress(OSError):
                path.unlink()
            return None
        return tensors["state"]

    def write(self, name: str, state: Tensor) -> None:
        """Write the states of a text, unless that takes more than the free bytes."""
        content = pack({"state": state}, self._header)
        if len(content) > self._free:
            return
        try:
            write_atomically(self._path(name), content)
        except DataError as error:  # usually a full disk; states can be computed again, so the work continues
            logger.warning("%s: no more trunk states are written; those on disk are still read", error)
            self._free = 0
            return
        self._free -= len(content)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"
