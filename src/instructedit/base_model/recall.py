"""Recall of a base model: the share of documents that it completes exactly."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from instructedit.base_model.corpus import Corpus, Document
from instructedit.data.facts import Fact
from instructedit.models.text import TextEncoder, pad

RECALL_SAMPLE = 2000
RELATION_SAMPLE = 200
BATCH = 256


def recall_samples(corpus: Corpus, seed: int = 5) -> dict[str, list[Document]]:
    """Return documents to measure recall on: facts as statements, as questions, and in the data sets' own words."""
    rng = random.Random(seed)
    facts = rng.sample(list(corpus.facts), min(RECALL_SAMPLE, len(corpus.facts)))
    groups = rng.sample(list(corpus.true_answers), min(RECALL_SAMPLE, len(corpus.true_answers)))
    return {**_in_both_forms(facts, rng), "own_words": [rng.choice(group) for group in groups]}


def _in_both_forms(facts: Sequence[Fact], rng: random.Random) -> dict[str, list[Document]]:
    return {
        "statement": [Document(rng.choice(fact.statements()), fact.object) for fact in facts],
        "question": [Document(rng.choice(fact.questions()), fact.object) for fact in facts],
    }


def recall_by_kind(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, samples: Mapping[str, Sequence[Document]]
) -> dict[str, float]:
    """Return recall by kind of query, of the kinds that there are documents of."""
    return {name: round(recall(model, tokenizer, documents), 4) for name, documents in samples.items() if documents}


def recall_by_relation(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, facts: Sequence[Fact], seed: int = 5
) -> dict[str, dict[str, float]]:
    """Return recall by relation, as statements and as questions; relations in the order of their number of facts."""
    relations: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        relations[fact.relation].append(fact)
    rng = random.Random(seed)
    table: dict[str, dict[str, float]] = {}
    for relation, known in sorted(relations.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        sample = rng.sample(known, min(RELATION_SAMPLE, len(known)))
        recalls = recall_by_kind(model, tokenizer, _in_both_forms(sample, rng))
        table[relation] = {"facts": len(known), "sample": len(sample), **recalls}
    return table


@torch.no_grad()
def recall(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> float:
    """Return the share of documents whose whole answer is the model's first choice, token by token."""
    text = TextEncoder(tokenizer, model.config.n_positions)
    right = 0
    for start in range(0, len(documents), BATCH):
        queries = [text.encode_pair(d.prompt, d.answer) for d in documents[start : start + BATCH]]
        batch = pad(queries, text.pad_id)
        hidden = model.transformer(input_ids=batch.ids, use_cache=False).last_hidden_state
        hits = model.lm_head(hidden[batch.predicts]).argmax(-1) == batch.labels
        wrong_rows = batch.rows[~hits].unique()
        right += len(queries) - len(wrong_rows)
    return right / len(documents)
