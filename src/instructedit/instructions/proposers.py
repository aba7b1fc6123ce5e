"""Who writes candidates: a grammar of our own that needs no network, or any chat-completions endpoint."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from instructedit.errors import DataError, EditorError
from instructedit.instructions import secrets
from instructedit.instructions.candidates import MOST_CHARACTERS
from instructedit.instructions.grammar import parts_of, scope_grammar
from instructedit.records import EditRecord
from instructedit.storage.reading import parse_json
from instructedit.tasks.task import Task

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranked:
    """A text that has been tried.

    Attributes:
        metrics: its means on validation edits.
        score: what it is ranked by.
    """

    text: str
    metrics: Mapping[str, float]
    score: float


@dataclass(frozen=True)
class Asked:
    """What a proposer sees.

    Attributes:
        examples: a few validation edits.
        ranked: what has been tried so far, the best first.
        count: how many candidates are wanted.
        round: counted from 1.
    """

    task: Task
    examples: Sequence[EditRecord]
    ranked: Sequence[Ranked]
    count: int
    round: int


#: (text, the text that it was made from); texts are not checked yet, and may be anything that JSON can hold.
Proposal = tuple[Any, str | None]


class Proposer(Protocol):
    """Writes candidates."""

    name: str

    def propose(self, asked: Asked, on_call: Callable[[dict[str, Any]], None]) -> list[Proposal]:
        """New candidates; ``on_call`` is told about every call of a service."""
        ...


class OfflineProposer:
    """Draws from the scope grammar, and makes new texts out of the best ones: sentences added, dropped, exchanged.

    Args:
        seed: with the round, decides every draw, so that a repeated run proposes the same.
        stray: share of the sentences that are drawn from other scopes than the task's own. Which text an editor follows
            best is to be found out, so trials are worth it; texts that nobody tries should not stray.
    """

    name = "offline"

    def __init__(self, seed: int = 0, stray: float = 0.4) -> None:
        self.seed, self.stray = seed, stray

    def propose(self, asked: Asked, on_call: Callable[[dict[str, Any]], None]) -> list[Proposal]:
        """Half of them new wordings, half made from the best so far."""
        rng = random.Random(f"{self.seed}-{asked.round}")
        found: list[Proposal] = []
        for number in range(asked.count):
            best = asked.ranked[: max(2, len(asked.ranked) // 4)]
            if number % 2 and best:
                parent = rng.choice(best).text
                found.append((self._changed(parent, asked, rng), parent))
            else:
                found.append((self._sentence(asked.task, rng), None))
        return found

    def _sentence(self, task: Task, rng: random.Random) -> str:
        """A wording: mostly of the task's own scope."""
        own = parts_of(task.instructions.scope) if task.instructions.scope else []
        grammar = scope_grammar()
        others = sorted((grammar.scopes.keys() | grammar.texts.keys()) - {*own, "tone"})
        wanted = own if own and (own == ["tone"] or rng.random() >= self.stray) else others
        return grammar.draw(rng.choice(wanted), rng)

    def _changed(self, text: str, asked: Asked, rng: random.Random) -> str:
        sentences = _sentences(text)
        place = rng.randrange(len(sentences))
        way = rng.choice(("add", "exchange", "drop", "cross"))
        if way == "add":
            sentences.insert(rng.choice((0, len(sentences))), self._sentence(asked.task, rng))
        elif way == "exchange":
            sentences[place] = self._sentence(asked.task, rng)
        elif way == "drop" and len(sentences) > 1:
            del sentences[place]
        else:
            other = rng.choice(asked.ranked).text
            sentences = [*sentences[: place + 1], rng.choice(_sentences(other))]
        return " ".join(sentences)


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


_SYSTEM = (
    "You write instructions for a knowledge editor of language models. An instruction is one line of plain English "
    "that says what kind of change an edit is and how far it reaches: what has to change along with it and what has to "
    "stay as it was. It is generic: it never names a particular subject or answer. You are shown earlier instructions "
    "with their scores on validation edits; write better ones. Answer with a JSON object and nothing else: "
    '{"descriptions": ["…", "…"]}'
)
_ATTEMPTS = 5
_USUAL_VARIABLE = "OPENAI_API_KEY"
#: How many texts of an answer are taken, as a multiple of those that were asked for.
_MOST_TEXTS = 4
_LONGEST_REASON = 500
_REDACTING = secrets.Redacting()


