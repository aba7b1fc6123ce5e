"""From an instruction's text to the embedding that conditions the hypernetwork.

Three encoders: a small one trained with the editor, the base model's own states, and any sentence encoder of
the user's. Each ends in tanh, so an embedding is bounded; the embedding of no instruction is zero, which leaves the
hypernetwork as it is without conditioning.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from instructedit.errors import EditorError
from instructedit.models.checkpoint import wrap_load_errors
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad

logger = logging.getLogger(__name__)

#: Memory for the states of instructions while an encoder is trained on them.
_CACHE_BYTES = 2_000_000_000
#: So many embeddings of texts are kept after training.
_KNOWN_TEXTS = 1000


def warn_of_long(text: str, tokens: int, limit: int) -> None:
    """Warn that an instruction is truncated when an edit is made: its end may be what decides ("and leave the others").

    Where gradients are recorded the editor is being trained, on texts of which another tokenizer may make more tokens
    than ours; there it is truncated without a warning.
    """
    if tokens > limit and not torch.is_grad_enabled():
        logger.warning(
            "the instruction has %d tokens, but this editor uses only the first %d; shorten %r",
            tokens,
            limit,
            text[:60] + "…",
        )


def mean_states(language_model: LanguageModel, split_layer: int, texts: Sequence[str]) -> Tensor:
    """Return the means over each text's tokens of the base model's states before block ``split_layer``.

    Returns:
        (texts, hidden), in float32.
    """
    batch = pad([language_model.text.encode_prompt(text) for text in texts], language_model.text.pad_id)
    state = language_model.split(split_layer).trunk(batch.to(language_model.device))
    hidden, mask = state.hidden.float(), state.batch.mask[..., None]
    mean: Tensor = (hidden * mask).sum(1) / mask.sum(1)
    return mean


class InstructionEncoder(nn.Module, ABC):
    """From instruction texts to embeddings (texts, width).

    Attributes:
        width: of an embedding.
    """

    width: int

    @abstractmethod
    def encode(self, language_model: LanguageModel, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (texts, width) of non-empty texts; a long text is truncated, :func:`warn_of_long`."""

    def cached(self, language_model: LanguageModel) -> AbstractContextManager[object]:
        """Return a context for reading thousands of texts: a frozen part of the encoder reads equal ones once."""
        return nullcontext()

    def forward(self, language_model: LanguageModel, texts: Sequence[str | None]) -> Tensor:
        """Return the embeddings (texts, width), zero for a missing text; equal texts are encoded once."""
        device = next(self.parameters()).device
        distinct = sorted({text for text in texts if text})
        embeddings = torch.zeros(len(texts), self.width, device=device)
        if not distinct:
            return embeddings
        encoded = self.encode(language_model, distinct)
        position = {text: index for index, text in enumerate(distinct)}
        present = [index for index, text in enumerate(texts) if text]
        chosen = encoded[[position[text] for text in texts if text]]
        return embeddings.index_copy(0, torch.tensor(present, device=device), chosen)


class TrainedEncoder(InstructionEncoder):
    """A small Transformer over the base model's tokens, trained with the editor.

    Token ids are folded into ``buckets`` embeddings, so that a large vocabulary costs no more than a small one.
    A learned query attends over the states, since in a mean one decisive word ("not") would hardly count.

    Args:
        width: of an embedding.
        buckets: how many token embeddings there are.
        hidden: width of the Transformer's states.
        layers: of the Transformer.
        heads: of its attention, and of the attention that pools its states.
        length: tokens of a text that are read.
    """

    def __init__(
        self, width: int, *, buckets: int = 8192, hidden: int = 96, layers: int = 2, heads: int = 4, length: int = 160
    ) -> None:
        super().__init__()
        self.width = width
        self.length = length
        self.tokens = nn.Embedding(buckets, hidden)
        self.positions = nn.Embedding(length, hidden)
        nn.init.normal_(self.tokens.weight, std=0.3)
        nn.init.normal_(self.positions.weight, std=0.05)
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                hidden, heads, 2 * hidden, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
            ),
            layers,
            enable_nested_tensor=False,
        )
        self.norm = nn.LayerNorm(hidden)
        self.attention = nn.Linear(hidden, heads)
        self.out = nn.Linear(hidden * heads, width)
        self.token_dropout = 0.1

    def encode(self, language_model: LanguageModel, texts: Sequence[str]) -> Tensor:
        """See :meth:`InstructionEncoder.encode`."""
        encoded = language_model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        for text, tokens in zip(texts, encoded, strict=True):
            warn_of_long(text, len(tokens), self.length)
        length = min(self.length, max(len(ids) for ids in encoded))
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        for row, all_tokens in enumerate(encoded):
            tokens = all_tokens[:length]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        ids, mask = ids.to(self.out.weight.device), mask.to(self.out.weight.device)
        x = self.tokens(ids % self.tokens.num_embeddings)
        if self.training:
            x = x * (torch.rand(ids.shape, device=x.device) >= self.token_dropout)[..., None]
        x = self.norm(self.layers(x + self.positions.weight[:length], src_key_padding_mask=~mask))
        weights = self.attention(x).masked_fill(~mask[..., None], -torch.inf).softmax(1)  # (texts, length, heads)
        pooled = torch.einsum("nth,ntd->nhd", weights, x).flatten(1)
        return torch.tanh(self.out(pooled))


