"""The block pool and the paged KV cache."""

from __future__ import annotations

from musicgen_bento.lm.kv_cache.paged import BlockPool, PagedKVCache
from musicgen_bento.native.bindings import BLOCK_SIZE
from musicgen_bento.native.mmap_tensor import HUGE_PAGE_BYTES


def test_a_sequence_allocates_blocks_as_it_fills_them() -> None:
    blocks = BlockPool(10, 4096)
    cache = PagedKVCache(blocks, rows=2, max_positions=4 * BLOCK_SIZE, prompt_tokens=BLOCK_SIZE + 1)
    assert blocks.num_free == 8
    cache.ensure_capacity(1)
    assert blocks.num_free == 6
    cache.advance(BLOCK_SIZE)
    assert blocks.num_free == 6
    cache.ensure_capacity(1)
    assert blocks.num_free == 4
    cache.reset()  # the next window writes to the same blocks
    cache.ensure_capacity(2 * BLOCK_SIZE)
    assert blocks.num_free == 4
    cache.close()
    assert blocks.num_free == 10


def test_blocks_in_huge_pages_are_released_in_whole_pages() -> None:
    """Freed blocks do not change their neighbours; when the last block of a page is freed, the page reads as zeros."""
    blocks = BlockPool(8, 3 * 2**19)
    for number in range(8):
        assert blocks.allocate() == number
        blocks.memory(number).fill_(number + 1)
    blocks.free([1, 3, 5, 7])
    for number in (0, 2, 4, 6):
        assert (blocks.memory(number) == number + 1).all()
    assert blocks.num_free == 4
    blocks.free([0, 6, 2, 4])
    flat = blocks._pages.tensor.flatten()
    begin, end = -flat.data_ptr() % HUGE_PAGE_BYTES, len(flat) - (flat.data_ptr() + len(flat)) % HUGE_PAGE_BYTES
    assert end - begin >= HUGE_PAGE_BYTES
    assert not flat[begin:end].any()
    assert [blocks.allocate() for _ in range(8)] == list(range(8))
