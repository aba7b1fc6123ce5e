"""The predicted memory of training against what a process really took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instructedit.models.language_model import LanguageModel
from instructedit.training.memory import TextLengths, predict_memory
from instructedit.training.recipe import parse_recipe

#: Trains a few steps of a recipe and prints by how many bytes the process grew at its peak.
TRAINS = """
import json, resource, sys
import psutil, torch
from instructedit.editors.gradient import create_editor
from instructedit.models.language_model import load_language_model
from instructedit.training.loop import make_optimizer
from instructedit.training.memory import TextLengths, typical_examples
from instructedit.training.objective import loss_and_backward
from instructedit.training.recipe import parse_recipe

torch.set_num_threads(1)
torch.randn(500, 500) @ torch.randn(500, 500)
before = psutil.Process().memory_info().rss
recipe = parse_recipe(json.loads(sys.argv[2]))
model = load_language_model(sys.argv[1])
editor = create_editor(recipe.editor, model).train()
optimizer = make_optimizer(editor, recipe.optimisation)
examples = typical_examples(model, recipe, TextLengths(), recipe.optimisation.batch)
for _ in range(3):
    deltas = editor(model, [e.request for e in examples], [e.instruction for e in examples])
    loss_and_backward(editor, model, deltas, examples, recipe.objective)
    optimizer.step()
    optimizer.zero_grad()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""
_SHAPE = {"vocab_size": 16_000, "bos_token_id": 0, "eos_token_id": 0}
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_layer=6, n_embd=512, n_head=8, **_SHAPE)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=6, hidden_size=512, intermediate_size=1376, num_attention_heads=8, **_SHAPE)
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize(("family", "batch", "rank"), [("gpt2", 16, 256), ("llama", 24, 512)])
def test_prediction_is_right_within_a_fifth(
    family: str, batch: int, rank: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = MODELS[family]()
    model.config._attn_implementation = "eager"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    raw = {
        "editor": {"blocks": 3, "rank": rank},
        "tasks": [{"task": "counterfact", "files": ["none.json"]}],
        "optimisation": {"batch": batch},
    }
    predicted = predict_memory(LanguageModel(model, tokenizer, family), parse_recipe(raw), TextLengths()).total
    command = [sys.executable, "-c", TRAINS, str(tmp_path), json.dumps(raw)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = int(done.stdout.splitlines()[-1])
    assert predicted == pytest.approx(measured, rel=0.2)
