"""A KV cache in 8 bits with attention directly on the bytes, for torch on a CPU.

Each step of each request reads its whole past, so a quarter of the bytes takes nearly a quarter of the time. As in KIVI
(Liu et al. 2024, arXiv:2402.02750), values are quantized position by position, because softmax weights them so. Keys
are quantized channel by channel in blocks of positions, because some channels of keys are far larger than others. Keys
after the last full block stay in float32.

Both products of attention are then weighted sums of byte rows, which FBGEMM offers as an embedding bag. One bag sums
the values of a head with its attention weights; another sums a block of keys, channel by channel, with the query. Each
row stores its own scale and minimum. One thread computes a bag, so the results are batch-invariant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from musicgen_bento.lm.kv_cache.dense import causal_mask

BLOCK_POSITIONS = 64  # positions that share the scale of a key channel
SCALE_BYTES = 8  # a row's scale and minimum, float32 each

_pack: Any = torch.ops.quantized.embedding_bag_byte_prepack
_unpack: Any = torch.ops.quantized.embedding_bag_byte_unpack


class Int8KVCache:
    """Keys and values of one sequence in 8 bits; the system provides the memory as it is filled.

    Args:
        layers, rows, heads, max_positions, head_dim: sizes; rows is 1, or 2 with classifier-free guidance.

    Attributes:
        length: the positions that are filled already.
    """

    def __init__(self, layers: int, rows: int, heads: int, max_positions: int, head_dim: int) -> None:
        self.length = 0
        self._heads, self._dim = rows * heads, head_dim  # the heads of both rows are treated alike
        self._max_positions = max_positions
        blocks = max_positions // BLOCK_POSITIONS
        self._keys = torch.empty(
            layers, blocks, self._heads * head_dim, BLOCK_POSITIONS + SCALE_BYTES, dtype=torch.uint8
        )
        self._values = torch.empty(layers, self._heads, max_positions, head_dim + SCALE_BYTES, dtype=torch.uint8)
        self._recent = torch.empty(layers, self._heads, BLOCK_POSITIONS, head_dim)  # keys after the last full block
        self._bags: tuple[int, tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    @staticmethod
    def num_bytes(layers: int, rows: int, heads: int, positions: int, head_dim: int) -> int:
        """Bytes of a full cache of these sizes, without the indices of a step (less than a hundredth)."""
        keys = positions // BLOCK_POSITIONS * head_dim * (BLOCK_POSITIONS + SCALE_BYTES)
        recent_keys = BLOCK_POSITIONS * head_dim * 4
        return layers * rows * heads * (keys + recent_keys + positions * (head_dim + SCALE_BYTES))

    def attend(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        """Append T positions and attend from them; see `DenseKVCache.attend`."""
        rows, heads, positions, dim = query.shape
        query = query.reshape(self._heads, positions, dim)
        out = self._attend_one(layer, query, kv) if positions == 1 else self._attend_many(layer, query, kv)
        return out.view(rows, heads, positions, dim)

    def append(self, layer: int, kv: Tensor) -> None:
        """Quantize and store keys and values; see `DenseKVCache.append`."""
        keys, values = self._split(kv)
        positions = keys.shape[1]
        packed = _pack(values.reshape(-1, self._dim)).view(self._heads, positions, -1)
        self._values[layer, :, self.length : self.length + positions] = packed
        blocks, recent = divmod(self.length, BLOCK_POSITIONS)
        while positions:
            count = min(positions, BLOCK_POSITIONS - recent)
            self._recent[layer, :, recent : recent + count] = keys[:, :count]
            keys, positions, recent = keys[:, count:], positions - count, recent + count
            if recent == BLOCK_POSITIONS:
                channels = self._recent[layer].transpose(1, 2).reshape(-1, BLOCK_POSITIONS)
                self._keys[layer, blocks] = _pack(channels)
                blocks, recent = blocks + 1, 0

    def advance(self, positions: int) -> None:
        """Count the positions that all layers have stored."""
        self.length += positions

    def reset(self) -> None:
        """Continue at position 0."""
        self.length = 0

    def _attend_one(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        """Attention of one position [R, 1, D], R = rows * H, on the bytes."""
        self.append(layer, kv)
        blocks, recent = divmod(self.length + 1, BLOCK_POSITIONS)
        key_bags, value_bags = self._bag_indices()
        query = query * self._dim**-0.5
        scores = torch.bmm(query, self._recent[layer, :, :recent].transpose(1, 2))[:, 0]
        if blocks:
            table = self._keys[layer].view(-1, BLOCK_POSITIONS + SCALE_BYTES)
            weights = query.view(1, -1).expand(blocks, -1).reshape(-1)
            full = _weighted_sum(table, *key_bags, weights).view(blocks, self._heads, BLOCK_POSITIONS)
            scores = torch.cat([full.transpose(0, 1).reshape(self._heads, -1), scores], dim=1)
        weights = scores.softmax(dim=1)
        table = self._values[layer].view(-1, self._dim + SCALE_BYTES)
        return _weighted_sum(table, *value_bags, weights.flatten())[:, None]

    def _attend_many(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        """Attention of T positions [R, T, D], on unpacked keys and values."""
        keys, values = self._split(kv)
        blocks, recent = divmod(self.length, BLOCK_POSITIONS)
        past = (
            _unpack(self._keys[layer, :blocks].reshape(-1, BLOCK_POSITIONS + SCALE_BYTES))
            if blocks
            else keys.new_empty(0)
        )
        past = past.view(blocks, self._heads, self._dim, BLOCK_POSITIONS).permute(1, 0, 3, 2)
        past = past.reshape(self._heads, -1, self._dim)
        all_keys = torch.cat([past, self._recent[layer, :, :recent], keys], dim=1)
        table = self._values[layer, :, : self.length].reshape(-1, self._dim + SCALE_BYTES)
        past = _unpack(table) if self.length else values.new_empty(0)
        all_values = torch.cat([past.view(self._heads, -1, self._dim), values], dim=1)
        self.append(layer, kv)
        mask = causal_mask(query.shape[1], all_keys.shape[1], "cpu")
        return F.scaled_dot_product_attention(query[None], all_keys[None], all_values[None], attn_mask=mask)[0]

    def _split(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Split keys and values [2, rows, H, T, D] into [R, T, D] each."""
        keys, values = kv.reshape(2, self._heads, -1, self._dim)
        return keys, values

    def _bag_indices(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The table rows and the bag offsets of the keys and of the values; all layers of a step share them."""
        filled = self.length + 1
        if self._bags is None or self._bags[0] != filled:
            channels = filled // BLOCK_POSITIONS * self._heads * self._dim
            key_bags = _range(channels), _range(channels + 1, self._dim)
            first = _range(self._heads * self._max_positions, self._max_positions)
            rows = (first[:, None] + _range(filled)).flatten()
            self._bags = filled, key_bags, (rows, _range(len(rows) + 1, filled))
        return self._bags[1], self._bags[2]


def _range(end: int, step: int = 1) -> Tensor:
    return torch.arange(0, end, step, dtype=torch.int32)


def _weighted_sum(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Sum the table rows of each bag with their weights."""
    embedding_bag: Any = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
    out: Tensor = embedding_bag(table, rows, offsets, per_sample_weights=weights, include_last_offset=True)
    return out
