"""The text encoder: a small T5 (Raffel et al. 2020) with its own tokenizer, trained with the language model."""

from __future__ import annotations

import copy
import io
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch

from training.captions import caption
from training.plan import Plan
from training.songs import draw_song

CAPTIONS = 20_000  # for training the tokenizer


def tokenizer(plan: Plan) -> Any:
    """Train the tokenizer on captions. It contains every ASCII character, so that it can spell any word."""
    rng = np.random.default_rng([plan.seed, 20])
    lines = [caption(draw_song(rng), rng).text for _ in range(CAPTIONS)]
    return unigram(lines, plan.text_vocab, string.ascii_letters + string.digits + string.punctuation)


def unigram(lines: Sequence[str], size: int, characters: str = "") -> Any:
    """Train a unigram tokenizer (Kudo 2018) on lines, with at most `size` pieces including the characters."""
    from transformers import T5Tokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=size,
        required_chars=characters,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        num_threads=1,  # for reproducible pieces
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    return T5Tokenizer(vocab=vocab, extra_ids=0)


def encoder(plan: Plan, vocabulary: int) -> Any:
    """Create the untrained encoder."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(plan.seed)
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=plan.text_dim,
            d_kv=plan.text_dim // plan.text_heads,
            d_ff=plan.text_hidden,
            num_layers=plan.text_layers,
            num_heads=plan.text_heads,
            dropout_rate=0.0,
        )
    )


def save(tokenizer: Any, encoder: Any, folder: Path) -> None:
    """Write tokenizer and encoder in half precision, in the format that `musicgen_bento.checkpoint` reads."""
    tokenizer.save_pretrained(folder)
    copy.deepcopy(encoder).half().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
