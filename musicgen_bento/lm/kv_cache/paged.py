"""Keys and values in blocks of 64 positions, each of all layers and heads.

As vLLM's pages (Kwon et al. 2023, arXiv:2309.06180): a clip takes another block when its last is full, and leaves all
of them to others when it is over. How a block is laid out is the kernel's business (`native/attention.h`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch

from musicgen_bento.lm.weights import LMShape
from musicgen_bento.native.bindings import BLOCK_SIZE, K_BLOCK, LANES, MAX_FUSED_TOKENS, round_up
from musicgen_bento.native.mmap_tensor import MmapTensor
from musicgen_bento.precision import Precision


def num_blocks(positions: int) -> int:
    """Blocks that so many positions need."""
    return -(-positions // BLOCK_SIZE)


def block_bytes(shape: LMShape, precision: Precision) -> int:
    """Of one block. In bytes each position of a head has two scales."""
    scale = 4 if precision.kv_dtype == torch.int8 else 0
    return 2 * BLOCK_SIZE * shape.layers * shape.heads * (shape.head_dim * precision.kv_dtype.itemsize + scale)


def can_fuse_prompt(precision: Precision, tokens: int) -> bool:
    """Whether a clip folds a prompt of so many tokens (`native/folded.h`), and has no blocks of it."""
    return precision.kv_dtype == torch.int8 and 0 < tokens <= MAX_FUSED_TOKENS


def fused_prompt_bytes(shape: LMShape, tokens: int) -> int:
    """Of such a prompt."""
    rows, width = round_up(shape.heads * tokens, LANES), round_up(shape.heads * tokens, K_BLOCK)
    return shape.layers * (rows * round_up(shape.dim, K_BLOCK) + shape.dim * width + 4 * (rows + shape.dim))


class BlockPool:
    """The blocks of all clips of a model. They take memory as they are written.

    Args:
        most: how many there are.
        size: bytes of one.
    """

    def __init__(self, most: int, size: int) -> None:
        self._pages = MmapTensor(most, size, dtype=torch.uint8, huge=size >= 2**20)
        self._free = list(range(most))  # a heap: the first are taken first, so that they stay close together

    @property
    def num_free(self) -> int:
        """How many nobody has."""
        return len(self._free)

    def allocate(self) -> int:
        """One that nobody has.

        Raises:
            IndexError: there is none.
        """
        return heapq.heappop(self._free)

    def address(self, block: int) -> int:
        """Where it is."""
        return self._pages.tensor[block].data_ptr()

    def zero(self, block: int) -> None:
        """Write zeros to it: its memory is taken."""
        self._pages.tensor[block].zero_()

    def free(self, blocks: Iterable[int]) -> None:
        """They are not wanted any more, and take no memory but of pages that others have a part of.

        Those go with the last of them: what takes a part of a large page back gets small ones for it, which a processor
        reads more slowly.
        """
        given = set(blocks)
        self._free = sorted([*self._free, *given])  # a heap too
        for run in _runs(self._free):
            if not given.isdisjoint(run):
                self._pages.release_pages(self._pages.tensor[run.start : run.stop])


def _runs(ascending: list[int]) -> Iterator[range]:
    """Numbers that follow each other."""
    begins = [i for i, number in enumerate(ascending) if i == 0 or number != ascending[i - 1] + 1]
    for begin, end in pairwise([*begins, len(ascending)]):
        yield range(ascending[begin], ascending[end - 1] + 1)


class PagedKVCache:
    """What one clip remembers of itself and of its prompt.

    Args:
        blocks: where to take them.
        rows: 1, or 2 with classifier-free guidance.
        positions: most that it will hold.
        tokens: of the prompt, where the model attends to it.

    Attributes:
        length: positions filled already.
        rows: addresses of each row's blocks, [rows, most].
        prompt: of the prompt's.
        folded: where the folded prompt is; 0 where it is not folded.
        tokens: of the prompt.
    """

    def __init__(self, blocks: BlockPool, rows: int, positions: int, tokens: int) -> None:
        self.length, self.tokens, self.fused_prompt = 0, tokens, 0
        self._pages: MmapTensor | None = None  # of the folded prompt
        self._blocks = blocks
        self._taken: list[int] = []
        self._filled = 0  # blocks of each row
        self.block_tables = torch.zeros(rows, num_blocks(positions), dtype=torch.int64)
        self.prompt_blocks = torch.tensor([self._take() for _ in range(num_blocks(tokens))], dtype=torch.int64)

    def allocate_fused_prompt(self, tokens: int, size: int) -> None:
        """Have `size` bytes for a prompt that is folded."""
        self._pages = MmapTensor(size, dtype=torch.uint8, huge=True)
        self.tokens, self.fused_prompt = tokens, self._pages.tensor.data_ptr()

    def ensure_capacity(self, positions: int) -> None:
        """Have room for so many positions more."""
        while self._filled * BLOCK_SIZE < self.length + positions:
            for row in self.block_tables:
                row[self._filled] = self._take()
            self._filled += 1

    def advance(self, positions: int) -> None:
        """The positions just written count."""
        self.length += positions

    def reset(self) -> None:
        """Start over at position 0."""
        self.length = 0

    def fill_with_zeros_for_benchmark(self, positions: int) -> None:
        """So many positions of zeros, written, as a bench wants them."""
        self.ensure_capacity(positions)
        for block in self._taken[len(self.prompt_blocks) :]:
            self._blocks.zero(block)
        self.advance(positions)

    def close(self) -> None:
        """The clip is over."""
        self._blocks.free(self._taken)
        self._taken.clear()
        self._pages = None

    def _take(self) -> int:
        self._taken.append(self._blocks.allocate())
        return self._blocks.address(self._taken[-1])
