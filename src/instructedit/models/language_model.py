"""The base model: a Hugging Face model with its tokenizer, structure and fingerprint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from instructedit.artifacts import shipped_models
from instructedit.errors import EditorError, ModelError
from instructedit.models.catalogue import known_models
from instructedit.models.chat import Message, render_chat
from instructedit.models.checkpoint import (
    build_on_meta_device,
    check_memory,
    check_model,
    check_source,
    load_weights,
    read_config,
    wrap_load_errors,
)
from instructedit.models.checkpoint_files import stored_tensors
from instructedit.models.devices import check_device, check_device_map
from instructedit.models.fetch import fetch_model
from instructedit.models.fingerprint import (
    architecture_fingerprint,
    sketch_distance,
    weights_fingerprint,
    weights_sketch,
)
from instructedit.models.fusion import fuse_activations_in_place
from instructedit.models.gguf import is_gguf, load_gguf
from instructedit.models.hooks import execution_device
from instructedit.models.split import SplitForward, blocks_return_tuples
from instructedit.models.structure import Structure, find_structure
from instructedit.models.text import TextEncoder
from instructedit.models.trunk_cache import TrunkCache, TrunkKey

BUNDLED = "bundled"
BUNDLED_FOLDER = shipped_models()[BUNDLED]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ADVICE = (
    "Give a name that `instructedit models` lists, a folder with config.json, model.safetensors and a tokenizer, a "
    "GGUF file, or a hub id that can be reached from here."
)


class LanguageModel:
    """A frozen base model that can be edited.

    Instances are thread-safe: making an edit, attaching one, running the split forward and generating acquire
    :attr:`lock`, so threads take turns, and ``with delta.attached(model)`` blocks other threads until it ends. To edit
    in parallel, give each thread or process its own instance. Direct calls of :attr:`model`, the Hugging Face model,
    are not protected, and a copy of it that is made while a delta is attached stays edited.

    Args:
        model: a causal language model. It is run on one token here, and its parameters stop requiring gradients.
        tokenizer: its tokenizer.
        source: where the model comes from, for messages and metadata.
        fingerprint: fingerprint of the checkpoint, needed only if loading has lost precision (float16); by default that
            of ``model``.

    Attributes:
        lock: re-entrant lock that every use of the model acquires.
        attached: number of deltas that are attached to the full model.
        merged: whether a delta has been merged into the weights. Such a model no longer matches its fingerprint and
            accepts neither edits nor deltas. Load the base model again, or use the merged model as a new base model:
            ``LanguageModel(merged.model, merged.tokenizer)``.

    Raises:
        ModelError: the arguments are not a model and a tokenizer, or the model's architecture is not supported.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: str = "a model in memory",
        *,
        fingerprint: str | None = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module) or not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ModelError(
                "LanguageModel takes a loaded Hugging Face model and its tokenizer, not "
                f"{type(model).__name__} and {type(tokenizer).__name__}; to load a folder or hub id, use "
                "load_language_model"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.source = source
        self.lock = RLock()
        self.attached = 0
        self.merged = False
        self.structure: Structure = find_structure(model)
        self.text = self._text_encoder()
        if fingerprint is not None:
            self.fingerprint = fingerprint
        self._returns_tuple = blocks_return_tuples(model, self.structure, self.device)
        self._splits: dict[int, SplitForward] = {}

    def __repr__(self) -> str:
        """Return source, model class and size."""
        structure = self.structure
        size = f"{len(structure.blocks)} blocks, hidden size {structure.hidden}"
        return f"LanguageModel({self.source!r}: {type(self.model).__name__}, {size})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, which gets its own lock.

        Raises:
            ModelError: a delta is attached. Its hooks would be copied, too, and could not be removed from the copy.
        """
        if self.attached:
            raise ModelError("a model cannot be copied while a delta is attached to it; copy it outside of the `with`")
        return {name: value for name, value in vars(self).items() if name not in ("lock", "text", "_splits")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state of a copy."""
        vars(self).update(state)
        self.lock = RLock()
        self.text = self._text_encoder()
        self._splits = {}

    def _text_encoder(self) -> TextEncoder:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return TextEncoder(self.tokenizer, int(limit or 1_000_000), embeddings=self._embedding.shape[0])

    @property
    def _embedding(self) -> torch.Tensor:
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def device(self) -> torch.device:
        """Device of the inputs: where the embedding runs, also if its weights are offloaded."""
        return execution_device(self.model.get_input_embeddings())

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters as loaded."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    @contextmanager
    def editing(self) -> Iterator[None]:
        """Acquire the lock to make an edit of the base model.

        Raises:
            EditorError: a delta is attached or merged, so the model is not the base model.
        """
        with self.lock:
            if self.attached:
                raise EditorError(
                    f"{self.attached} delta(s) are attached, so the edit would be made for the edited model and not "
                    "for the base model: leave the `with delta.attached(…)` block first. To combine edits, add their "
                    "deltas: a + b"
                )
            if self.merged:
                raise EditorError(self.merged_message)
            yield

    @property
    def merged_message(self) -> str:
        """Error message for a model with a merged delta."""
        return (
            f"the weights of {self.source} hold a merged delta, so they are no longer those of {self.fingerprint}: "
            "load the base model again, or use the merged model as a new base model: "
            "LanguageModel(merged.model, merged.tokenizer)"
        )

    def split(self, split_layer: int) -> SplitForward:
        """Return the forward pass split before block ``split_layer``; there is one instance for each layer."""
        if split_layer not in self._splits:
            self._splits[split_layer] = SplitForward(
                self.model, self.structure, split_layer, returns_tuple=self._returns_tuple, lock=self.lock
            )
        return self._splits[split_layer]

    @contextmanager
    def cache_trunk(
        self, split_layer: int, *, memory: int, folder: Path | None = None, disk: int = 0
    ) -> Iterator[TrunkCache]:
        """Cache the trunk's output for each text inside the ``with`` block; see :class:`TrunkCache`.

        In nested blocks for the same layer the outer cache is used.

        Args:
            split_layer: index of the first block of the top.
            memory: maximum size of the cache in memory, in bytes.
            folder: folder for the part of the cache on disk; None caches in memory only.
            disk: maximum size of the cache on disk, in bytes.
        """
        split = self.split(split_layer)
        if split.cache is not None:
            yield split.cache
            return
        key = TrunkKey(self.fingerprint, split_layer, str(self.model.dtype).removeprefix("torch."))
        split.cache = TrunkCache(key, memory=memory, folder=folder, disk=disk)
        try:
            yield split.cache
        finally:
            split.cache = None

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the weights as loaded; see :func:`weights_fingerprint`.

        float16 loses other bits than the bfloat16 of the fingerprint, so :func:`load_language_model` passes the
        checkpoint's fingerprint for a float16 copy.
        """
        return weights_fingerprint(self.model)

    @cached_property
    def architecture(self) -> str:
        """Fingerprint of architecture and tokenizer; see :func:`architecture_fingerprint`."""
        return architecture_fingerprint(self.model, self.tokenizer)

    @cached_property
    def sketch(self) -> str:
        """A few values of every matrix; see :func:`weights_sketch`."""
        return weights_sketch(self.model)

    def chat_prompt(self, message: str, *, system: str | None = None, history: Sequence[Message] = ()) -> str:
        """Return a user's message in the model's chat template, up to where the assistant's answer begins.

        Args:
            message: what the user says.
            system: system prompt; None leaves it to the template, which may have its own.
            history: earlier turns, of roles ``user`` and ``assistant``.

        Raises:
            ModelError: the model has no chat template, or the template refuses the messages.
        """
        messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        return render_chat(self.tokenizer, [*messages, *history, {"role": "user", "content": message}])

    def distance_to(self, architecture: str, sketch: str) -> float | None:
        """Return how far the weights are from those of another model, None where the two cannot be compared.

        Args:
            architecture: :attr:`architecture` of the other model.
            sketch: its :attr:`sketch`.
        """
        return sketch_distance(sketch, self.sketch) if architecture == self.architecture else None


def check_language_model(model: object) -> None:
    """Check that a model is wrapped.

    Raises:
        ModelError: it is something else, such as a model of Hugging Face.
    """
    if not isinstance(model, LanguageModel):
        raise ModelError(
            f"expected a LanguageModel, not {type(model).__name__}. Wrap it: LanguageModel(model, tokenizer)"
        )


def load_language_model(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
) -> LanguageModel:
    """Load a causal language model with its tokenizer.

    Args:
        source: a name that ``instructedit models`` lists, which is downloaded at its first use; a folder with a Hugging
            Face checkpoint; a GGUF file, whose weights are dequantised; or a hub id. A model that is already loaded is
            wrapped with :class:`LanguageModel` instead.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (as stored; float32 for a GGUF file).
        device: device of the model; the CPU by default. ``auto`` uses a GPU if there is one; with several processes on
            a machine each uses its own. Excludes ``device_map``.
        device_map: ``auto`` or another strategy of Accelerate, or a device for each module name. Modules on ``disk``
            are read from the checkpoint whenever they run.

    Raises:
        ModelError: the checkpoint does not exist, has no safetensors weights or is damaged, the model is not a dense
            decoder-only model, or there is no such device.
    """
    path = check_source(source)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; use one of auto, {', '.join(DTYPES)}")
    if device is not None and device_map is not None:
        raise ModelError("give either a device or a device_map, not both")
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if device is not None:
        check_device(device)
    with wrap_load_errors(f"the model {source}", ModelError, _ADVICE):
        return _load(_checkpoint(path), source, dtype, device, device_map)


def _checkpoint(source: str) -> Path:
    """Return the checkpoint of a model: a shipped one, one that is fetched if need be, a path, or a hub id."""
    if source in shipped_models():
        return shipped_models()[source]
    known = known_models().get(source)
    return Path(source) if known is None else fetch_model(known)


def _load(
    path: Path,
    source: str | Path,
    dtype: str,
    device: str | None,
    device_map: str | Mapping[str, str | int] | None,
) -> LanguageModel:
    on_cpu = device_map is None and torch.device(device or "cpu").type == "cpu"
    fingerprint = None
    if is_gguf(path):
        exact = dtype in ("auto", "float16")  # float16 loses other bits than the bfloat16 of the fingerprint
        loaded_as = torch.float32 if exact else DTYPES[dtype]
        model, tokenizer = load_gguf(path, loaded_as, device_map=device_map, eager_attention=on_cpu)
        if dtype == "float16":
            fingerprint = weights_fingerprint(model)
            model = model.half()
    else:
        model, fingerprint = _load_checkpoint(path, source, dtype, device_map, on_cpu=on_cpu)
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    check_model(model, tokenizer, source)
    fuse_activations_in_place(model)
    if device is not None:
        torch.nn.Module.to(model, device)
    return LanguageModel(model, tokenizer, str(source), fingerprint=fingerprint)


def _load_checkpoint(
    path: Path,
    source: str | Path,
    dtype: str,
    device_map: str | Mapping[str, str | int] | None,
    *,
    on_cpu: bool,
) -> tuple[PreTrainedModel, str | None]:
    """Return the model of a checkpoint folder or hub id, and its fingerprint where loading loses it, else None."""
    config = read_config(str(path), source)
    stored = stored_tensors(path) if path.is_dir() else {}
    meta_model = build_on_meta_device(config, stored, source)
    if device_map is not None:
        check_device_map(device_map, meta_model)
    elif on_cpu and stored:
        check_memory(meta_model, stored, dtype, 0 if dtype == "auto" else DTYPES[dtype].itemsize, path)

    def read(dtype: torch.dtype | str) -> PreTrainedModel:
        return load_weights(path, source, dtype, device_map, eager_attention=on_cpu)

    fingerprint = None
    if dtype == "float16" and {tensor.dtype for tensor in stored.values()} != {"F16"}:
        # Conversion to float16 loses other bits than the bfloat16 of the fingerprint, which is therefore computed from
        # a bfloat16 copy.
        fingerprint = weights_fingerprint(read(torch.bfloat16))
    return read(DTYPES.get(dtype, "auto")), fingerprint
