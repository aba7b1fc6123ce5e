"""Whatever an endpoint answers becomes instructions, or a refusal: hypothesis' texts, and a real server's bytes."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import mutate
from fuzz.figures import INPUTS, Figures, try_file
from fuzz.targets import GOOD, keep, use_text
from instructedit.endpoints.chat import ChatEndpoint
from instructedit.instructions.endpoint_proposer import EndpointProposer

pytest.importorskip("openai")

TEXTS = max(4, round(0.04 * INPUTS))
REPLIES = max(4, round(0.004 * INPUTS))
STATUSES = (200, 200, 200, 200, 200, 201, 204, 301, 307, 400, 404, 418, 429, 500, 503, 999)

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
_ANSWERS = (
    st.text(st.characters())
    | _VALUES.map(json.dumps)
    | st.lists(_VALUES | st.sampled_from(GOOD), min_size=1, max_size=5)
    .map(lambda found: {"descriptions": found})
    .map(json.dumps)
    | _VALUES
)


def test_texts(record_property: Callable[[str, object], None]) -> None:
    figures = Figures("endpoint")

    @settings(max_examples=TEXTS, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_ANSWERS)
    def check(content: object) -> None:
        figures.add(try_file("x", b"", lambda path: use_text(content)), repr(content)[:200].replace("/", "|"))

    check()
    figures.report(record_property)
    assert not figures.failures, "\n".join(figures.said())


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        status, headers, body = self.server.reply  # type: ignore[attr-defined]
        self.send_response(status)
        for key, text in headers.items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def _server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _reply(rng: random.Random) -> tuple[int, dict[str, str], bytes]:
    content = mutate.as_json(rng, mutate.tree(rng, {"descriptions": GOOD})).decode("utf-8", "replace")
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    body = mutate.as_json(rng, mutate.tree(rng, whole, rng.choice((0, 1, 2))))
    if rng.random() < 0.2:
        body = mutate.at_bytes(rng, body)
    headers = {
        "Content-Type": rng.choice(("application/json", "application/json", "text/html", "x", "application/json; x=1")),
        "Content-Length": str(len(body) + rng.choice((0, 0, 0, 0, 0, 5, -3))),
    }
    status = rng.choice(STATUSES)
    if status in (301, 307):
        headers["Location"] = rng.choice(("/v1/chat/completions", "http://127.0.0.1:9/", "x", "file:///etc/hostname"))
    if rng.random() < 0.1:
        headers["Content-Encoding"] = rng.choice(("gzip", "x", "deflate"))
    return status, headers, body


def test_replies_of_a_server(record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_KEY", "secret-key")
    figures = Figures("endpoint")
    with _server() as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"

        def use(path: Path) -> None:
            keep(EndpointProposer(ChatEndpoint("m", url, "FUZZ_KEY", timeout=2.0, pause=0.0)))

        for number in range(REPLIES):
            reply = _reply(random.Random(f"server-{number}"))
            server.reply = reply  # type: ignore[attr-defined]
            figures.add(try_file("x", b"", use), f"server-{number}: {reply[0]} {reply[2][:150]!r}".replace("/", "|"))
    figures.report(record_property)
    assert not figures.failures, "\n".join(figures.said())
