"""Loads the text encoder, T5, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from musicgen_bento.checkpoint.source import Source
from musicgen_bento.checkpoint.transformers_lock import TRANSFORMERS_LOCK


def build_meta_text_encoder(source: Source, folder: Path, width: int) -> nn.Module:
    """Build T5's encoder from its configuration, without weights, on the meta device.

    Args:
        source: the model, for error messages.
        folder: T5's folder.
        width: size of T5's embeddings that the language model needs.

    Raises:
        InvalidCheckpoint: the configuration is not a T5's, or has another width.
    """
    from transformers import T5Config, T5EncoderModel

    try:
        config = T5Config.from_pretrained(folder)
        with TRANSFORMERS_LOCK, torch.device("meta"):
            model: Any = T5EncoderModel(config)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise source.checkpoint_error("t5", "cannot be read as a T5 encoder") from error
    if config.d_model != width:
        raise source.checkpoint_error("t5", f"has width {config.d_model}, but the language model needs {width}")
    encoder: nn.Module = model
    return encoder


def load_text_encoder(source: Source, folder: Path, device: torch.device) -> tuple[Any, nn.Module]:
    """Load the tokenizer, and T5's encoder in float32.

    Args:
        source: the model, for error messages.
        folder: T5's folder.
        device: device of the encoder.

    Raises:
        InvalidCheckpoint: the files cannot be read.
    """
    from transformers import T5EncoderModel, T5Tokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with TRANSFORMERS_LOCK:
            tokenizer = T5Tokenizer.from_pretrained(folder)
            model: Any = T5EncoderModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise source.checkpoint_error("t5", "cannot be read as a T5 encoder") from error
    return tokenizer, model.eval().requires_grad_(False).to(device)
