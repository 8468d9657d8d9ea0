"""Keys and values of one clip's self-attention in 8 bits, with attention straight over them. For a CPU.

Each step of each clip reads its whole past, so a quarter of the bytes is nearly a quarter of the time. As in KIVI (Liu
et al. 2024, arXiv:2402.02750) values are quantised position by position, since softmax weights them so, and keys
channel by channel in blocks of positions, since some channels of keys are far larger than others; the keys that do not
fill a block yet stay in float32.

Both products of attention are then weighted sums of rows of bytes, which FBGEMM has as an embedding bag: the values of
a head are summed with its attention weights, and a block of keys, channel by channel, with the query. Rows carry their
own scale and minimum. A bag is the work of one thread, so a clip's numbers are the same in any company.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from musicgen_bento.lm.kv_cache.dense import causal_mask

BLOCK = 64  # positions that a channel of keys shares a scale over
SCALE = 8  # bytes of a row's scale and minimum, float32 each

_pack: Any = torch.ops.quantized.embedding_bag_byte_prepack
_unpack: Any = torch.ops.quantized.embedding_bag_byte_unpack


class Int8KVCache:
    """See `KVCache`. The memory is taken page by page, as it is filled.

    Args:
        layers, rows, heads, positions, head_dim: sizes; a clip has one row, or two with guidance.

    Attributes:
        length: positions filled already.
    """

    def __init__(self, layers: int, rows: int, heads: int, positions: int, head_dim: int) -> None:
        self.length = 0
        self._heads, self._dim = rows * heads, head_dim  # of both rows: nothing here tells one from the other
        self._positions = positions
        blocks = positions // BLOCK
        self._keys = torch.empty(layers, blocks, self._heads * head_dim, BLOCK + SCALE, dtype=torch.uint8)
        self._values = torch.empty(layers, self._heads, positions, head_dim + SCALE, dtype=torch.uint8)
        self._recent = torch.empty(layers, self._heads, BLOCK, head_dim)  # keys behind the last full block
        self._bags: tuple[int, tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    @staticmethod
    def num_bytes(layers: int, rows: int, heads: int, positions: int, head_dim: int) -> int:
        """What one of these sizes takes when it is full, without the indices of a step (less than a hundredth)."""
        keys = positions // BLOCK * head_dim * (BLOCK + SCALE) + BLOCK * head_dim * 4
        return layers * rows * heads * (keys + positions * (head_dim + SCALE))

    def attend(self, layer: int, query: Tensor, both: Tensor) -> Tensor:
        """See `KVCache.attend`."""
        rows, heads, positions, dim = query.shape
        query = query.reshape(self._heads, positions, dim)
        heard = self._one(layer, query, both) if positions == 1 else self._many(layer, query, both)
        return heard.view(rows, heads, positions, dim)

    def append(self, layer: int, both: Tensor) -> None:
        """See `KVCache.remember`."""
        keys, values = self._split(both)
        positions = keys.shape[1]
        packed = _pack(values.reshape(-1, self._dim)).view(self._heads, positions, -1)
        self._values[layer, :, self.length : self.length + positions] = packed
        blocks, rest = divmod(self.length, BLOCK)
        while positions:
            count = min(positions, BLOCK - rest)
            self._recent[layer, :, rest : rest + count] = keys[:, :count]
            keys, positions, rest = keys[:, count:], positions - count, rest + count
            if rest == BLOCK:
                channels = self._recent[layer].transpose(1, 2).reshape(-1, BLOCK)
                self._keys[layer, blocks] = _pack(channels)
                blocks, rest = blocks + 1, 0

    def advance(self, positions: int) -> None:
        """See `KVCache.advance`."""
        self.length += positions

    def reset(self) -> None:
        """See `KVCache.reset`."""
        self.length = 0

    def _one(self, layer: int, query: Tensor, both: Tensor) -> Tensor:
        """One position [R, 1, D]."""
        self.append(layer, both)
        blocks, rest = divmod(self.length + 1, BLOCK)
        of_keys, of_values = self._places()
        query = query * self._dim**-0.5
        scores = torch.bmm(query, self._recent[layer, :, :rest].transpose(1, 2))[:, 0]
        if blocks:
            table, again = self._keys[layer].view(-1, BLOCK + SCALE), query.view(1, -1).expand(blocks, -1).reshape(-1)
            full = _sum(table, *of_keys, again).view(blocks, self._heads, BLOCK)
            scores = torch.cat([full.transpose(0, 1).reshape(self._heads, -1), scores], dim=1)
        weights = scores.softmax(dim=1)
        table = self._values[layer].view(-1, self._dim + SCALE)
        return _sum(table, *of_values, weights.flatten())[:, None]

    def _many(self, layer: int, query: Tensor, both: Tensor) -> Tensor:
        """Several positions at once, [R, T, D]: the past is unpacked for them."""
        keys, values = self._split(both)
        blocks, rest = divmod(self.length, BLOCK)
        past = _unpack(self._keys[layer, :blocks].reshape(-1, BLOCK + SCALE)) if blocks else keys.new_empty(0)
        past = past.view(blocks, self._heads, self._dim, BLOCK).permute(1, 0, 3, 2).reshape(self._heads, -1, self._dim)
        all_keys = torch.cat([past, self._recent[layer, :, :rest], keys], dim=1)
        table = self._values[layer, :, : self.length].reshape(-1, self._dim + SCALE)
        past = _unpack(table) if self.length else values.new_empty(0)
        all_values = torch.cat([past.view(self._heads, -1, self._dim), values], dim=1)
        self.append(layer, both)
        return F.scaled_dot_product_attention(
            query[None],
            all_keys[None],
            all_values[None],
            attn_mask=causal_mask(query.shape[1], all_keys.shape[1], "cpu"),
        )[0]

    def _split(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [2, rows, H, T, D] → [R, T, D] each."""
        keys, values = both.reshape(2, self._heads, -1, self._dim)
        return keys, values

    def _places(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Rows of the bags of keys and of values, and where each bag begins; the same for all layers of a step."""
        filled = self.length + 1
        if self._bags is None or self._bags[0] != filled:
            channels = filled // BLOCK * self._heads * self._dim
            of_keys = _range(channels), _range(channels + 1, self._dim)
            first = _range(self._heads * self._positions, self._positions)
            rows = (first[:, None] + _range(filled)).flatten()
            self._bags = filled, of_keys, (rows, _range(len(rows) + 1, filled))
        return self._bags[1], self._bags[2]


def _range(end: int, step: int = 1) -> Tensor:
    return torch.arange(0, end, step, dtype=torch.int32)


def _sum(table: Tensor, rows: Tensor, begins: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of the rows of each bag."""
    bags: Any = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
    out: Tensor = bags(table, rows, begins, per_sample_weights=weights, include_last_offset=True)
    return out
