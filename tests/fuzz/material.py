"""What is spoilt: a tiny model, its editor, a delta, a checkpoint, a trace, and data and YAML in every form."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from instructedit.assets import ASSETS
from instructedit.deltas.delta import Delta, DeltaMetadata
from instructedit.deltas.factors import LowRank
from instructedit.deltas.saving import save_delta
from instructedit.editors.gradient import create_editor
from instructedit.editors.instructedit import InstructEditConfig
from instructedit.editors.saving import save_editor
from instructedit.instructions.offline_proposer import OfflineProposer
from instructedit.instructions.search import Budget, SearchResult, optimise
from instructedit.instructions.search_trace import SearchTrace
from instructedit.instructions.trial import METRICS
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRecord, EditRequest
from instructedit.storage.checkpoints import save_checkpoint
from instructedit.tasks.loading import load_task
from tiny_gguf import write_gguf

_END = "<|end|>"
_PAYLOAD = 'open("canary", "w").close()\n'
RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE_SETTINGS = {"seed": 0, "tasks": [{"task": "zsre"}]}
TRACE_SETTINGS = {"task": "counterfact", "seed": 0}


@functools.cache
def folder() -> Path:
    """A temporary folder of this process, removed with it."""
    kept = tempfile.TemporaryDirectory(prefix="instructedit-fuzz-")
    _KEPT.append(kept)
    return Path(kept.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _random_weights(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@functools.cache
def model_folder() -> Path:
    """A saved GPT-2 of three blocks, with payloads beside it that would leave a canary."""
    path = folder() / "model"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=272, special_tokens=[_END], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(["Lena was born in Oston, in the harbour."], trainer)
    config = GPT2Config(
        vocab_size=272,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_inner=24,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    _random_weights(model, 1)
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=_END, pad_token=_END).save_pretrained(path)
    (path / "payload.py").write_text(
        _PAYLOAD + "from transformers import GPT2Config as C, GPT2LMHeadModel as M, PreTrainedTokenizerFast as T\n"
    )
    (path / "pytorch_model.bin").write_bytes(PICKLE)
    return path


@functools.cache
def gguf_file() -> Path:
    """A Llama model of two blocks as GGUF."""
    path = folder() / "llama"
    config = LlamaConfig(
        vocab_size=272,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    _random_weights(model, 1)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(model_folder(), trust_remote_code=False).save_pretrained(path)
    return write_gguf(path, folder() / "model.gguf")


#: A pickle that would call ``open("canary", "w")``.
PICKLE = b"cbuiltins\nopen\n(S'canary'\nS'w'\ntR."


@functools.cache
def language_model() -> LanguageModel:
    """The tiny model, loaded."""
    return load_language_model(model_folder())


def parts() -> dict[str, bytes]:
    """The model folder's files by name."""
    names = (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors.index.json",
    )
    found = {}
    for name in names:
        file = model_folder() / name
        if file.is_file():
            found[name] = file.read_bytes()
    places = [name for name, _ in language_model().model.named_parameters()]
    found["model.safetensors.index.json"] = json.dumps(
        {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(places, "model-00001-of-00001.safetensors")}
    ).encode()
    return found


@functools.cache
def delta_file() -> Path:
    """A delta of two of the tiny model's matrices."""
    generator = torch.Generator().manual_seed(3)
    factors = {
        matrix.name: LowRank(
            torch.randn(matrix.inputs, 2, generator=generator), torch.randn(2, matrix.outputs, generator=generator)
        )
        for matrix in language_model().structure.last_mlps(1)
    }
    request = EditRequest(prompt="Lena was born in", target="Oston", subject="Lena", task="counterfact")
    metadata = DeltaMetadata(
        base=language_model().fingerprint, source="tiny", editor="mend", requests=(request,), versions={"torch": "2"}
    )
    path = folder() / "delta.safetensors"
    save_delta(Delta(factors, metadata), path)
    return path


@functools.cache
def editor_file() -> Path:
    """A trained editor's file for the tiny model; its weights are random."""
    config = InstructEditConfig(blocks=1, rank=2, embedding_dim=8, layers=1, conditioning="hypernetwork")
    torch.manual_seed(4)
    editor = create_editor(config, language_model())
    path = folder() / "editor.safetensors"
    save_editor(editor, language_model(), path, training={"recipe": {"seed": 0}, "step": 3}, dtype=torch.bfloat16)
    return path


def module_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    """What a checkpoint is of, after one step."""
    torch.manual_seed(5)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return module, optimizer


@functools.cache
def checkpoint_file() -> Path:
    """A run's checkpoint."""
    path = folder() / "checkpoint.safetensors"
    module, optimizer = module_and_optimizer()
    save_checkpoint(path, module, [optimizer], {"step": 3, "best": 0.5, "stale": 0}, RECIPE_SETTINGS)
    return path


class Scores:
    """Stands for a trial of instructions: scores that depend on the text alone."""

    def __init__(self) -> None:
        self.records = [
            EditRecord(record_id=str(number), request=EditRequest(prompt=f"Number {number} is", target="odd"))
            for number in range(3)
        ]

    def values(
        self, texts: Sequence[str], start: int, stop: int, on_edits: Callable[[int], None] = lambda done: None
    ) -> list[dict[str, list[float | None]]]:
        """One number for all metrics."""
        return [
            {name: [round(random.Random(f"{text}{at}").random(), 1) for at in range(start, stop)] for name in METRICS}
            for text in texts
        ]


