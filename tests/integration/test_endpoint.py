"""The endpoint proposer against a real HTTP server that speaks chat completions, and fails on demand."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from instructedit.endpoints.chat import ChatEndpoint
from instructedit.errors import EditorError
from instructedit.instructions.candidates import Candidate, validation_error
from instructedit.instructions.endpoint_proposer import EndpointProposer
from instructedit.instructions.proposals import ProposalContext, RankedTemplate
from instructedit.instructions.search_trace import SearchTrace
from instructedit.instructions.template_files import write_templates
from instructedit.records import EditRecord, EditRequest
from instructedit.tasks.loading import load_task

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
        self.elsewhere = ""

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
        if now == "novel":
            self._send(400, json.dumps({"error": {"message": "no " * 50_000, "type": "x"}}))
            return
        if now == "redirect":
            self.send_response(307)
            self.send_header("Location", f"{self.server.elsewhere}/chat/completions")
            self.end_headers()
            return
        content = {
            "echo": json.dumps(
                [
                    f"Change {KEY} and nothing else.",
                    f"Change {KEY.upper()} and nothing else.",
                    f"Change {base64.b64encode(KEY.encode()).decode()} and nothing else.",
                    [{KEY: KEY}],
                    KEY,
                ]
            ),
            "many": json.dumps(
                ["word " * 100_000, ["x"] * 100_000, *[f"Change number {n} now." for n in range(20_000)]]
            ),
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
    return EndpointProposer(ChatEndpoint("m", server.url, "OWN_KEY", **({"timeout": 0.5, "pause": 0.01} | more)))


def context(task: str = "zsre") -> ProposalContext:
    ranked = (RankedTemplate("Change it all at once.", {"reliability": 0.75}, 0.5),)
    return ProposalContext(load_task(task), (EXAMPLE,), ranked, 4, 2)


def test_the_model_is_shown_the_task_the_edits_and_what_was_tried(server: Server) -> None:
    calls: list[dict[str, Any]] = []
    found = proposer(server).propose(context("convsent"), calls.append)
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
    assert [(call["attempt"], call["status"], call["error"]) for call in calls] == [(1, 200, "")]


@pytest.mark.parametrize(
    "trouble", ["slow", "429", "500", "malformed", "words", "empty", "number", "broken body", "no choices"]
)
def test_a_call_that_fails_is_repeated(server: Server, trouble: str) -> None:
    server.script = [trouble, trouble, "fenced"]
    calls: list[dict[str, Any]] = []
    assert proposer(server).propose(context(), calls.append) == [(text, None) for text in GOOD]
    assert [call["attempt"] for call in calls] == [1, 2, 3]
    assert all(call["error"] for call in calls[:2])
    assert not calls[2]["error"]
    assert len(server.asked) == 3


@pytest.mark.parametrize(("trouble", "attempts"), [("500", 5), ("malformed", 5), ("401", 1)])
def test_an_endpoint_that_never_answers_is_given_up_with_the_reason(
    server: Server, trouble: str, attempts: int
) -> None:
    server.script = [trouble]
    with pytest.raises(EditorError, match="the endpoint returned no templates") as caught:
        proposer(server).propose(context(), lambda call: None)
    assert len(server.asked) == attempts
    assert KEY not in str(caught.value)


def test_the_key_is_written_nowhere(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even where the service says it back in its errors."""
    caplog.set_level(logging.DEBUG)
    server.script = ["401"]
    trace = SearchTrace(tmp_path / "t.jsonl", {})
    with pytest.raises(EditorError):
        proposer(server).propose(context(), lambda call: trace.add("call", **call))
    server.script = ["429", "good"]
    texts = proposer(server).propose(context(), lambda call: trace.add("call", **call))
    write_templates(tmp_path / "b.yaml", load_task("zsre"), [Candidate(text, "endpoint") for text, _ in texts], {}, {})
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    said = capfd.readouterr()
    assert len(list(trace.of("call"))) == 3
    assert "***" in written
    for text in (written, caplog.text, said.out, said.err):
        assert KEY not in text


def test_what_drops_a_placeholder_or_breaks_the_line_is_not_taken(server: Server) -> None:
    server.script = ["mixed"]
    found = [text for text, _ in proposer(server).propose(context("convsent"), lambda call: None)]
    assert [validation_error(text, TALK) for text in found] == [
        "lacks [LABEL] and [TOPIC]",
        "lacks [LABEL] and [TOPIC]",
        "lacks [LABEL] and [TOPIC]",
        "contains a line break",
        "is not a string",
    ]


def test_a_key_in_place_of_its_variables_name_is_not_printed(server: Server) -> None:
    with pytest.raises(EditorError, match="--key-env takes the NAME") as caught:
        ChatEndpoint("m", server.url, KEY)
    assert KEY not in str(caught.value)


