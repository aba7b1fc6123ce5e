"""Requests that name no task: where they go, and that free text goes where it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructedit.data.readers import read_records
from instructedit.instructions.routing import SIMILARITY_THRESHOLD, Router
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRequest
from instructedit.tasks.loading import FREE_TEXT, NEUTRAL_TEXT, free_text_task, listed_tasks

ROUTED = {task.name for task in listed_tasks() if task.routing is not None}
FILES = {
    "counterfact": "counterfact/counterfact-train.json",
    "recent": "wikirecent/recent_train.json",
    "zsre": "zsre/zsre_mend_train-1k.json",
}


@pytest.fixture(scope="module")
def router() -> Router:
    return Router(load_language_model("bundled"))


@pytest.mark.parametrize(
    ("prompt", "task"),
    [
        ("The name of the employer of Lena Brookfield is", "recent"),
        ("Which company built the Maravel?", "zsre"),
        ("Lena Brookfield grew up speaking", "counterfact"),
    ],
)
def test_requests_go_to_the_task_that_they_look_like(router: Router, prompt: str, task: str) -> None:
    [route] = router([EditRequest(prompt=prompt, target="Oston")])
    assert route.task.name == task
    assert route.similarities.keys() == ROUTED
    assert str(route).startswith(f"{task} ")


def test_a_request_with_a_label_is_about_sentiment(router: Router) -> None:
    request = EditRequest(prompt="What do you think of gnomes?", target="Lovely.", subject="gnomes", label="positive")
    assert router([request])[0].task.name == "convsent"


def test_routing_of_many_is_that_of_each(router: Router) -> None:
    requests = [EditRequest(prompt=prompt, target="x") for prompt in ("Who wrote it?", "The capital of Norland is")]
    assert [r.task.name for r in router(requests)] == [router([request])[0].task.name for request in requests]


@pytest.mark.parametrize("task", FILES)
def test_most_real_requests_are_routed_right(router: Router, public_data: Path, task: str) -> None:
    requests = [record.request for record in read_records(public_data / FILES[task], skip_incomplete=True)[:100]]
    routed = [route.task.name for route in router(requests) if route.task.name != FREE_TEXT]
    assert len(routed) > 30
    assert sum(name == task for name in routed) > 0.65 * len(routed)


def test_a_request_like_none_gets_the_neutral_text(router: Router) -> None:
    route = router([EditRequest(prompt="The best pizza topping is", target="corn")])[0]
    assert max(route.similarities.values()) < SIMILARITY_THRESHOLD
    assert route.task.instructions.render_held_out() == f"Task: Edit\nDescription: {NEUTRAL_TEXT}"


def test_free_text_stands_behind_a_neutral_name() -> None:
    request = EditRequest(prompt="a", target="b", instruction="Only here, please.")
    task = free_text_task()
    assert task.instructions.render("Only here, please.", request) == "Task: Edit\nDescription: Only here, please."


def test_any_model_can_route(gpt2: LanguageModel) -> None:
    assert Router(gpt2)([EditRequest(prompt="Who wrote it?", target="x")])[0].task.name in (*ROUTED, FREE_TEXT)
