"""A base model as the other rooms see it: the Hugging Face model, its tokenizer, structure and fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils.modeling import align_module_device
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from instructedit.assets import ASSETS
from instructedit.errors import ModelError
from instructedit.models.fusion import fuse_activations_in_place
from instructedit.models.split import SplitForward, blocks_return_tuples
from instructedit.models.structure import Structure, find_structure
from instructedit.models.text import TextEncoder
from instructedit.models.trunk_cache import TrunkCache, TrunkKey

BUNDLED = "bundled"
BUNDLED_FOLDER = ASSETS / "base"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LanguageModel:
    """A frozen base model with what editing needs to know of it.

    Args:
        model: a causal language model, which is run on one token here; its parameters stop requiring gradients.
        tokenizer: its tokenizer.
        source: where it came from, for messages and metadata.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.source = source
        self.structure: Structure = find_structure(model)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.text = TextEncoder(tokenizer, int(limit or 1_000_000))
        self._block_tuples = blocks_return_tuples(model, self.structure)
        self._splits: dict[int, SplitForward] = {}

    @property
    def device(self) -> torch.device:
        """Where inputs have to be: where the embedding runs, wherever its weights are kept."""
        embedding = self.model.get_input_embeddings()
        assert isinstance(embedding.weight, torch.Tensor)
        if embedding.weight.is_meta:
            return torch.device(getattr(embedding, "_hf_hook").execution_device)  # noqa: B009 - Accelerate's
        return embedding.weight.device

    def split(self, cut: int) -> SplitForward:
        """The split forward below block ``cut``; made once."""
        if cut not in self._splits:
            self._splits[cut] = SplitForward(self.model, self.structure, cut, tuples=self._block_tuples)
        return self._splits[cut]

    @contextmanager
    def remembering_trunks(
        self, cut: int, *, memory: int, folder: Path | None = None, disk: int = 0
    ) -> Iterator[TrunkCache]:
        """Inside the ``with`` trunk states at ``cut`` are computed once a text; see :class:`TrunkCache`.

        Inside another ``with`` for the same cut, that one's cache goes on.
        """
        split = self.split(cut)
        if split.cache is not None:
            yield split.cache
            return
        key = TrunkKey(self.fingerprint, cut, str(self.model.dtype).removeprefix("torch."))
        split.cache = TrunkCache(key, memory=memory, folder=folder, disk=disk)
        try:
            yield split.cache
        finally:
            split.cache.flush()
            split.cache = None

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the weights: names, shapes and a sample of the values, rounded to bf16.

        The rounding makes a checkpoint and its bf16 copy the same model, as a delta fits both. Taken once, so it
        names the weights as loaded.
        """
        return fingerprint(self.model)


def _weight_files(folder: Path) -> list[Path]:
    """The files that a load would read: those of the index, else the single file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else []


def _refuse_what_does_not_fit(folder: Path, dtype: str, device: str | None) -> None:
    """Stop before loading a local checkpoint that is larger than the free memory.

    Raises:
        ModelError: with both sizes.
    """
    if not folder.is_dir() or (device is not None and torch.device(device).type != "cpu"):
        return
    stored = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
    needed = 0
    for file in _weight_files(folder):
        try:
            with safe_open(str(file), framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118
                    part = weights.get_slice(name)
                    width = stored.get(part.get_dtype(), 1) if dtype == "auto" else DTYPES[dtype].itemsize
                    needed += width * math.prod(part.get_shape())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: cannot be read as safetensors: {error}") from None
    free = psutil.virtual_memory().available
    if needed > free:
        raise ModelError(
            f"{folder} needs {needed / 1e9:.1f} GB as {dtype}, and {free / 1e9:.1f} GB of memory are free. "
            "Load it in bfloat16 (--dtype), on a GPU (--device), or spread it (--device-map auto)."
        )


@torch.no_grad()
def fingerprint(model: PreTrainedModel, samples: int = 64) -> str:
    """16 hexadecimal digits over every parameter's name, shape and ``samples`` evenly spaced values."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
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
    path = str(BUNDLED_FOLDER) if str(source) == BUNDLED else str(source)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not known; choose one of auto, {', '.join(DTYPES)}")
    if device is not None and device_map is not None:
        raise ModelError("give either a device or a device_map, not both")
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    on_cpu = device_map is None and torch.device(device or "cpu").type == "cpu"
    if device_map is None:
        _refuse_what_does_not_fit(Path(path), dtype, device)
    try:
        config = AutoConfig.from_pretrained(path)
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(f"{source} is an encoder-decoder model; only decoder-only models are edited")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            output_loading_info=True,
            dtype=DTYPES.get(dtype, "auto"),
            device_map=device_map if device_map is None or isinstance(device_map, str) else dict(device_map),
            use_safetensors=True,  # other weight files are pickles, which can run code
            # For rows of a few dozen tokens plain attention is faster on a CPU than the fused kernel, whose
            # backward pass alone can take a third of a training step.
            attn_implementation="eager" if on_cpu else None,
        )
        model, report = loaded
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot load the model {source}: {first_line}\n"
            "Give `bundled`, a folder with config.json, model.safetensors and a tokenizer, or a hub id that can be "
            "reached from here."
        ) from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"the checkpoint {source} lacks {len(missing)} of the model's weights, the first is {missing[0]}; "
            "copy it again"
        )
    fuse_activations_in_place(model)
    if device is not None:
        torch.nn.Module.to(model, device)
    return LanguageModel(model, tokenizer, str(source))
