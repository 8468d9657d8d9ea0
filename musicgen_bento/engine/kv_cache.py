"""Keys and values of one clip's self-attention: static, filled from the front."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Room for `capacity` positions; allocated for one clip and given back with it.

    The system hands out the pages as they are written, so a clip takes memory for what it has filled.

    Args:
        layers: of the model.
        rows: 1, or 2 with classifier-free guidance.
        heads: H.
        capacity: most positions.
        head_dim: D.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._both = torch.empty((layers, 2, rows, heads, capacity, head_dim), dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer: int, both: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values of a layer's next positions, [2, rows, H, T, D], and give all up to them.

        `length` moves on once for all layers, by `advance`.
        """
        end = self.length + both.shape[3]
        filled = self._both[layer, :, :, :, :end]
        filled[:, :, :, self.length :] = both
        keys, values = filled
        return keys, values

    def advance(self, positions: int) -> None:
        """The positions just written count."""
        self.length += positions

    def reset(self) -> None:
        """Start over at position 0."""
        self.length = 0
