"""A bounded memory of trunk states: a text that comes again does not pass the trunk again.

The trunk is frozen, so the hidden state of a text at the cut never changes. Training meets the same edits and
locality prompts in every epoch, and every trial editor meets them anew. States are kept up to a limit, on the device
that computed them. With a folder they are kept in the host's memory and the least recently used go to disk as
safetensors shards, which are memory-mapped when read and outlive the process. A shard says which model, cut and number
format it belongs to and carries a checksum: one that is foreign or damaged is thrown away and computed again.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from instructedit.errors import DataError
from instructedit.models.text import Encoded, TokenBatch, pad
from instructedit.storage.writing import write_atomically

logger = logging.getLogger(__name__)

#: States of a trunk for padded queries: (rows, length) tokens to (rows, length, width).
Trunk = Callable[[TokenBatch], Tensor]

SHARD_BYTES = 64_000_000
#: What reading a damaged shard raises: its header may say anything.
_UNREADABLE = (OSError, SafetensorError, ValueError, RuntimeError, TypeError, AttributeError, KeyError)


@dataclass(frozen=True)
class TrunkKey:
    """What states belong to; nothing is shared between different ones.

    Attributes:
        model: fingerprint of the base model.
        split_layer: index of the first block above the trunk.
        dtype: of the states.
    """

    model: str
    split_layer: int
    dtype: str

    @property
    def folder_name(self) -> str:
        return f"{self.model}-{self.split_layer}-{self.dtype}"

    def metadata(self) -> dict[str, str]:
        return {"model": self.model, "split_layer": str(self.split_layer), "dtype": self.dtype}


class TrunkCache:
    """States by text, least recently used first.

    Args:
        key: what the states belong to.
        memory: bytes of states held in memory.
        folder: where states go that memory has no room for; None forgets them.
        disk: bytes of shards kept in the folder; the oldest go first.
    """

    def __init__(self, key: TrunkKey, *, memory: int, folder: Path | None = None, disk: int = 0) -> None:
        self.key = key
        self.memory = memory
        self.disk = disk
        self.folder = None if folder is None else folder / key.folder_name
        self.hits = self.misses = 0
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._held_bytes = 0
        self._writes = True
        self._unwritten: dict[str, Tensor] = {}
        self._unwritten_bytes = 0
        self._shards: OrderedDict[Path, int] = OrderedDict()
        self._on_disk: dict[str, Path] = {}
        self._open_shards: dict[Path, Any] = {}
        if self.folder is not None:
            self._open()

    @property
    def hit_rate(self) -> float:
        """Share of the texts asked for that needed no trunk."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0

    def states(self, batch: TokenBatch, trunk: Trunk) -> Tensor:
        """(rows, length, width) at real tokens what ``trunk(batch)`` gives; zero at padding.

        The trunk runs once over the rows that are not known, in any order and with other padding, so floating
        point may round otherwise in the last digit than without a cache.
        """
        device = batch.ids.device
        ids, mask = batch.ids.cpu(), batch.mask.cpu()
        rows = [row[kept] for row, kept in zip(ids, mask, strict=True)]
        names = [hashlib.blake2b(row.numpy().tobytes(), digest_size=16).hexdigest() for row in rows]
        found = {name: state for name in dict.fromkeys(names) if (state := self._get(name)) is not None}
        self.hits += sum(name in found for name in names)
        self.misses += len(names) - sum(name in found for name in names)
        missing = {name: row for name, row in zip(names, rows, strict=True) if name not in found}
        if missing:
            queries = [Encoded(tuple(row.tolist()), len(row)) for row in missing.values()]
            computed = trunk(pad(queries, 0).to(device))
            if self.folder is not None:  # what goes to disk, and comes from there, passes the host's memory
                computed = computed.cpu()
            for name, query, state in zip(missing, queries, computed, strict=True):
                found[name] = state[: len(query.ids)].clone()
                self._put(name, found[name])
        first = found[names[0]]
        hidden = first.new_zeros(*mask.shape, first.shape[-1])
        hidden[mask.to(first.device)] = torch.cat([found[name] for name in names])
        return hidden.to(device)

    def clear(self) -> None:
        """Forget what is in memory."""
        self._held.clear()
        self._held_bytes = 0

    def flush(self) -> None:
        """Write to disk what is only in memory."""
        if self.folder is not None and self._unwritten:
            self._write_shard()

    def _get(self, name: str) -> Tensor | None:
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        path = self._on_disk.get(name)
        shard = None if path is None else self._shard(path)
        if path is None or shard is None:
            return None
        self._shards.move_to_end(path)
        try:
            state: Tensor = shard.get_tensor(name)
        except _UNREADABLE:
            self._refuse(path, "is damaged")
            return None
        self._hold(name, state)
        return state

    def _put(self, name: str, state: Tensor) -> None:
        self._hold(name, state)
        if self.folder is not None and self._writes:
            self._unwritten[name] = state
            self._unwritten_bytes += state.nbytes
            if self._unwritten_bytes >= min(SHARD_BYTES, max(self.disk, 1)):
                self._write_shard()

    def _hold(self, name: str, state: Tensor) -> None:
        self._held[name] = state
        self._held_bytes += state.nbytes
        while self._held_bytes > self.memory and self._held:
            _, oldest = self._held.popitem(last=False)
            self._held_bytes -= oldest.nbytes

    def _write_shard(self) -> None:
        assert self.folder is not None
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        metadata = {**self.key.metadata(), "checksum": _checksum(self._unwritten.items())}
        try:
            write_atomically(path, save(self._unwritten, metadata))
        except DataError as error:  # a full disk, mostly: states can be computed again, so the work goes on
            logger.warning("%s: trunk states are no longer written to disk; existing ones are still used", error)
            self._unwritten, self._unwritten_bytes, self._writes = {}, 0, False
            return
        self._shards[path] = path.stat().st_size
        self._on_disk.update(dict.fromkeys(self._unwritten, path))
        self._unwritten, self._unwritten_bytes = {}, 0
        while sum(self._shards.values()) > self.disk and self._shards:
            self._discard(next(iter(self._shards)))

    def _discard(self, path: Path) -> None:
        self._shards.pop(path, None)
        self._open_shards.pop(path, None)
        self._on_disk = {name: place for name, place in self._on_disk.items() if place != path}
        with suppress(OSError):  # a folder of that name, or one that may not be written
            path.unlink(missing_ok=True)

    def _open(self) -> None:
        """Take over the folder's shards; refuse what is not a shard of this trunk."""
        assert self.folder is not None
        for path in sorted(self.folder.glob("*.safetensors"), key=_written_at):
            try:
                with safe_open(str(path), framework="pt") as shard:
                    names, metadata = list(shard.keys()), dict(shard.metadata() or {})
            except _UNREADABLE as error:
                self._refuse(path, f"cannot be read ({error})")
                continue
            metadata.pop("checksum", None)
            if metadata != self.key.metadata():
                self._refuse(path, "belongs to another trunk")
                continue
            with suppress(OSError):  # another process may have discarded it just now
                self._shards[path] = path.stat().st_size
                self._on_disk.update(dict.fromkeys(names, path))

    def _shard(self, path: Path) -> Any | None:
        """The shard, memory-mapped once; its checksum is compared when it is first read, a damaged one discarded."""
        if path not in self._open_shards:
            try:
                shard: Any = safe_open(str(path), framework="pt")
                expected = dict(shard.metadata() or {}).get("checksum")
                sound = expected == _checksum((name, shard.get_tensor(name)) for name in shard.keys())  # noqa: SIM118
            except _UNREADABLE:
                sound = False
            if not sound:
                self._refuse(path, "is damaged")
                return None
            self._open_shards[path] = shard
        return self._open_shards[path]

    def _refuse(self, path: Path, problem: str) -> None:
        logger.warning("%s %s: it is discarded, and its states are computed again", path, problem)
        self._discard(path)


def _written_at(path: Path) -> float:
    """When a shard was written; 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _checksum(states: Iterable[tuple[str, Tensor]]) -> str:
    """Independent of order: the sum of the CRC-32 of every name and state."""
    total = 0
    for name, state in states:
        content = state.contiguous().view(torch.uint8).numpy().tobytes()
        total += zlib.crc32(content, zlib.crc32(name.encode()))
    return str(total)
