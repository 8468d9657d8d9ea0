"""Encodes a prompt into the embeddings that the language model attends to."""

from __future__ import annotations

from typing import Any

import emoji
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicgen_bento.checkpoint.loading import Checkpoint
from musicgen_bento.errors import InvalidRequest
from musicgen_bento.model_catalog import MAX_PROMPT_TOKENS


class TextConditioner:
    """T5, and the projection of its output to the language model's width.

    Each prompt is encoded alone, at its own length. T5 rounds differently in a padded batch, and the audio of a request
    must not depend on other requests.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer: Any = checkpoint.tokenizer
        self._encoder: nn.Module = checkpoint.text_encoder
        self._weight = checkpoint.weights.text_weight
        self._bias = checkpoint.weights.text_bias

    def tokenize(self, prompt: str) -> Tensor:
        """Split a prompt into token ids [1, L], with the end token. Emoji become words: T5 has no tokens for them.

        Raises:
            InvalidRequest: the prompt has more than 512 tokens.
        """
        ids: Tensor = self._tokenizer([spell_emoji(prompt)], return_tensors="pt")["input_ids"]
        if ids.shape[1] > MAX_PROMPT_TOKENS:
            raise InvalidRequest(
                f"The prompt is {ids.shape[1]} tokens long.",
                hint=f"Shorten it: T5 reads at most {MAX_PROMPT_TOKENS} tokens.",
                field="prompt",
            )
        return ids

    @torch.inference_mode()
    def encode(self, ids: Tensor) -> Tensor:
        """Encode token ids [1, L] as embeddings [L, dim] in the language model's dtype."""
        hidden: Tensor = self._encoder(input_ids=ids.to(self._weight.device)).last_hidden_state[0]
        return F.linear(hidden.to(self._weight.dtype), self._weight, self._bias)


def spell_emoji(text: str) -> str:
    """Replace each emoji by its name between spaces: the saxophone becomes ` saxophone `."""
    return emoji.replace_emoji(text, lambda _, data: " " + data["en"].strip(":").replace("_", " ") + " ")
