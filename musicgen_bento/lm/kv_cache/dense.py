"""Keys and values of one clip's self-attention: static, filled from the front."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class DenseKVCache:
    """Room for so many positions; one clip's.

    Args:
        both: keys and values, [layers, 2, rows, H, positions, D], to be filled from the front.
        length: positions filled already.
    """

    def __init__(self, both: Tensor, length: int = 0) -> None:
        self.kv = both
        self.length = length

    def attend(self, layer: int, query: Tensor, both: Tensor) -> Tensor:
        """Remember a layer's next positions, and attend from them to everything up to them.

        `length` moves on once for all layers, by `advance`.

        Args:
            layer: its index.
            query: of T positions, [rows, H, T, D].
            both: their keys and values, [2, rows, H, T, D].

        Returns:
            What they find, [rows, H, T, D].
        """
        self.append(layer, both)
        end = self.length + query.shape[2]
        keys, values = self.kv[layer, :, :, :, :end]
        mask = causal_mask(query.shape[2], end, query.device)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)

    def append(self, layer: int, both: Tensor) -> None:
        """Keys and values of a layer's next T positions, [2, rows, H, T, D]."""
        self.kv[layer, :, :, :, self.length : self.length + both.shape[3]] = both

    def advance(self, positions: int) -> None:
        """The positions just written count."""
        self.length += positions

    def reset(self) -> None:
        """Start over at position 0."""
        self.length = 0


def causal_mask(positions: int, filled: int, device: torch.device | str) -> Tensor | None:
    """A mask [T, filled] for the last T positions of those filled; one sees them all."""
    if positions == 1:
        return None
    full = torch.ones(positions, filled, dtype=torch.bool, device=device)
    return full.tril(diagonal=filled - positions)
