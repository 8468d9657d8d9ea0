"""A KV cache in one float tensor, filled from the front."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class DenseKVCache:
    """Keys and values of one sequence, in a tensor of fixed size.

    Args:
        kv: memory for keys and values, [layers, 2, rows, H, positions, D].
        length: the positions that are filled already.
    """

    def __init__(self, kv: Tensor, length: int = 0) -> None:
        self.kv = kv
        self.length = length

    def attend(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        """Append the keys and values of T positions, and attend causally from these positions.

        `advance` moves `length` on, once for all layers.

        Args:
            layer: the index of the layer.
            query: queries of the T positions, [rows, H, T, D].
            kv: their keys and values, [2, rows, H, T, D].

        Returns:
            The attention output, [rows, H, T, D].
        """
        self.append(layer, kv)
        end = self.length + query.shape[2]
        keys, values = self.kv[layer, :, :, :, :end]
        mask = causal_mask(query.shape[2], end, query.device)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)

    def append(self, layer: int, kv: Tensor) -> None:
        """Store the keys and values of a layer's next T positions, [2, rows, H, T, D]."""
        self.kv[layer, :, :, :, self.length : self.length + kv.shape[3]] = kv

    def advance(self, positions: int) -> None:
        """Count the positions that all layers have stored."""
        self.length += positions

    def reset(self) -> None:
        """Continue at position 0."""
        self.length = 0


def causal_mask(positions: int, length: int, device: torch.device | str) -> Tensor | None:
    """The attention mask [T, length] of the last T of `length` positions; None for T = 1, which needs no mask."""
    if positions == 1:
        return None
    full = torch.ones(positions, length, dtype=torch.bool, device=device)
    return full.tril(diagonal=length - positions)
