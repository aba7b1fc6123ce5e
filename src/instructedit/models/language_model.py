"""A base model as the other rooms see it: the Hugging Face model, its tokenizer, structure and fingerprint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from accelerate.utils.modeling import align_module_device
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from instructedit.artifacts import shipped_models
from instructedit.errors import EditorError, ModelError
from instructedit.models.checkpoint import (
    build_without_memory,
    check_device,
    check_device_map,
    check_memory,
    check_model,
    check_source,
    loading,
    read_config,
    stored_tensors,
)
from instructedit.models.fusion import fuse_activations_in_place
from instructedit.models.hooks import device_of
from instructedit.models.split import SplitForward, blocks_return_tuples
from instructedit.models.structure import Structure, find_structure
from instructedit.models.text import TextEncoder
from instructedit.models.trunk_cache import TrunkCache, TrunkKey

BUNDLED = "bundled"
BUNDLED_FOLDER = shipped_models()[BUNDLED]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADVICE = (
    "Give `bundled`, a folder with config.json, model.safetensors and a tokenizer, or a hub id that can be reached "
    "from here."
)


class LanguageModel:
    """A frozen base model with what editing needs to know of it.

    Threads may share one. Whatever attaches an edit, makes one, runs the split forward or generates holds :attr:`lock`
    meanwhile, so threads take turns and each gets what it would get alone; a ``with delta.attached(model)`` keeps the
    others waiting until it ends. For work in parallel give each thread or process a model of its own. Calls of
    ``model`` itself, the Hugging Face model, are not guarded, and a copy of it made while an edit is attached stays
    edited.

    Args:
        model: a causal language model, which is run on one token here; its parameters stop requiring gradients.
        tokenizer: its tokenizer.
        source: where it came from, for messages and metadata.
        fingerprint: of the checkpoint, where ``model`` is a copy in which numbers were lost; default that of ``model``.

    Attributes:
        lock: held by whoever uses the model; re-entrant.
        attached: how many whole-model deltas are attached.
        merged: whether a delta was written into the weights. Such a model is no longer the base that its fingerprint
            names, and is neither edited nor given deltas: load the base again, or wrap the merged model anew,
            ``LanguageModel(merged.model, merged.tokenizer, source)``, which makes it a base of its own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: str,
        *,
        fingerprint: str | None = None,
    ) -> None:
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
        self._block_tuples = blocks_return_tuples(model, self.structure, self.device)
        self._splits: dict[int, SplitForward] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For copies, which get a lock of their own.

        Raises:
            ModelError: a delta is attached, whose hooks would be copied too: the copy would stay edited for good.
        """
        if self.attached:
            raise ModelError("a model cannot be copied while a delta is attached to it; copy it outside of the `with`")
        return {name: value for name, value in vars(self).items() if name not in ("lock", "text", "_splits")}

    def __setstate__(self, state: dict[str, Any]) -> None:
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
        """Where inputs have to be: where the embedding runs, wherever its weights are kept."""
        return device_of(self.model.get_input_embeddings())

    @contextmanager
    def editing(self) -> Iterator[None]:
        """Hold the lock while an edit of the base is made.

        Raises:
            EditorError: the model is not the base: a delta is attached or was merged.
        """
        with self.lock:
            if self.attached:
                raise EditorError(
                    f"{self.attached} delta(s) are attached, so an edit made now would be one of the edited model and "
                    "not of the base: leave the `with delta.attached(…)` first. Deltas of several edits add up, a + b"
                )
            if self.merged:
                raise EditorError(self.merged_message)
            yield

    @property
    def merged_message(self) -> str:
        """Why a merged model is refused, and the way on."""
        return (
            f"the weights of {self.source} hold a merged delta, so they are no longer those of {self.fingerprint}: "
            "load the base again, or wrap the merged model as a base of its own, "
            "LanguageModel(merged.model, merged.tokenizer, source)"
        )

    def split(self, split_layer: int) -> SplitForward:
        """The split forward below block ``split_layer``; made once."""
        if split_layer not in self._splits:
            self._splits[split_layer] = SplitForward(
                self.model, self.structure, split_layer, tuples=self._block_tuples, lock=self.lock
            )
        return self._splits[split_layer]

    @contextmanager
    def remembering_trunks(
        self, split_layer: int, *, memory: int, folder: Path | None = None, disk: int = 0
    ) -> Iterator[TrunkCache]:
        """Inside the ``with`` trunk states at ``split_layer`` are computed once a text; see :class:`TrunkCache`.

        Inside another ``with`` for the same cut, that one's cache goes on.
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
        """Identifies the weights: names, shapes and a sample of the values, rounded to bf16.

        The rounding makes a checkpoint and its bf16 copy the same model, as a delta fits both. Taken once, so it
        names the weights as loaded. A float16 copy loses other bits: :func:`load_language_model` takes the fingerprint
        of the checkpoint instead.
        """
        return fingerprint(self.model)