class EndpointProposer:
    """Asks a language model behind an OpenAI-compatible endpoint.

    The key, and a password or query in the address, go to the endpoint and nowhere else: they are taken out of
    everything that it says. Redirects are not followed, as they would send the request to somebody else.

    Args:
        model: the name that the endpoint knows it by.
        base_url: of the endpoint; ``https://user:password@host/v1`` is sent as basic authentication.
        key_variable: environment variable that holds the key; the key is written nowhere.
        timeout: seconds that a call may take.
        pause: seconds before the second attempt; doubled before each further one.

    Attributes:
        address: of the endpoint, as it may be shown.

    Raises:
        EditorError: the variable is not set, the address is none, or the ``openai`` package is missing.
    """

    name = "endpoint"

    def __init__(
        self,
        model: str,
        base_url: str,
        key_variable: str = _USUAL_VARIABLE,
        timeout: float = 60.0,
        pause: float = 1.0,
    ) -> None:
        self.model, self.pause = model, pause
        key = _key_in(key_variable)
        try:
            parts = urlsplit(base_url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            secrets.keep_those_of(base_url)
        except ValueError:
            known = False
        if not known:  # perhaps with a password in it: it is not said back
            raise EditorError("the endpoint's address is not one of the kind https://host/v1; give another --base-url")
        self.address = secrets.address(base_url)
        if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            logger.warning("the key goes to %s unencrypted, for all on the way to read; use https", self.address)
        for library in ("httpx", "httpx2", "openai._base_client"):
            logging.getLogger(library).addFilter(_REDACTING)
        user = None
        if parts.username is not None:
            user = (unquote(parts.username), unquote(parts.password or ""))
        self._client = self._connect(key, user, dict(parse_qsl(parts.query)), timeout)

    def _connect(self, key: str, user: tuple[str, str] | None, query: Mapping[str, str], timeout: float) -> OpenAI:
        try:
            from openai import DefaultHttpxClient, OpenAI
        except ImportError:
            raise EditorError(
                "the endpoint proposer needs the openai package: pip install 'instructedit[openai]'"
            ) from None
        # Retries are our own: each is to be in the trace.
        return OpenAI(
            api_key=key,
            base_url=self.address,
            timeout=timeout,
            max_retries=0,
            default_query=query,
            http_client=DefaultHttpxClient(follow_redirects=False, auth=user, timeout=timeout),
        )

    def propose(self, asked: Asked, on_call: Callable[[dict[str, Any]], None]) -> list[Proposal]:
        """What the model wrote. A call that fails or answers with something else is repeated a few times.

        Raises:
            EditorError: every attempt failed; the last reason is said.
        """
        from openai import APIStatusError, OpenAIError

        reason = "?"
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            began = time.monotonic()
            status: int | None = 200
            try:
                answer = self._client.chat.completions.create(
                    model=self.model,
                    messages=[
                        {"role": "system", "content": _SYSTEM},
                        {"role": "user", "content": json.dumps(_question(asked), ensure_ascii=False)},
                    ],
                )
                texts = _taken(_descriptions(answer.choices[0].message.content if answer.choices else None), asked)
                reason = "" if texts else "no descriptions in the answer"
            except OpenAIError as error:
                texts, status = [], error.status_code if isinstance(error, APIStatusError) else None
                reason = _shortened(f"{type(error).__name__}: {error}")
                if status is not None and 300 <= status < 400:
                    reason = f"it redirects (status {status}), which is not followed; give the address that it means"
            except (DataError, ValueError, AttributeError, TypeError, RecursionError) as error:
                texts, reason = [], _shortened(f"not the JSON that was asked for: {error}")
            seconds = round(time.monotonic() - began, 3)
            on_call(
                {"round": asked.round, "attempt": attempt + 1, "status": status, "seconds": seconds, "fault": reason}
            )
            if texts:
                return [(text, None) for text in texts]
            if status in (400, 401, 403, 404) or (status is not None and 300 <= status < 400):
                break  # asking again would not help
        raise EditorError(f"the endpoint gave no instructions: {reason}")


def _key_in(variable: str) -> str:
    """The key in an environment variable.

    Raises:
        EditorError: there is none. What was given as the name is said only if there is such a variable, as it may be
            the key itself.
    """
    known = variable == _USUAL_VARIABLE or variable in os.environ
    if not known:
        raise EditorError(
            "the key is read from an environment variable, and there is none of the name that was given with "
            "--key-env; set it, and give the variable's NAME"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EditorError(f"the environment variable {variable} holds no key")
    if not (key.isascii() and key.isprintable()):
        raise EditorError(f"the environment variable {variable} holds characters that no key has; copy the key again")
    secrets.keep(key)
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _shortened(reason: str) -> str:
    reason = secrets.redacted(reason)
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"


def _taken(found: Sequence[Any], asked: Asked) -> list[Any]:
    """What of an answer is looked at: not many times what was asked for, each without secrets and not endless."""
    texts: list[Any] = []
    for value in found[: _MOST_TEXTS * asked.count]:
        if isinstance(value, str):
            text = secrets.redacted(value)
            texts.append(text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…")
        else:
            shown = secrets.cleaned(value)
            texts.append(shown if len(json.dumps(shown)) <= MOST_CHARACTERS else None)
    return texts


def _question(asked: Asked) -> dict[str, Any]:
    shown = [*asked.ranked[:6], *asked.ranked[6:][-3:]]
    return {
        "task": asked.task.summary,
        "must_contain": list(asked.task.instructions.placeholders),
        "examples": [{"prompt": r.request.prompt, "new_answer": r.request.target} for r in asked.examples],
        "tried": [
            {"description": r.text, "score": round(r.score, 4), **{k: round(v, 4) for k, v in r.metrics.items()}}
            for r in shown
        ],
        "wanted": asked.count,
    }


def _descriptions(content: str | None) -> list[Any]:
    """The list in an answer, in a code fence or not.

    Raises:
        DataError: it is not JSON.
        ValueError: there is no such list.
    """
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", (content or "").strip())
    found = parse_json(text, lone_surrogates=True)  # a text with half a character is told as any unusable one
    if isinstance(found, dict):
        found = found.get("descriptions")
    if not isinstance(found, list):
        raise ValueError("expected a list under `descriptions`")
    return found
