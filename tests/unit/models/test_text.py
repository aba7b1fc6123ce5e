"""From text to tokens: joining, labelling, padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from instructedit.errors import DataError
from instructedit.models.text import Encoded, TextEncoder, TokenBatch, join_prompt_and_target, pad

PAD = 999


@st.composite
def encoded(draw: st.DrawFn) -> Encoded:
    ids = draw(st.lists(st.integers(0, 300), min_size=1, max_size=12))
    return Encoded(tuple(ids), draw(st.integers(1, len(ids))))


words = st.text(st.sampled_from("abcXYZ 0é日🙂.?'-"), min_size=1, max_size=12).filter(str.strip)


@pytest.mark.parametrize(
    ("prompt", "target"), [("a b", "c"), ("a b ", "c"), ("a b", " c"), ("a b \n", "  c "), ("a b\t", "c\n")]
)
def test_join_leaves_one_space_and_gives_it_to_the_target(prompt: str, target: str) -> None:
    assert join_prompt_and_target(prompt, target) == ("a b", " c")


def test_join_keeps_the_inside() -> None:
    assert join_prompt_and_target(" a  b", "c  d") == (" a  b", " c  d")


def relative(batch: TokenBatch) -> list[tuple[list[int], list[int]]]:
    """Each row's real tokens, and which of them predict a target token."""
    rows = []
    for row in range(len(batch)):
        real = batch.mask[row]
        rows.append((batch.ids[row][real].tolist(), batch.predicts[row][real].nonzero().flatten().tolist()))
    return rows


@given(st.lists(encoded(), min_size=1, max_size=6))
def test_padding_side_changes_nothing_but_places(queries: list[Encoded]) -> None:
    right, left = (pad(queries, PAD, side) for side in ("right", "left"))
    assert torch.equal(right.labels, left.labels)
    assert torch.equal(right.rows, left.rows)
    assert torch.equal(right.predicts.sum(1), left.predicts.sum(1))
    assert relative(right) == relative(left)
    assert torch.equal(right.positions[right.predicts], left.positions[left.predicts])


@given(st.lists(encoded(), min_size=1, max_size=6), st.sampled_from(["right", "left"]))
def test_labels_are_the_targets_and_follow_what_predicts_them(queries: list[Encoded], side: str) -> None:
    batch = pad(queries, PAD, side)
    assert batch.ids.shape == (len(queries), max(len(query.ids) for query in queries))
    assert torch.equal(batch.ids == PAD, ~batch.mask)
    assert batch.labels.tolist() == [i for query in queries for i in query.ids[query.target_start :]]
    assert batch.rows.tolist() == [row for row, query in enumerate(queries) for _ in query.ids[query.target_start :]]
    following = torch.roll(batch.ids, -1, dims=1)
    assert torch.equal(following[batch.predicts], batch.labels)
    assert [ids for ids, _ in relative(batch)] == [list(query.ids) for query in queries]
    for query, real, positions in zip(queries, batch.mask, batch.positions, strict=True):
        assert positions[real].tolist() == list(range(len(query.ids)))


@given(words, words)
def test_target_tokens_spell_the_target(tokenizer: PreTrainedTokenizerFast, prompt: str, target: str) -> None:
    encoder = TextEncoder(tokenizer, 512)
    query = encoder.encode_pair(prompt, target)
    assert tokenizer.decode(query.ids[query.target_start :]) == " " + target.strip()
    assert tokenizer.decode(query.ids[: query.target_start]) == prompt.rstrip()
    assert query.ids[: query.target_start] == encoder.encode_prompt(prompt).ids


class SlowTokenizer:
    """A tokenizer without offsets: one token a character."""

    is_fast = False
    pad_token_id = None
    eos_token_id = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_tokenizer_without_offsets_is_labelled_alike() -> None:
    query = TextEncoder(SlowTokenizer(), 512).encode_pair("ab ", "cd")  # type: ignore[arg-type]
    assert query.ids == tuple(map(ord, "ab cd"))
    assert query.target_start == 2


def test_padding_token_falls_back(tokenizer: PreTrainedTokenizerFast) -> None:
    assert TextEncoder(tokenizer, 512).pad_id == tokenizer.pad_token_id
    assert TextEncoder(SlowTokenizer(), 512).pad_id == 0  # type: ignore[arg-type]


def test_prompt_alone_has_no_target(tokenizer: PreTrainedTokenizerFast) -> None:
    query = TextEncoder(tokenizer, 512).encode_prompt("Lena was born in ")
    assert query.target_start == len(query.ids)
    assert len(pad([query], 0).labels) == 0


def test_too_long_prompt_is_an_error_that_quotes_it(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = TextEncoder(tokenizer, 6)
    with pytest.raises(
        DataError, match=r"field prompt: \d+ tokens, but the model takes at most 6: shorten 'The lighthouse"
    ):
        encoder.encode_pair("The lighthouse stands in the harbour of", "Oston")
    assert len(encoder.encode_pair("a", "b").ids) <= 6


@pytest.mark.parametrize("prompt", ["", "   "])
def test_blank_prompt_is_an_error(tokenizer: PreTrainedTokenizerFast, prompt: str) -> None:
    with pytest.raises(DataError, match="field prompt"):
        TextEncoder(tokenizer, 512).encode_pair(prompt, "Oston")


def test_blank_target_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="field target"):
        TextEncoder(tokenizer, 512).encode_pair("Lena was born in", "  ")


def test_same_query_is_tokenised_once(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = TextEncoder(tokenizer, 512)
    assert encoder.encode_pair("a ", "b") is encoder.encode_pair("a", " b")
    assert encoder.encode_pair("a", "b") != encoder.encode_pair("a", "c")


def test_the_memory_of_texts_is_bounded_and_the_least_recent_goes_first(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructedit.models.text.MAX_CACHED_TEXTS", 3)
    text = TextEncoder(tokenizer, 512)
    first = text.encode_prompt("one")
    for prompt in ("two", "one", "three", "four", "one", "five"):
        text.encode_prompt(prompt)
    assert len(text._cache) == 3
    assert text.encode_prompt("one") is first
