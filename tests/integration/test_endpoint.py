"""The endpoint proposer against a real HTTP server that speaks chat completions, and fails on demand."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from instructedit.errors import EditorError
from instructedit.instructions.bank import write_bank
from instructedit.instructions.candidates import Candidate, fault
from instructedit.instructions.proposers import Asked, EndpointProposer, Ranked
from instructedit.instructions.trace import Trace
from instructedit.records import EditRecord, EditRequest
from instructedit.tasks.task import load_task

KEY = "sk-never-to-be-seen-1234567890"
GOOD = ["Change this answer in all its wordings and no other.", "Correct one answer; whatever else was asked stays."]
TALK = load_task("convsent")
EXAMPLE = EditRecord(record_id="a", request=EditRequest(prompt="Who built it?", target="Lena"))


class Server(ThreadingHTTPServer):
    """Answers as its script says, one entry a request; keeps what it was asked. The last entry is repeated."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[str] = ["good"]
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({"path": self.path, **body})
        self.server.keys.append(self.headers.get("Authorization", ""))
        now = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        if now == "slow":
            time.sleep(1.5)
        if now in ("429", "500", "401"):
            # Some services say the key back.
            self._send(int(now), json.dumps({"error": {"message": f"no luck with {KEY}", "type": "x"}}))
            return
        content = {
            "good": json.dumps({"descriptions": GOOD}),
            "slow": json.dumps({"descriptions": GOOD}),
            "fenced": "```json\n" + json.dumps(GOOD) + "\n```",
            "malformed": '{"descriptions": ["cut off',
            "words": "Here are some instructions for you!",
            "empty": json.dumps({"descriptions": []}),
            "number": "7",
            "mixed": json.dumps(
                {"descriptions": [*GOOD, "Make it nicer from now on, please.", "a line\nbreak in it", 5]}
            ),
        }.get(now)
        if now == "broken body":
            self._send(200, "{not json")
        elif now == "no choices":
            self._send(200, json.dumps({"id": "1", "object": "chat.completion", "choices": []}))
        else:
            message = {"role": "assistant", "content": content}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._send(
                200,
                json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}),
            )

    def _send(self, status: int, text: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up waiting

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def proposer(server: Server, **more: Any) -> EndpointProposer:
    return EndpointProposer("m", server.url, "OWN_KEY", **({"timeout": 0.5, "pause": 0.01} | more))


def asked(task: str = "zsre") -> Asked:
    ranked = (Ranked("Change it all at once.", {"reliability": 0.75}, 0.5),)
    return Asked(load_task(task), (EXAMPLE,), ranked, 4, 2)


def test_the_model_is_shown_the_task_the_edits_and_what_was_tried(server: Server) -> None:
    calls: list[dict[str, Any]] = []
    found = proposer(server).propose(asked("convsent"), calls.append)
    assert found == [(text, None) for text in GOOD]
    [question] = server.asked
    assert question["path"] == "/v1/chat/completions"
    shown = json.loads(question["messages"][1]["content"])
    assert shown["task"] == TALK.summary
    assert shown["must_contain"] == ["[LABEL]", "[TOPIC]"]
    assert shown["examples"] == [{"prompt": "Who built it?", "new_answer": "Lena"}]
    assert shown["tried"] == [{"description": "Change it all at once.", "score": 0.5, "reliability": 0.75}]
    assert shown["wanted"] == 4
    assert server.keys == [f"Bearer {KEY}"]
    assert [(call["attempt"], call["status"], call["fault"]) for call in calls] == [(1, 200, "")]


@pytest.mark.parametrize(
    "trouble", ["slow", "429", "500", "malformed", "words", "empty", "number", "broken body", "no choices"]
)
def test_a_call_that_fails_is_repeated(server: Server, trouble: str) -> None:
    server.script = [trouble, trouble, "fenced"]
    calls: list[dict[str, Any]] = []
    assert proposer(server).propose(asked(), calls.append) == [(text, None) for text in GOOD]
    assert [call["attempt"] for call in calls] == [1, 2, 3]
    assert all(call["fault"] for call in calls[:2])
    assert not calls[2]["fault"]
    assert len(server.asked) == 3


@pytest.mark.parametrize(("trouble", "attempts"), [("500", 5), ("malformed", 5), ("401", 1)])
def test_an_endpoint_that_never_answers_is_given_up_with_the_reason(
    server: Server, trouble: str, attempts: int
) -> None:
    server.script = [trouble]
    with pytest.raises(EditorError, match="the endpoint gave no instructions") as caught:
        proposer(server).propose(asked(), lambda call: None)
    assert len(server.asked) == attempts
    assert KEY not in str(caught.value)


def test_the_key_is_written_nowhere(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even where the service says it back in its errors."""
    caplog.set_level(logging.DEBUG)
    server.script = ["401"]
    trace = Trace(tmp_path / "t.jsonl", {})
    with pytest.raises(EditorError):
        proposer(server).propose(asked(), lambda call: trace.add("call", **call))
    server.script = ["429", "good"]
    texts = proposer(server).propose(asked(), lambda call: trace.add("call", **call))
    write_bank(tmp_path / "b.yaml", load_task("zsre"), [Candidate(text, "endpoint") for text, _ in texts], {}, {})
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    said = capfd.readouterr()
    assert len(list(trace.of("call"))) == 3
    assert "***" in written
    for text in (written, caplog.text, said.out, said.err):
        assert KEY not in text


def test_what_drops_a_placeholder_or_breaks_the_line_is_not_taken(server: Server) -> None:
    server.script = ["mixed"]
    found = [text for text, _ in proposer(server).propose(asked("convsent"), lambda call: None)]
    assert [fault(text, TALK) for text in found] == [
        "drops [LABEL] and [TOPIC]",
        "drops [LABEL] and [TOPIC]",
        "drops [LABEL] and [TOPIC]",
        "contains a line break",
        "is not a text",
    ]


def test_a_key_in_place_of_its_variables_name_is_not_said_back(server: Server) -> None:
    with pytest.raises(EditorError, match="give the variable's NAME") as caught:
        EndpointProposer("m", server.url, KEY)
    assert KEY not in str(caught.value)


def test_no_key_is_told_before_anything_is_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OWN_KEY")
    with pytest.raises(EditorError, match="OWN_KEY holds no key"):
        proposer(server)
    assert server.asked == []
