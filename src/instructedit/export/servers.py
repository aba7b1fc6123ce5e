"""Loading an exported edit into a running server, and asking the server whether the edit holds there.

A server may accept an adapter and not use it: it answers from a cache, the adapter is for other modules, or its scale
is zero. So every load is followed by the edit's own questions, with the adapter and without it.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructedit.errors import ServerError
from instructedit.evaluation.generation import begins_with, natural_stop
from instructedit.records import EditRequest

#: Seconds that a server may take for one answer.
TIMEOUT = 120


class Server(ABC):
    """A running server of one base model.

    Args:
        url: where it listens, without a path.
    """

    kind: str

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @abstractmethod
    def load(self, name: str, adapter: Path) -> None:
        """Make the adapter available under a name.

        Raises:
            ServerError: the server refuses it.
        """

    @abstractmethod
    def unload(self, name: str, adapter: Path) -> None:
        """Take the adapter back: the server answers as before.

        Raises:
            ServerError: the server refuses.
        """

    @abstractmethod
    def answer(self, prompt: str, name: str | None, new_tokens: int) -> str:
        """Return the greedy continuation of a prompt, with the adapter of that name or without any.

        Raises:
            ServerError: the server does not answer.
        """

    def get(self, path: str) -> Any:
        """Return the JSON of a GET request."""
        return _fetch(urllib.request.Request(f"{self.url}{path}"))

    def post(self, path: str, body: Any) -> Any:
        """Return the JSON, or the text, of a POST request with a JSON body."""
        headers = {"Content-Type": "application/json"}
        return _fetch(urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers))


class LlamaCpp(Server):
    """The server of llama.cpp: adapters are named at its start (``--lora FILE``), and switched by their scale."""

    kind = "llama.cpp"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._ids: dict[str, int] = {}

    def load(self, name: str, adapter: Path) -> None:
        """See :meth:`Server.load`; the server must have been started with the adapter."""
        self._set_scale(name, adapter, 1.0)

    def unload(self, name: str, adapter: Path) -> None:
        """See :meth:`Server.unload`: the scale becomes zero."""
        self._set_scale(name, adapter, 0.0)

    def answer(self, prompt: str, name: str | None, new_tokens: int) -> str:
        """See :meth:`Server.answer`; the scales of this request alone are set."""
        scales = [{"id": number, "scale": float(own == name)} for own, number in self._ids.items()]
        body = {"prompt": prompt, "n_predict": new_tokens, "temperature": 0, "cache_prompt": False, "lora": scales}
        return str(self.post("/completion", body)["content"])

    def _set_scale(self, name: str, adapter: Path, scale: float) -> None:
        known = {Path(entry["path"]).name: entry for entry in self.get("/lora-adapters")}
        if adapter.name not in known:
            raise ServerError(
                f"the server at {self.url} was started without {adapter.name}; start llama.cpp with --lora {adapter} "
                "(and --lora-init-without-apply, so that the adapter is off until it is pushed)"
            )
        self._ids[name] = int(known[adapter.name]["id"])
        # An adapter that is left out of the list would be switched off.
        scales = [
            {"id": entry["id"], "scale": scale if file == adapter.name else entry["scale"]}
            for file, entry in known.items()
        ]
        self.post("/lora-adapters", scales)


class Vllm(Server):
    """vLLM, started with ``--enable-lora`` and the environment variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."""

    kind = "vllm"

    def load(self, name: str, adapter: Path) -> None:
        """See :meth:`Server.load`; a name is never loaded twice, since vLLM would keep the cache of the old adapter."""
        if name in self._models():
            return
        try:
            self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter.resolve())})
        except ServerError as error:
            raise ServerError(
                f"{error}. Start vLLM with --enable-lora, --max-lora-rank at least the adapter's rank, and the "
                "environment variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            ) from None

    def unload(self, name: str, adapter: Path) -> None:
        """See :meth:`Server.unload`."""
        if name in self._models():
            self.post("/v1/unload_lora_adapter", {"lora_name": name})

    def answer(self, prompt: str, name: str | None, new_tokens: int) -> str:
        """See :meth:`Server.answer`."""
        model = name or next(id_ for id_, parent in self._models().items() if parent is None)
        body = {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0}
        return str(self.post("/v1/completions", body)["choices"][0]["text"])

    def _models(self) -> dict[str, str | None]:
        """Return the base model and the adapters, each with the model that it adapts."""
        return {entry["id"]: entry.get("parent") for entry in self.get("/v1/models")["data"]}


class Sglang(Server):
    """SGLang, started with ``--enable-lora``, ``--max-lora-rank`` and ``--lora-target-modules``."""

    kind = "sglang"

    def load(self, name: str, adapter: Path) -> None:
        """See :meth:`Server.load`."""
        reply = self.post("/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter.resolve())})
        if isinstance(reply, dict) and reply.get("success") is False:
            raise ServerError(
                f"SGLang does not load the adapter: {reply.get('error_message') or reply}. Start it with "
                "--enable-lora, --max-lora-rank at least the adapter's rank, and --lora-target-modules all"
            )

    def unload(self, name: str, adapter: Path) -> None:
        """See :meth:`Server.unload`."""
        self.post("/unload_lora_adapter", {"lora_name": name})

    def answer(self, prompt: str, name: str | None, new_tokens: int) -> str:
        """See :meth:`Server.answer`."""
        body = {"text": prompt, "sampling_params": {"temperature": 0, "max_new_tokens": new_tokens}, "lora_path": name}
        return str(self.post("/generate", body)["text"])


SERVERS: dict[str, type[Server]] = {kind.kind: kind for kind in (LlamaCpp, Vllm, Sglang)}
#: What only one kind of server answers.
_PROBES = {"llama.cpp": "/lora-adapters", "sglang": "/get_model_info", "vllm": "/v1/models"}


@dataclass(frozen=True)
class ServedAnswer:
    """The answer to an edit's own question.

    Attributes:
        prompt: the question.
        target: the answer that the edit is to give.
        before: the server's answer without the adapter.
        after: its answer with it.
    """

    prompt: str
    target: str
    before: str
    after: str

    @property
    def success(self) -> bool:
        """Whether the answer with the adapter begins with the target."""
        return begins_with(self.after, [self.target])


def find_server(url: str, kind: str | None = None) -> Server:
    """Return the server at a URL; without a kind it is detected.

    Raises:
        ServerError: nothing answers, or nothing that is known.
    """
    if kind is not None:
        return SERVERS[kind](url)
    problems = []
    for name, path in _PROBES.items():
        server = SERVERS[name](url)
        try:
            server.get(path)
        except ServerError as error:
            problems.append(str(error))
        else:
            return server
    raise ServerError(f"{problems[0]}. Nothing else answers there either; is it llama.cpp, vLLM or SGLang?")


def ask(server: Server, name: str, requests: Sequence[EditRequest], new_tokens: int = 16) -> list[ServedAnswer]:
    """Ask an edit's own questions, without its adapter and with it.

    Raises:
        ServerError: the server does not answer.
    """
    return [
        ServedAnswer(
            request.prompt,
            request.target,
            natural_stop(server.answer(request.prompt, None, new_tokens)),
            natural_stop(server.answer(request.prompt, name, new_tokens)),
        )
        for request in requests
    ]


def _fetch(request: urllib.request.Request) -> Any:
    """Return the JSON of a response, or its text.

    Raises:
        ServerError: no connection, or an error of the server.
    """
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            text = response.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        detail = error.read().decode("utf-8", "replace")[:300]
        raise ServerError(f"{request.full_url} answers {error.code}: {detail}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ServerError(f"{request.full_url} cannot be reached: {reason}") from None
    try:
        return json.loads(text)
    except ValueError:
        return text
