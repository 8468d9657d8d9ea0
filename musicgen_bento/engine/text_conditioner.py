"""A prompt to what the language model hears of it."""

from __future__ import annotations

from typing import Any

import emoji
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicgen_bento.checkpoint.loading import Checkpoint
from musicgen_bento.errors import InvalidRequest
from musicgen_bento.lm.weights import MAX_PROMPT_TOKENS


class TextConditioner:
    """T5 and the projection to the language model's width.

    A prompt is encoded alone, at its own length: in a padded batch T5 rounds differently, and a clip must not depend
    on who asks beside it.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer: Any = checkpoint.tokenizer
        self._encoder: nn.Module = checkpoint.text_encoder
        self._weight = checkpoint.weights.text_weight
        self._bias = checkpoint.weights.text_bias

    def tokenize(self, prompt: str) -> Tensor:
        """Token ids [1, L], the end token included. Emoji become words: T5 knows none.

        Raises:
            InvalidRequest: more than 512 tokens.
        """
        ids: Tensor = self._tokenizer([spell_emoji(prompt)], return_tensors="pt")["input_ids"]
        if ids.shape[1] > MAX_PROMPT_TOKENS:
            raise InvalidRequest(
                f"The prompt is {ids.shape[1]} tokens long.",
                hint=f"Shorten it: T5 reads at most {MAX_PROMPT_TOKENS}.",
                field="prompt",
            )
        return ids

    @torch.inference_mode()
    def encode(self, ids: Tensor) -> Tensor:
        """Token ids [1, L] → [L, dim] in the language model's dtype."""
        hidden: Tensor = self._encoder(input_ids=ids.to(self._weight.device)).last_hidden_state[0]
        return F.linear(hidden.to(self._weight.dtype), self._weight, self._bias)


def spell_emoji(text: str) -> str:
    """Every emoji by its name, as words: a saxophone's picture becomes ` saxophone `."""
    return emoji.replace_emoji(text, lambda _, data: " " + data["en"].strip(":").replace("_", " ") + " ")
