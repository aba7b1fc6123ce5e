"""A delta as a PEFT LoRA folder, which PEFT, vLLM and SGLang load."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from instructedit.deltas.delta import Delta
from instructedit.export.card import REQUESTS_FILE, card, requests_as_json
from instructedit.export.lora import LoraAdapter, as_lora, edited_blocks
from instructedit.models.language_model import LanguageModel
from instructedit.storage.writing import as_json, make_folder, write_atomically

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"


def export_peft(delta: Delta, language_model: LanguageModel, folder: Path, *, base_name: str) -> LoraAdapter:
    """Write the delta as ``adapter_config.json``, ``adapter_model.safetensors``, its requests and a model card.

    All matrices have one rank, lora_alpha equals it, and there are no patterns, no rank-stabilised scaling and no bias:
    vLLM and SGLang refuse or ignore these. The modules are named by the last part of their names, and the edited blocks
    by ``layers_to_transform``; a matrix that only some of these blocks change is written with zeros for the others.

    Args:
        delta: the edit.
        language_model: its base model.
        folder: is created.
        base_name: what PEFT loads the base model from: a hub id or a folder.

    Raises:
        DeltaError: see :func:`as_lora`.
        DataError: the folder cannot be written.
    """
    adapter = as_lora(delta, language_model, fill_blocks=True)
    blocks, endings = edited_blocks(delta, language_model)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": endings,
        "layers_to_transform": blocks,
        "modules_to_save": None,
    }
    tensors = {}
    for name in adapter.a:
        tensors[f"base_model.model.{name}.lora_A.weight"] = adapter.a[name].contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = adapter.b[name]
    make_folder(folder)
    write_atomically(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    write_atomically(folder / CONFIG, (as_json(config, indent=2) + "\n").encode())
    write_atomically(folder / REQUESTS_FILE, requests_as_json(delta).encode())
    write_atomically(folder / CARD, card(delta, base_name, "a PEFT LoRA adapter", adapter.rank, "peft").encode())
    return adapter