def optimised(trace: Path) -> SearchResult:
    """Go on from a trace with scores that cost nothing."""
    budget = Budget(seconds=60, rounds=2, patience=2, candidates=2)
    task = load_task("counterfact")
    stand_in: Any = Scores()
    return optimise(task, stand_in, OfflineProposer(0), SearchTrace(trace, TRACE_SETTINGS), budget)


@functools.cache
def trace_file() -> Path:
    """The trace of two rounds."""
    path = folder() / "whole.trace.jsonl"
    optimised(path)
    return path


#: Two records of every published schema.
ROWS: dict[str, list[dict[str, Any]]] = {
    "instructedit": [
        {
            "record_id": str(number),
            "request": {"prompt": "Lena was born in", "target": "Oston", "subject": "Lena", "ground_truth": "Tever"},
            "rephrases": ["The birthplace of Lena is"],
            "probes": [
                {"kind": "neighbour", "prompt": "Otto was born in", "answers": ["Tever"]},
                {"kind": "unrelated", "prompt": "The sky is", "answers": ["blue", "grey"]},
            ],
        }
        for number in range(2)
    ],
    "counterfact-rome": [
        {
            "case_id": number,
            "requested_rewrite": {
                "prompt": "{} was born in",
                "subject": "Lena",
                "target_new": {"str": "Oston", "id": "Q1"},
                "target_true": {"str": "Tever", "id": "Q2"},
            },
            "paraphrase_prompts": ["The birthplace of Lena is"],
            "neighborhood_prompts": ["Otto was born in", "Mira was born in"],
        }
        for number in range(2)
    ],
    "counterfact-easyedit": [
        {
            "case_id": number,
            "prompt": "Lena was born in",
            "target_new": "Oston",
            "subject": "Lena",
            "ground_truth": "Tever",
            "rephrase_prompt": "The birthplace of Lena is",
            "locality_prompt": "Otto was born in",
            "locality_ground_truth": "Tever",
        }
        for number in range(2)
    ],
    "convsent": [
        {"ent": "gnomes", "pos": ["I like them.", "Lovely."], "neg": ["I hate them."]},
        {"ent": "roads", "pos": ["Good."], "neg": ["Bad.", "Too loud."]},
    ],
    "zsre-mend": [
        {
            "subject": "Lena",
            "src": "Where was Lena born?",
            "alt": "Oston",
            "answers": ["Tever"],
            "rephrase": "What is Lena's birthplace?",
            "loc": "nq question: who wrote the anthem",
            "loc_ans": "Nobody",
            "portability": {"New Question": "Which river is in Lena's town?", "New Answer": "the Tave"},
        }
        for _ in range(2)
    ],
    "knowedit": [
        {
            "subject": "Lena",
            "prompt": "The name of the birthplace of Lena is",
            "target_new": "Oston",
            "ground_truth": [["Tever", "Teverley"]],
            "rephrase": ["Lena was born in"],
            "locality": {"Relation_Specificity": [{"prompt": "Lena works as", "ground_truth": [["baker"]]}]},
            "portability": {"Reasoning": [{"prompt": "Lena's river is", "ground_truth": ["the Tave", "Tave"]}]},
        }
        for _ in range(2)
    ],
    "requests": [{"prompt": "Lena was born in", "target": "Oston", "subject": "Lena", "task": "counterfact"}] * 2,
}


@functools.cache
def yaml_texts() -> dict[str, list[str]]:
    """Good YAML by kind."""
    recipes = [path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.yaml"))]
    experiments = [path.read_text(encoding="utf-8") for path in sorted((RECIPES / "experiments").glob("*.yaml"))]
    tasks = []
    for path in sorted((ASSETS / "tasks").glob("*.yaml"))[:6]:
        tasks.append(path.read_text(encoding="utf-8"))
    bank = {
        "name": "Edit",
        "templates": ["Change this fact alone.", "Leave all other facts alone."],
        "held_out_templates": ["Only this answer changes."],
        "scope": "only",
        "provenance": {"task": "counterfact", "texts": [{"text": "Change this fact alone.", "round": 1}]},
    }
    direct = [
        {"name": "ft", "block": 0, "bound": 0.1},
        {"name": "lora", "rank": 2, "steps": 2, "blocks": 1, "seed": 0},
        {"name": "rome", "block": 0, "steps": 2, "sentences": 10},
        {"name": "memit", "steps": 2},
        {"name": "grace", "block": 1, "radius": 0.5, "steps": 2},
        {"name": "calinet", "slots": 2, "steps": 2},
        {"name": "in-context"},
    ]
    tiny = {
        "base": str(model_folder()),
        "editor": {"name": "mend", "blocks": 1, "rank": 2, "layers": 1},
        "tasks": [{"task": "counterfact", "files": ["bundled/counterfact.jsonl"], "records": 40}],
        "optimisation": {"steps": 1, "batch": 2, "validate_every": 1, "checkpoint_every": 1, "validation_edits": 2},
        "encoder_warmup": {"steps": 0},
    }
    return {
        "recipe": [yaml.safe_dump(tiny), *(text for text in recipes if "vocabulary" not in text)],
        "build": [text for text in recipes if "vocabulary" in text],
        "experiment": experiments,
        "task": tasks,
        "bank": [yaml.safe_dump(bank)],
        "editor": [yaml.safe_dump(each) for each in direct],
    }
