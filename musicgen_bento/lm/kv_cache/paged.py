"""A KV cache in blocks of 64 positions, each of all layers and heads, for the C kernel.

As in vLLM's PagedAttention (Kwon et al. 2023, arXiv:2309.06180), a sequence allocates a block when its last one is
full, and frees all of them at its end. A block table holds the addresses of a row's blocks:

    block table of a row       BlockPool
    positions   0 ..  63  ──▶  block 4
    positions  64 .. 127  ──▶  block 0
    positions 128 .. 191  ──▶  block 7       blocks 1, 2, 3, 5, 6: free, or of other rows
    positions 192 .. 255   0   (not allocated yet)

Each row of a sequence has a block table, and so has its prompt, unless the prompt is fused (native/prompt_fusion.h).
native/attention.h describes the layout of a block.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from musicgen_bento.lm.weights import LMShape
from musicgen_bento.native.bindings import BLOCK_SIZE, K_BLOCK, LANES, MAX_FUSED_TOKENS, round_up
from musicgen_bento.native.mmap_tensor import MmapTensor
from musicgen_bento.precision import Precision

HUGE_PAGES_MIN_BLOCK_BYTES = 2**20  # pools of smaller blocks use small pages


def num_blocks(positions: int) -> int:
    """Number of blocks for so many positions."""
    return -(-positions // BLOCK_SIZE)


def block_bytes(shape: LMShape, precision: Precision) -> int:
    """Bytes of one block. In int8 each position of a head has two scales."""
    scale_bytes = 4 if precision.kv_dtype == torch.int8 else 0
    return 2 * BLOCK_SIZE * shape.layers * shape.heads * (shape.head_dim * precision.kv_dtype.itemsize + scale_bytes)


def can_fuse_prompt(precision: Precision, tokens: int) -> bool:
    """Whether a prompt of so many tokens is fused (native/prompt_fusion.h), instead of stored in blocks."""
    return precision.kv_dtype == torch.int8 and 0 < tokens <= MAX_FUSED_TOKENS


def fused_prompt_bytes(shape: LMShape, tokens: int) -> int:
    """Bytes of a fused prompt of so many tokens."""
    rows, width = round_up(shape.heads * tokens, LANES), round_up(shape.heads * tokens, K_BLOCK)
    return shape.layers * (rows * round_up(shape.dim, K_BLOCK) + shape.dim * width + 4 * (rows + shape.dim))


class BlockPool:
    """The blocks of all sequences of a model. A block takes memory from its first write until it is freed.

    Args:
        count: the number of blocks.
        block_bytes: the bytes of one block.
    """

    def __init__(self, count: int, block_bytes: int) -> None:
        huge = block_bytes >= HUGE_PAGES_MIN_BLOCK_BYTES
        self._pages = MmapTensor(count, block_bytes, dtype=torch.uint8, huge=huge)
        self._free = list(range(count))  # a heap: the lowest block is allocated first, so that used blocks stay close

    @property
    def num_free(self) -> int:
        """The number of free blocks."""
        return len(self._free)

    def allocate(self) -> int:
        """Allocate the lowest free block.

        Raises:
            IndexError: no block is free.
        """
        return heapq.heappop(self._free)

    def memory(self, block: int) -> Tensor:
        """The bytes of a block, uint8 [block_bytes]."""
        return self._pages.tensor[block]

    def free(self, blocks: Iterable[int]) -> None:
        """Free blocks, and release the pages that hold no other allocated block.

        A large page is released with its last block. If a part of it were released, the system would provide small
        pages for that part, which a processor reads more slowly.
        """
        freed = set(blocks)
        self._free = sorted([*self._free, *freed])  # a sorted list is a heap
        for run in _runs(self._free):
            if not freed.isdisjoint(run):
                self._pages.release_pages(self._pages.tensor[run.start : run.stop])


def _runs(ascending: list[int]) -> Iterator[range]:
    """The ranges of consecutive numbers."""
    begins = [i for i, number in enumerate(ascending) if i == 0 or number != ascending[i - 1] + 1]
    for begin, end in pairwise([*begins, len(ascending)]):
        yield range(ascending[begin], ascending[end - 1] + 1)


class PagedKVCache:
    """Keys and values of one sequence, of its past and of its prompt, in blocks of a pool.

    Args:
        blocks: the pool.
        rows: 1, or 2 with classifier-free guidance.
        max_positions: maximum number of positions of the sequence.
        prompt_tokens: tokens of the prompt that are stored in blocks; 0 if there are none or the prompt is fused.

    Attributes:
        length: the positions that are filled already.
        block_tables: addresses of each row's blocks, int64 [rows, num_blocks(max_positions)]; 0 is not allocated.
        prompt_blocks: block table of the prompt, int64 [num_blocks(prompt_tokens)].
        fused_prompt: address of the fused prompt; 0 if it is not fused.
        prompt_tokens: tokens of the prompt.
    """

    def __init__(self, blocks: BlockPool, rows: int, max_positions: int, prompt_tokens: int) -> None:
        self.length, self.prompt_tokens, self.fused_prompt = 0, prompt_tokens, 0
        self._fused_pages: MmapTensor | None = None
        self._pool = blocks
        self._allocated: list[int] = []
        self._blocks_per_row = 0
        self.block_tables = torch.zeros(rows, num_blocks(max_positions), dtype=torch.int64)
        prompt_blocks = [self._allocate_block() for _ in range(num_blocks(prompt_tokens))]
        self.prompt_blocks = torch.tensor(prompt_blocks, dtype=torch.int64)

    def allocate_fused_prompt(self, tokens: int, num_bytes: int) -> None:
        """Allocate zeroed memory for the fused prompt of so many tokens."""
        self._fused_pages = MmapTensor(num_bytes, dtype=torch.uint8, huge=True)
        self.prompt_tokens, self.fused_prompt = tokens, self._fused_pages.tensor.data_ptr()

    def ensure_capacity(self, positions: int) -> None:
        """Allocate blocks for so many positions after `length`."""
        while self._blocks_per_row * BLOCK_SIZE < self.length + positions:
            for table in self.block_tables:
                table[self._blocks_per_row] = self._allocate_block()
            self._blocks_per_row += 1

    def advance(self, positions: int) -> None:
        """Count the positions that all layers have stored."""
        self.length += positions

    def reset(self) -> None:
        """Continue at position 0, in the same blocks."""
        self.length = 0

    def close(self) -> None:
        """Free all memory."""
        self._pool.free(self._allocated)
        self._allocated.clear()
        self._fused_pages = None

    def _allocate_block(self) -> int:
        """Allocate a block and return its address."""
        self._allocated.append(self._pool.allocate())
        return self._pool.memory(self._allocated[-1]).data_ptr()
