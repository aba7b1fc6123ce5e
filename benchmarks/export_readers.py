"""What other programs make of an exported edit: run by exports.py in processes of their own, without InstructEdit.

    python benchmarks/export_readers.py FORMAT BASE EXPORTED PROMPTS OUT

FORMAT: `peft`, `transformers` or `llama.cpp`. PROMPTS: a JSON list. OUT gets the logits of the next token after each
prompt as safetensors (PEFT and transformers), or the answers as JSON (llama.cpp).
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

#: Length of an answer of llama.cpp, in tokens.
NEW_TOKENS = 8


def logits(model: Any, tokenizer: Any, prompts: list[str]) -> Any:
    """Return the logits of the next token after each prompt, (prompts, vocabulary)."""
    import torch

    rows = []
    with torch.no_grad():
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=True).input_ids
            rows.append(model(ids).logits[0, -1].float())
    return torch.stack(rows)


def by_transformers(base: str, exported: str, prompts: list[str], adapter: bool) -> Any:
    """Load a merged checkpoint, or the base model with a LoRA folder, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base if adapter else exported, dtype=torch.float32).eval()
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, exported).eval()
    return logits(model, AutoTokenizer.from_pretrained(base if adapter else exported), prompts)


def by_llama_cpp(base: str, adapter: str, prompts: list[str]) -> list[str]:
    """Ask llama.cpp's HTTP server; an adapter is loaded switched off, and switched on by its endpoint."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = base
    params.n_ctx, params.cpuparams.n_threads, params.port, params.verbosity = 512, 1, 0, 0
    if adapter != "-":
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 0.0)]
    server = xllamacpp.Server(params)
    address = server.listening_address

    def post(path: str, body: Any) -> Any:
        request = urllib.request.Request(
            f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read() or "null")

    if adapter != "-":
        post("/lora-adapters", [{"id": 0, "scale": 1.0}])
    greedy = {"n_predict": NEW_TOKENS, "temperature": 0.0, "cache_prompt": False}
    return [post("/completion", {"prompt": prompt, **greedy})["content"] for prompt in prompts]


def main() -> None:
    """Read one export and write what it gives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["peft", "transformers", "llama.cpp"])
    parser.add_argument("base", help="the base model's folder or GGUF file")
    parser.add_argument("exported", help="what was exported; - for no adapter")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    prompts = json.loads(options.prompts.read_text(encoding="utf-8"))
    if options.kind == "llama.cpp":
        answers = by_llama_cpp(options.base, options.exported, prompts)
        options.out.write_text(json.dumps(answers), encoding="utf-8")
        return
    from safetensors.torch import save_file

    logits_ = by_transformers(options.base, options.exported, prompts, adapter=options.kind == "peft")
    save_file({"logits": logits_}, options.out)


if __name__ == "__main__":
    assert not any(name.startswith("instructedit") for name in sys.modules)
    main()
