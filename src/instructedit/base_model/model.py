"""A small GPT-2 and its tokenizer, with random weights, and the optimisers of its matrices and other parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from instructedit.base_model.corpus import Document
from instructedit.base_model.recipe import BaseModelSettings

END = "<|endoftext|>"


def train_tokenizer(documents: Sequence[Document], vocabulary: int, positions: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the documents, with one special token that ends a text and pads.

    Args:
        documents: Whose text is tokenised.
        vocabulary: Number of tokens.
        positions: Longest sequence, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join((d.prompt, d.answer)) for d in documents), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=positions)


def new_model(settings: BaseModelSettings, end: int) -> GPT2LMHeadModel:
    """Return a randomly initialised GPT-2 with tied embeddings, whose texts end with the token ``end``."""
    config = GPT2Config(
        vocab_size=settings.vocabulary,
        n_positions=settings.positions,
        n_embd=settings.width,
        n_layer=settings.blocks,
        n_head=settings.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    # For rows of a few dozen tokens, plain attention is faster on a CPU than the fused kernel's backward pass.
    config._attn_implementation = "eager"
    torch.manual_seed(settings.seed)
    return GPT2LMHeadModel(config)


def answer_loss(model: GPT2LMHeadModel, ids: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
    """Return the mean cross-entropy over the labelled positions; logits are computed at no others.

    Args:
        model: The model.
        ids: (rows, length) tokens.
        labels: (rows, length) next tokens; -100 where there is no loss.
        positions: (rows, length) position of each token.
    """
    hidden = model.transformer(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    labelled = labels != -100
    return functional.cross_entropy(model.lm_head(hidden[labelled]), labels[labelled])


def make_optimizers(model: GPT2LMHeadModel, settings: BaseModelSettings) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the blocks, and AdamW for embeddings, norms and biases."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(
            matrices,
            lr=settings.matrix_learning_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
