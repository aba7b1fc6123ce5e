"""``instructedit push``: load an exported edit into a running server, and ask the server whether it holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from instructedit.cli.console import emit_json, err, out, table
from instructedit.cli.options import JsonFile

Url = Annotated[str, typer.Argument(metavar="URL", help="Where the server listens, such as http://127.0.0.1:8080.")]
Adapter = Annotated[
    Path,
    typer.Argument(
        metavar="ADAPTER",
        exists=True,
        help="What `instructedit export` wrote: a PEFT folder for vLLM and SGLang, a GGUF file for llama.cpp.",
    ),
]
Kind = Annotated[
    Literal["llama.cpp", "vllm", "sglang"] | None,
    typer.Option("--server", help="Kind of the server. Default: detected."),
]
Name = Annotated[str | None, typer.Option(help="Name of the adapter in the server. Default: the file's or folder's.")]
Undo = Annotated[bool, typer.Option("--undo", help="Take the adapter back instead; the server answers as before.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Maximum length of the answers, in tokens.")]


def push(
    url: Url,
    adapter: Adapter,
    kind: Kind = None,
    name: Name = None,
    undo: Undo = False,
    new_tokens: NewTokens = 16,
    json_: JsonFile = None,
) -> None:
    """Load an exported edit into a running server, and ask the server whether the edit holds.

    vLLM and SGLang load the adapter while they run. llama.cpp loads adapters when it starts, `llama-server -m BASE.gguf
    --lora e.gguf --lora-init-without-apply`, and `push` switches them on. Exit code 1: the server does not give the new
    answers. Never subtract an edit from the weights: `--undo` drops the adapter.
    """
    from instructedit.export.card import exported_requests
    from instructedit.export.servers import ask, find_server

    server = find_server(url, kind)
    own_name = name or adapter.stem
    if undo:
        server.unload(own_name, adapter)
        if not emit_json({"server": server.kind, "adapter": own_name, "loaded": False}, json_):
            out.print(f"{own_name} is no longer used by the {server.kind} server at {url}")
        return
    requests = exported_requests(adapter)
    server.load(own_name, adapter)
    answers = ask(server, own_name, requests, new_tokens)
    held = sum(answer.success for answer in answers)
    result = {
        "server": server.kind,
        "adapter": own_name,
        "loaded": True,
        "held": held,
        "answers": [{**asdict(answer), "success": answer.success} for answer in answers],
    }
    if not emit_json(result, json_):
        rows = table("prompt", "without the edit", "with it", "success", title=f"{own_name} in {server.kind} at {url}")
        for answer in answers:
            rows.add_row(answer.prompt, answer.before, answer.after, "yes" if answer.success else "NO")
        out.print(rows)
    if held < len(answers):
        err.print(
            f"warning: {len(answers) - held} of {len(answers)} edits do not hold in the server; was the edit made for "
            "the model that it serves, and is its quantisation not much coarser?"
        )
        raise typer.Exit(1)
