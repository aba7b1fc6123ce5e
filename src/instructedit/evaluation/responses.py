"""The responses of the edited and the unedited model to queries, in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

from instructedit.editors.base import Edits
from instructedit.evaluation.generation import begins_with, generate, matches, natural_stop, normalised
from instructedit.evaluation.judge import Judge
from instructedit.evaluation.metrics.query import TEXT_TOKENS, Criterion, MetricQuery, ResponseKind, Result
from instructedit.evaluation.protocols import Protocol
from instructedit.evaluation.scoring import Query, Scored, score
from instructedit.models.language_model import LanguageModel

#: Generated answers are cut there, however long the expected answer is.
MAX_ANSWER_TOKENS = 48
#: Tokens that an answer may be longer than the longest expected one.
SPARE_TOKENS = 8

#: Score of a response to a query, given that of the unedited model.
_TextScore = Callable[[MetricQuery, str, str], float]
_Responder = Callable[[Sequence[MetricQuery], LanguageModel, int, Edits, Protocol], Iterator[Result]]


def respond(
    queries: Sequence[MetricQuery],
    language_model: LanguageModel,
    split_layer: int,
    edits: Edits,
    protocol: Protocol,
    judge: Judge | None = None,
) -> dict[MetricQuery, Result]:
    """Put the queries to the edited and to the unedited model, each kind of response in batches of its own.

    Args:
        queries: about any of the edits, in any order.
        language_model: the base model.
        split_layer: lowest block that the edits touch.
        edits: the edits, by row.
        protocol: how answers are given. Under free generation LIKELIHOOD queries are left out.
        judge: compares generated answers, in place of a comparison of their words.

    Returns:
        The results by query.

    Raises:
        EditorError: the judge's endpoint did not answer.
    """
    responders: dict[ResponseKind, _Responder] = {
        ResponseKind.ANSWER: partial(_generated_answers, judge=judge)
        if protocol.generates
        else _teacher_forced_answers,
        ResponseKind.LIKELIHOOD: _likelihoods,
        ResponseKind.TEXT: _texts,
    }
    if protocol.generates:
        del responders[ResponseKind.LIKELIHOOD]
    results: dict[MetricQuery, Result] = {}
    for kind, responder in responders.items():
        of_kind = [query for query in queries if query.kind is kind]
        if of_kind:
            results |= {
                result.query: result for result in responder(of_kind, language_model, split_layer, edits, protocol)
            }
    return results


def _teacher_forced_answers(
    queries: Sequence[MetricQuery], language_model: LanguageModel, split_layer: int, edits: Edits, protocol: Protocol
) -> Iterator[Result]:
    """Of an answer with aliases the first is scored; of unwanted answers, each."""
    answers = [query.answers if query.criterion is Criterion.ABSENT else query.answers[:1] for query in queries]
    pairs = [
        Query(query.edit, query.prompt, answer) for query, own in zip(queries, answers, strict=True) for answer in own
    ]
    scores_after = iter(score(language_model, split_layer, pairs, edits, chat=protocol is Protocol.CHAT))
    scores_before = iter(score(language_model, split_layer, pairs, None, chat=protocol is Protocol.CHAT))
    for query, own in zip(queries, answers, strict=True):
        after, before = list(islice(scores_after, len(own))), list(islice(scores_before, len(own)))
        yield Result(query, _forced_score(query, after, before), _forced_score(query, before, before))


def _forced_score(query: MetricQuery, response: Sequence[Scored], unedited: Sequence[Scored]) -> float:
    if query.criterion is Criterion.UNCHANGED:
        return response[0].agreement(unedited[0])
    if query.criterion is Criterion.ABSENT:
        return float(all(scored.token_accuracy < 1 for scored in response))
    return response[0].token_accuracy


def _generated_answers(
    queries: Sequence[MetricQuery],
    language_model: LanguageModel,
    split_layer: int,
    edits: Edits,
    protocol: Protocol,
    judge: Judge | None,
) -> Iterator[Result]:
    prompts = [query.prompt for query in queries]
    longest = max(
        len(language_model.text.encode_pair("a", answer).ids) for query in queries for answer in query.answers[:1]
    )
    new_tokens = min(MAX_ANSWER_TOKENS, longest + SPARE_TOKENS)
    rows = [query.edit for query in queries]
    texts_after = generate(
        language_model, prompts, edits=edits, rows=rows, chat=protocol is Protocol.CHAT, new_tokens=new_tokens
    )
    texts_before = generate(language_model, prompts, chat=protocol is Protocol.CHAT, new_tokens=new_tokens)
    text_score: _TextScore = _beginning_score if protocol is Protocol.ANSWER else _text_score
    if judge is not None:
        text_score = partial(_judged_score, judge)
    for query, after, before in zip(queries, texts_after, texts_before, strict=True):
        yield Result(query, text_score(query, after, before), text_score(query, before, before), after)


def _beginning_score(query: MetricQuery, response: str, unedited: str) -> float:
    """As :func:`_text_score`, of the answer that a text begins with.

    An answer is unchanged if both texts begin with it. Where the unedited model does not give it, its text must begin
    with as many of the same words as the answer has.
    """
    if query.criterion is Criterion.UNCHANGED:
        if begins_with(unedited, query.answers):
            return float(begins_with(response, query.answers))
        words = len(normalised(query.answers[0]).split())
        return float(normalised(response).split()[:words] == normalised(unedited).split()[:words])
    return float(begins_with(response, query.answers) != (query.criterion is Criterion.ABSENT))


def _text_score(query: MetricQuery, response: str, unedited: str) -> float:
    if query.criterion is Criterion.UNCHANGED:
        return float(normalised(natural_stop(response)) == normalised(natural_stop(unedited)))
    if query.criterion is Criterion.ABSENT:
        text = normalised(response)
        return float(not any(text.startswith(normalised(answer)) for answer in query.answers))
    return float(matches(response, query.answers))


def _judged_score(judge: Judge, query: MetricQuery, response: str, unedited: str) -> float:
    """As :func:`_text_score`; where the words differ, a judge says whether the answers are the same."""
    unchanged = query.criterion is Criterion.UNCHANGED
    expected, given = (natural_stop(unedited),) if unchanged else query.answers, natural_stop(response)
    same = normalised(given) in map(normalised, expected) or judge.same(query.prompt, expected, given)
    return float(same != (query.criterion is Criterion.ABSENT))


def _likelihoods(
    queries: Sequence[MetricQuery], language_model: LanguageModel, split_layer: int, edits: Edits, protocol: Protocol
) -> Iterator[Result]:
    def log_likelihoods(edited: Edits | None, chosen: Sequence[MetricQuery]) -> dict[MetricQuery, float]:
        pairs = [Query(query.edit, query.prompt, query.answers[0]) for query in chosen]
        scores = score(language_model, split_layer, pairs, edited, chat=protocol is Protocol.CHAT)
        return {query: scored.log_likelihood for query, scored in zip(chosen, scores, strict=True)}

    after = log_likelihoods(edits, queries)
    before = log_likelihoods(None, [query for query in queries if query.before])
    for query in queries:
        yield Result(query, after[query], before.get(query, math.nan))


def _texts(
    queries: Sequence[MetricQuery], language_model: LanguageModel, split_layer: int, edits: Edits, protocol: Protocol
) -> Iterator[Result]:
    prompts, rows = [query.prompt for query in queries], [query.edit for query in queries]
    texts = generate(
        language_model, prompts, edits=edits, rows=rows, chat=protocol is Protocol.CHAT, new_tokens=TEXT_TOKENS
    )
    for query, text in zip(queries, texts, strict=True):
        yield Result(query, text=text)
