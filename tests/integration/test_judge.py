"""The judge of generated answers, against a real HTTP server that speaks chat completions."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from instructedit.editors.incontext import InContext, InContextConfig
from instructedit.endpoints.chat import ChatEndpoint
from instructedit.errors import DataError, EditorError
from instructedit.evaluation.judge import Judge
from instructedit.evaluation.metrics import get_metric
from instructedit.evaluation.protocols import Control, Protocol
from instructedit.evaluation.runner import Evaluation, evaluate
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind
from instructedit.tasks.loading import load_task

pytest.importorskip("openai")


class Server(ThreadingHTTPServer):
    """Gives each verdict of its list, the last one again and again; keeps the questions."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.verdicts = ['{"same": true}']
        self.questions: list[dict[str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.questions.append(json.loads(body["messages"][1]["content"]))
        verdicts = self.server.verdicts
        content = verdicts.pop(0) if len(verdicts) > 1 else verdicts[0]
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-the-judge")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def judge(server: Server, file: Path) -> Judge:
    return Judge(ChatEndpoint("m", f"http://127.0.0.1:{server.server_port}/v1", pause=0.0), file)


def test_a_verdict_is_asked_for_once_and_kept(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "judge" / "verdicts.jsonl"
    first = judge(server, file)
    server.verdicts = ['```json\n{"same": true}\n```', '{"same": false}']
    assert first.same("Who walked on it first?", ["Neil Armstrong"], "It was Armstrong.")
    assert not first.same("Who walked on it first?", ["Neil Armstrong"], "It was Aldrin.")
    assert first.same("Who walked on it first?", ["Neil Armstrong"], "It was Armstrong.")
    with file.open("a") as stream:
        stream.write('{"question": "cut o')
    again = judge(server, file)
    assert again.same("Who walked on it first?", ["Neil Armstrong"], "It was Armstrong.")
    assert (first.calls, again.calls) == (2, 0)
    assert server.questions[0] == {
        "prompt": "Who walked on it first?",
        "expected": ["Neil Armstrong"],
        "given": "It was Armstrong.",
    }
    assert not again.same("Who?", ["Neil Armstrong"], " \n"), "no answer needs no judge"
    assert again.calls == 0


def test_other_forms_are_asked_for_again_and_then_given_up(server: Server, tmp_path: Path) -> None:
    server.verdicts = ["yes", '{"same": "true"}', '{"same": true}']
    assert judge(server, tmp_path / "a.jsonl").same("Who?", ["Ann"], "Anna")
    server.verdicts = ["yes"]
    with pytest.raises(EditorError, match=r"the judge m at http://127.* did not answer: not the JSON"):
        judge(server, tmp_path / "b.jsonl").same("Who?", ["Ann"], "Anna")


def test_verdicts_that_cannot_be_written_are_still_used(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("")
    unwritable = judge(server, tmp_path / "taken" / "a.jsonl")
    assert unwritable.same("Who?", ["Ann"], "Anna")
    assert unwritable.same("Who?", ["Ann"], "Annette")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


RECORD = EditRecord(
    record_id="a",
    request=EditRequest(prompt="Lena was born in", target="Oston", subject="Lena"),
    rephrases=("The birthplace of Lena is",),
    probes=(Probe(kind=ProbeKind.SAME_SUBJECT, prompt="Lena works as", answers=("a baker",)),),
)


def measured(gpt2: LanguageModel, chosen: Judge | None, protocol: Protocol = Protocol.ANSWER) -> Evaluation:
    editor = InContext.create(InContextConfig(), gpt2)
    metrics = [get_metric(name) for name in ("reliability", "generalization", "locality")]
    return evaluate(
        editor, gpt2, load_task("recent"), [RECORD], metrics=metrics, protocol=protocol, instruction=Control.NONE,
        judge=chosen,
    )  # fmt: skip


def test_an_evaluation_takes_the_judges_word(gpt2: LanguageModel, server: Server, tmp_path: Path) -> None:
    chosen = judge(server, tmp_path / "a.jsonl")
    result = measured(gpt2, chosen)
    assert {name: value.mean for name, value in result.metrics.items()} == {
        "reliability": 1.0,
        "generalization": 1.0,
        "locality": 1.0,
    }
    assert result.as_dict()["judge"] == chosen.name
    assert {"Lena was born in", "The birthplace of Lena is"} <= {each["prompt"] for each in server.questions}
    server.verdicts = ['{"same": false}']
    strict = measured(gpt2, judge(server, tmp_path / "b.jsonl"))
    assert strict.metrics["reliability"].mean == 0.0
    assert "judge" not in measured(gpt2, None).as_dict()


def test_a_judge_needs_generated_answers(gpt2: LanguageModel, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="protocol plain generates no answers for a judge"):
        measured(gpt2, judge(server, tmp_path / "a.jsonl"), Protocol.PLAIN)
