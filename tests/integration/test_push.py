"""Edits in running servers: llama.cpp itself, and stand-ins that keep the rules of vLLM and SGLang."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import xllamacpp
from test_export import edit_of
from typer.testing import CliRunner

from instructedit.cli.app import app
from instructedit.deltas.delta import Delta
from instructedit.errors import DataError, ServerError
from instructedit.evaluation.generation import generate
from instructedit.export.card import exported_requests
from instructedit.export.gguf_files import export_gguf_adapter, merge_into_gguf
from instructedit.export.peft_folder import export_peft
from instructedit.export.servers import LlamaCpp, ServedAnswer, find_server
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRequest
from tiny_gguf import write_gguf

PROMPTS = ["Lena was born in", "The old lighthouse of", "Where was Otto born?", "Input: Mira"]


def llama_server(model: Path, *adapters: Path) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.cpuparams.n_threads, params.port, params.verbosity = 512, 1, 0, 0
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 0.0) for adapter in adapters]
    return xllamacpp.Server(params)


@pytest.fixture(scope="module")
def base(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel]:
    source = write_gguf(checkpoint("llama"), tmp_path_factory.mktemp("gguf") / "base.gguf")
    return source, load_language_model(str(source))


def answers(language_model: LanguageModel, delta: Delta | None) -> list[str]:
    return generate(language_model, PROMPTS, delta=delta, new_tokens=6)


def test_llama_cpp_answers_as_the_edited_model(base: tuple[Path, LanguageModel], tmp_path: Path) -> None:
    source, model = base
    delta = edit_of(model)
    without, with_it = answers(model, None), answers(model, delta)
    assert without != with_it
    export_gguf_adapter(delta, model, tmp_path / "edit.gguf")
    server = llama_server(source, tmp_path / "edit.gguf")
    client = find_server(server.listening_address)
    assert isinstance(client, LlamaCpp)
    client.load("edit", tmp_path / "edit.gguf")
    assert [client.answer(prompt, "edit", 6) for prompt in PROMPTS] == with_it
    assert [client.answer(prompt, None, 6) for prompt in PROMPTS] == without
    assert client.get("/lora-adapters")[0]["scale"] == 1.0
    client.unload("edit", tmp_path / "edit.gguf")
    assert client.get("/lora-adapters")[0]["scale"] == 0.0
    with pytest.raises(ServerError, match=r"was started without other\.gguf; start llama\.cpp with --lora"):
        client.load("other", tmp_path / "other.gguf")

    merge_into_gguf(delta, model, source, tmp_path / "merged.gguf", kind="F32")
    second = llama_server(tmp_path / "merged.gguf")
    merged = LlamaCpp(second.listening_address)
    assert [merged.answer(prompt, None, 6) for prompt in PROMPTS] == with_it


def test_switching_one_adapter_leaves_the_others(base: tuple[Path, LanguageModel], tmp_path: Path) -> None:
    source, model = base
    files = [tmp_path / f"{name}.gguf" for name in ("one", "two")]
    for file, scale in zip(files, (1.0, -1.0), strict=True):
        export_gguf_adapter(edit_of(model).scale(scale), model, file)
    server = llama_server(source, *files)  # it stops when nothing refers to it
    client = LlamaCpp(server.listening_address)
    client.load("one", files[0])
    client.load("two", files[1])
    assert [entry["scale"] for entry in client.get("/lora-adapters")] == [1.0, 1.0]
    client.unload("one", files[0])
    assert [entry["scale"] for entry in client.get("/lora-adapters")] == [0.0, 1.0]


class StandIn:
    """A server with the paths of vLLM or SGLang; ``broken`` accepts every adapter and uses none."""

    def __init__(self, kind: str, *, broken: bool = False, refuses: bool = False) -> None:
        self.kind, self.broken, self.refuses = kind, broken, refuses
        self.loaded: dict[str, str] = {}
        self.loads = 0
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(stand_in.get(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.reply(stand_in.post(self.path, body))

            def reply(self, found: tuple[int, Any]) -> None:
                self.send_response(found[0])
                self.end_headers()
                self.wfile.write(found[1].encode() if isinstance(found[1], str) else json.dumps(found[1]).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def text(self, adapter: str | None) -> str:
        return " Oston." if adapter in self.loaded and not self.broken else " Arden."

    def get(self, path: str) -> tuple[int, Any]:
        if self.kind == "vllm" and path == "/v1/models":
            adapters = [{"id": name, "parent": "base"} for name in self.loaded]
            return 200, {"data": [{"id": "base", "parent": None}, *adapters]}
        if self.kind == "sglang" and path == "/get_model_info":
            return 200, {"model_path": "base"}
        return 404, "not found"

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        name = body.get("lora_name", "")
        if path.endswith("/unload_lora_adapter"):
            return (200, "removed") if self.loaded.pop(name, None) else (400, "not loaded")
        if path.endswith("/load_lora_adapter"):
            self.loads += 1
            if self.refuses or name in self.loaded or not Path(body["lora_path"], "adapter_config.json").is_file():
                return (200, {"success": False, "error_message": "rank"}) if self.kind == "sglang" else (400, "rank")
            self.loaded[name] = body["lora_path"]
            return 200, {"success": True} if self.kind == "sglang" else "Success"
        if path == "/v1/completions":
            known = body["model"] in ("base", *self.loaded)
            return (200, {"choices": [{"text": self.text(body["model"])}]}) if known else (404, "no such model")
        return 200, {"text": self.text(body["lora_path"])}


@pytest.fixture
def stand_in() -> Iterator[Callable[..., StandIn]]:
    started: list[StandIn] = []

    def start(kind: str, **settings: bool) -> StandIn:
        started.append(StandIn(kind, **settings))
        return started[-1]

    yield start
    for server in started:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def adapter(tiny: Callable[[str], LanguageModel], tmp_path: Path) -> Path:
    model = tiny("llama")
    delta = edit_of(model)
    request = EditRequest(prompt="Lena was born in", target="Oston", subject="Lena")
    delta = Delta(delta.factors, delta.metadata.model_copy(update={"requests": (request,)}))
    export_peft(delta, model, tmp_path / "edit", base_name="base")
    return tmp_path / "edit"


def pushed(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["push", *arguments, "--json", "-"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_an_adapter_is_loaded_asked_and_taken_back(stand_in: Callable[..., StandIn], adapter: Path, kind: str) -> None:
    server = stand_in(kind)
    code, result = pushed(server.url, str(adapter))
    assert (code, result["server"], result["held"]) == (0, kind, 1)
    [answer] = result["answers"]
    assert (answer["before"], answer["after"], answer["success"]) == ("Arden.", "Oston.", True)
    assert list(server.loaded) == ["edit"]
    code, result = pushed(server.url, str(adapter), "--undo")
    assert (code, result["loaded"], server.loaded) == (0, False, {})


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_an_adapter_that_is_accepted_and_not_used_is_found(
    stand_in: Callable[..., StandIn], adapter: Path, kind: str
) -> None:
    code, result = pushed(stand_in(kind, broken=True).url, str(adapter))
    assert (code, result["held"]) == (1, 0)


@pytest.mark.parametrize(
    ("kind", "advice"), [("vllm", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"), ("sglang", "--enable-lora")]
)
def test_a_refusal_says_how_to_start_the_server(
    stand_in: Callable[..., StandIn], adapter: Path, kind: str, advice: str
) -> None:
    with pytest.raises(ServerError, match=advice):
        pushed(stand_in(kind, refuses=True).url, str(adapter))


def test_vllm_loads_a_name_once(stand_in: Callable[..., StandIn], adapter: Path) -> None:
    server = stand_in("vllm")
    for _ in range(2):
        assert pushed(server.url, str(adapter))[0] == 0
    assert server.loads == 1


def test_no_server_is_explained(adapter: Path, stand_in: Callable[..., StandIn]) -> None:
    with pytest.raises(ServerError, match="cannot be reached"):
        find_server("http://127.0.0.1:9")
    with pytest.raises(ServerError, match=r"is it llama\.cpp, vLLM or SGLang"):
        find_server(stand_in("something else").url)


def test_the_requests_come_back_from_both_formats(
    tiny: Callable[[str], LanguageModel], adapter: Path, tmp_path: Path
) -> None:
    [request] = exported_requests(adapter)
    assert request.target == "Oston"
    model = tiny("llama")
    export_gguf_adapter(edit_of(model), model, tmp_path / "edit.gguf")
    assert exported_requests(tmp_path / "edit.gguf") == edit_of(model).metadata.requests
    (adapter / "requests.json").write_text('[{"prompt": ""}]')
    with pytest.raises(DataError, match="its requests are damaged"):
        exported_requests(adapter)
    (tmp_path / "no.gguf").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read as GGUF"):
        exported_requests(tmp_path / "no.gguf")


def test_success_is_an_answer_that_begins_with_the_target() -> None:
    assert ServedAnswer("q", "Oston", "Arden", "Oston, near the river").success
    assert not ServedAnswer("q", "Oston", "Arden", "not Oston").success
