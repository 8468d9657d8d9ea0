"""Keys and values of one clip's self-attention: static, filled from the front."""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """Room for so many positions; one clip's.

    Args:
        both: keys and values, [layers, 2, rows, H, positions, D], to be filled from the front.
        length: positions filled already.
    """

    def __init__(self, both: Tensor, length: int = 0) -> None:
        self.both = both
        self.length = length

    def extend(self, layer: int, both: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values of a layer's next positions, [2, rows, H, T, D], and give all up to them.

        `length` moves on once for all layers, by `advance`.
        """
        end = self.length + both.shape[3]
        filled = self.both[layer, :, :, :, :end]
        filled[:, :, :, self.length :] = both
        keys, values = filled
        return keys, values

    def advance(self, positions: int) -> None:
        """The positions just written count."""
        self.length += positions

    def reset(self) -> None:
        """Start over at position 0."""
        self.length = 0