def test_no_key_is_reported_before_any_call(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", " ")
    with pytest.raises(EditorError, match="OWN_KEY contains no API key"):
        proposer(server)
    monkeypatch.delenv("OWN_KEY")
    with pytest.raises(EditorError, match="--key-env names is not set"):
        proposer(server)
    monkeypatch.setenv("OWN_KEY", "sk-ü")
    with pytest.raises(EditorError, match="characters that an API key cannot have") as caught:
        proposer(server)
    assert "sk-ü" not in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize("given", [KEY, "AKIAIOSFODNN7EXAMPLE", "gsk_abcdefghij0123456789"])
def test_a_key_that_looks_like_a_variables_name_is_not_printed(server: Server, given: str) -> None:
    with pytest.raises(EditorError, match="--key-env takes the NAME") as caught:
        ChatEndpoint("m", server.url, given)
    assert given not in str(caught.value)


def test_a_key_that_comes_back_as_a_description_goes_nowhere(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a text, in a list, in upper case, coded for an address: it is rejected, and the reason is without it."""
    caplog.set_level(logging.DEBUG)
    server.script = ["echo"]
    proposing = proposer(server)  # before the trace, as `optimize` does: the key is known from here on
    with SearchTrace(tmp_path / "t.jsonl", {"note": f"key {KEY}"}) as trace:
        found = proposing.propose(context(), lambda call: trace.add("call", **call))
        texts = [text for text, _ in found]
        for text in texts:
            reason = validation_error(text, load_task("zsre"))
            assert reason is not None
            trace.add("rejected", text=text, reason=reason)
        trace.add("rejected", text=f"whoever wrote it: {KEY}", reason=KEY)
    write_templates(tmp_path / "b.yaml", load_task("zsre"), [Candidate(text, KEY) for text in GOOD], {"by": KEY}, {})
    assert len(texts) == 5
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    said = capfd.readouterr()
    for text in (written, caplog.text, said.out, said.err, repr(texts)):
        assert KEY.casefold() not in text.casefold()
    assert "contains a secret" in (validation_error(f"Say {KEY} in every answer.", load_task("zsre")) or "")


PASSWORD = "horse-battery/staple"


def test_a_password_in_the_address_is_sent_and_written_nowhere(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    url = server.url.replace("://", "://lena:horse-battery%2Fstaple@") + "?code=another-secret&version=2"
    wanted = EndpointProposer(ChatEndpoint("m", url, "OWN_KEY", timeout=0.5, pause=0.01))
    assert wanted.endpoint.address == server.url
    server.script = ["401", "good"]
    with SearchTrace(tmp_path / "t.jsonl", {"base_url": url}) as trace:
        assert trace.events[0]["settings"] == {"base_url": server.url}
        with pytest.raises(EditorError) as caught:
            wanted.propose(context(), lambda call: trace.add("call", **call))
        wanted.propose(context(), lambda call: trace.add("call", **call))
    coded = base64.b64encode(f"lena:{PASSWORD}".encode()).decode()
    assert server.keys == [f"Basic {coded}"] * 2
    assert {question["path"] for question in server.asked} == {"/v1/chat/completions?code=another-secret&version=2"}
    said = capfd.readouterr()
    written = (tmp_path / "t.jsonl").read_text()
    for text in (written, caplog.text, said.out, said.err, str(caught.value)):
        for secret in (PASSWORD, "horse-battery%2Fstaple", "another-secret", coded):
            assert secret not in text
    with SearchTrace(tmp_path / "t.jsonl", {"base_url": url}):
        pass  # the same settings


@pytest.mark.parametrize(
    "url", ["h:secret99@x", "ftp://u:secret99@x", "http://", "http://[secret99", "http://x:secret99"]
)
def test_what_is_not_an_address_is_reported_and_not_printed(url: str) -> None:
    with pytest.raises(EditorError, match="change --base-url") as caught:
        ChatEndpoint("m", url, "OWN_KEY")
    assert "secret99" not in str(caught.value)


def test_a_redirect_is_not_followed(server: Server) -> None:
    with Server() as other:
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()
        server.elsewhere, server.script = other.url, ["redirect"]
        with pytest.raises(EditorError, match="it redirects"):
            proposer(server).propose(context(), lambda call: None)
        assert len(server.asked) == 1
        assert other.asked == []
        other.shutdown()


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://example.org/v1", True),
        ("http://10.0.0.7:8000/v1", True),
        ("https://example.org/v1", False),
        ("http://localhost:8000/v1", False),
        ("http://127.0.0.1/v1", False),
        ("http://[::1]:8000/v1", False),
    ],
)
def test_a_key_that_travels_unencrypted_is_warned_of(url: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    ChatEndpoint("m", url, "OWN_KEY")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert ("unencrypted" in caplog.text) == warned


def test_of_many_texts_few_are_taken_and_none_is_endless(server: Server) -> None:
    server.script = ["many"]
    found = [text for text, _ in proposer(server, timeout=10).propose(context(), lambda call: None)]
    assert len(found) == 16
    assert max(len(text) for text in found if isinstance(text, str)) == 1001
    assert "more than 1,000 characters" in (validation_error(found[0], load_task("zsre")) or "")
    assert found[1] is None


def test_a_long_complaint_is_cut(server: Server) -> None:
    server.script = ["novel"]
    calls: list[dict[str, Any]] = []
    with pytest.raises(EditorError) as caught:
        proposer(server).propose(context(), calls.append)
    assert len(str(caught.value)) < 600
    assert len(calls[0]["error"]) < 600