@torch.no_grad()
def fingerprint(model: PreTrainedModel, samples: int = 64) -> str:
    """16 hexadecimal digits over every parameter's name, shape and ``samples`` evenly spaced values."""
    digest = hashlib.sha256()
    tied = getattr(model, "all_tied_weights_keys", {})
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_meta and name in tied:
            continue  # in memory one tensor has one name; offloaded, Accelerate makes two of it in the first forward
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        place, _, own_name = name.rpartition(".")
        module = model.get_submodule(place)
        with align_module_device(module):  # brings offloaded weights in for a moment
            values = getattr(module, own_name).detach().flatten()
            step = max(1, values.numel() // samples)
            digest.update(values[::step][:samples].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_language_model(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
) -> LanguageModel:
    """Load a causal language model with its tokenizer.

    Args:
        source: ``bundled``, a folder with a Hugging Face checkpoint, or a hub id.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (as stored).
        device: where to put it; default the CPU. ``auto`` takes a GPU where there is one, each process of a launch on
            one machine its own. Not together with ``device_map``.
        device_map: Accelerate's placement, ``auto`` or the device of every part by module name; what goes to
            ``disk`` is read from the checkpoint when it is needed.

    Raises:
        ModelError: not found, no safetensors weights, not a dense decoder-only model.
    """
    path = str(BUNDLED_FOLDER) if str(source) == BUNDLED else check_source(source)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not known; choose one of auto, {', '.join(DTYPES)}")
    if device is not None and device_map is not None:
        raise ModelError("give either a device or a device_map, not both")
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if device is not None:
        check_device(device)
    with loading(f"the model {source}", ModelError, ADVICE):
        return _load(Path(path), source, dtype, device, device_map)


def _load(
    path: Path,
    source: str | Path,
    dtype: str,
    device: str | None,
    device_map: str | Mapping[str, str | int] | None,
) -> LanguageModel:
    config = read_config(str(path), source)
    stored = stored_tensors(path) if path.is_dir() else {}
    plan = build_without_memory(config, stored, source)
    on_cpu = device_map is None and torch.device(device or "cpu").type == "cpu"
    if device_map is not None:
        check_device_map(device_map, plan)
    elif on_cpu and stored:
        check_memory(plan, stored, dtype, 0 if dtype == "auto" else DTYPES[dtype].itemsize, path)

    def read(dtype: torch.dtype | str) -> PreTrainedModel:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path),
            output_loading_info=True,
            dtype=dtype,
            device_map=device_map if device_map is None or isinstance(device_map, str) else dict(device_map),
            use_safetensors=True,  # other weight files are pickles, which can run code
            trust_remote_code=False,
            # For rows of a few dozen tokens plain attention is faster on a CPU than the fused kernel, whose
            # backward pass alone can take a third of a training step.
            attn_implementation="eager" if on_cpu else None,
        )
        model: PreTrainedModel
        model, report = loaded
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ModelError(
                f"the checkpoint {source} lacks {len(missing)} of the model's weights, the first is {missing[0]}; "
                "copy it again"
            )
        return model

    named = None
    if dtype == "float16" and {tensor.dtype for tensor in stored.values()} != {"F16"}:
        # Other numbers lose bits, or their whole value, in float16. In bfloat16 they are what the fingerprint is of.
        named = fingerprint(read(torch.bfloat16))
    model = read(DTYPES.get(dtype, "auto"))
    tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    check_model(model, tokenizer, source)
    fuse_activations_in_place(model)
    if device is not None:
        torch.nn.Module.to(model, device)
    return LanguageModel(model, tokenizer, str(source), fingerprint=named)