class BaseStateEncoder(InstructionEncoder):
    """The base model's hidden states in the middle of its depth, pooled by a learned attention over the tokens.

    A pretrained model understands an instruction better than an encoder trained on instructions alone, and best in
    the middle: its first blocks know words, its last ones the next token. Several heads attend over the
    tokens, each to another part of the text, and a small network maps what they read to the embedding.

    Args:
        width: of an embedding.
        hidden: width of the base model's states.
        block: the states before this block are read.
        heads: of the attention.
        head_width: what a head reads from a token.
    """

    def __init__(self, width: int, *, hidden: int, block: int, heads: int = 8, head_width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.block = block
        self.heads = heads
        self.norm = nn.LayerNorm(hidden)
        self.attention = nn.Linear(hidden, heads)
        self.values = nn.Linear(hidden, heads * head_width)
        self.middle = nn.Linear(heads * head_width, 2 * width)
        self.out = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.1)
        self._known: dict[str, Tensor] = {}
        self._known_for: tuple[object, ...] = ()
        self._together = False

    @contextmanager
    def cached(self, language_model: LanguageModel) -> Iterator[None]:
        """See :meth:`InstructionEncoder.cached`; the texts of a call are read in one batch, which is faster."""
        self._together = True
        try:
            with language_model.cache_trunk(self.block, memory=_CACHE_BYTES):
                yield
        finally:
            self._together = False

    def encode(self, language_model: LanguageModel, texts: Sequence[str]) -> Tensor:
        """See :meth:`InstructionEncoder.encode`.

        Outside training and :meth:`cached` each text is encoded by itself, once: the same few instructions come again
        and again, and an edit does not depend on the others of its batch.
        """
        if self.training or torch.is_grad_enabled() or self._together:
            return self._encode(language_model, texts)
        known_for = (language_model.fingerprint, *(parameter._version for parameter in self.parameters()))
        if known_for != self._known_for or len(self._known) > _KNOWN_TEXTS:
            self._known, self._known_for = {}, known_for
        for text in texts:
            if text not in self._known:
                self._known[text] = self._encode(language_model, [text])[0]
        return torch.stack([self._known[text].to(self.out.weight) for text in texts])

    def _encode(self, language_model: LanguageModel, texts: Sequence[str]) -> Tensor:
        batch = pad([language_model.text.encode_prompt(text) for text in texts], language_model.text.pad_id)
        state = language_model.split(self.block).trunk(batch.to(language_model.device))
        mask = state.batch.mask[..., None]
        x = self.dropout(self.norm(state.hidden.float()))  # (texts, length, hidden)
        weights = self.attention(x).masked_fill(~mask, -torch.inf).softmax(1)  # (texts, length, heads)
        values = self.values(x).unflatten(-1, (self.heads, -1))  # (texts, length, heads, head_width)
        pooled = torch.einsum("nth,nthd->nhd", weights, values).flatten(1)
        return torch.tanh(self.out(functional.gelu(self.middle(self.dropout(pooled)))))


class SentenceEncoder(InstructionEncoder):
    """Any Hugging Face encoder of the user's, frozen, mean-pooled, through one trained linear map.

    Args:
        width: of an embedding.
        source: folder or hub id of the encoder; it is loaded again with the editor, not stored in it.
    """

    def __init__(self, width: int, *, source: str) -> None:
        super().__init__()
        self.width = width
        with wrap_load_errors(
            f"the sentence encoder {source}", EditorError, "Give a folder or hub id with safetensors and a tokenizer."
        ):
            self._tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            # A model cannot be loaded onto the meta device, on which an editor is built to count its parameters.
            with torch.device("cpu"):
                model = AutoModel.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
            model = model.eval().requires_grad_(False)
        positions = getattr(model.config, "max_position_embeddings", None)
        self.length = min(self._tokenizer.model_max_length, positions or 1_000_000)
        # In a tuple, so that it is no submodule: it is the user's, neither trained nor saved here.
        self._frozen = (model,)
        self.out = nn.Linear(int(model.config.hidden_size), width)

    @torch.no_grad()
    def _pool(self, texts: Sequence[str]) -> Tensor:
        """Return the encoder's normalised mean states, (texts, hidden)."""
        for text, tokens in zip(texts, self._tokenizer(list(texts))["input_ids"], strict=True):
            warn_of_long(text, len(tokens), self.length)
        inputs = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        )
        hidden = self._frozen[0](**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        scaled: Tensor = torch.nn.functional.normalize(mean, dim=-1) * mean.shape[-1] ** 0.5
        return scaled

    def encode(self, language_model: LanguageModel, texts: Sequence[str]) -> Tensor:
        """See :meth:`InstructionEncoder.encode`."""
        return torch.tanh(self.out(self._pool(texts).to(self.out.weight.device)))
