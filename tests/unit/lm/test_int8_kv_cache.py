"""Attention over keys and values in 8 bits: how near it is, and that a clip's past is its own."""

from __future__ import annotations

import pytest
import torch

from musicgen_bento.lm.kv_cache.dense import DenseKVCache
from musicgen_bento.lm.kv_cache.factory import KVCache, create_kv_cache, request_kv_bytes
from musicgen_bento.lm.kv_cache.int8 import BLOCK, Int8KVCache
from musicgen_bento.precision import FLOAT16_WEIGHTS, FLOAT32
from tests.support.tiny_models import MONO, PREPEND, create_engine

LAYERS, ROWS, HEADS, DIM = 2, 2, 4, 64
POSITIONS = 3 * BLOCK + 10


def empty(exact: bool = False, positions: int = POSITIONS) -> KVCache:
    if exact:
        return DenseKVCache(torch.empty(LAYERS, 2, ROWS, HEADS, positions, DIM))
    return Int8KVCache(LAYERS, ROWS, HEADS, positions, DIM)


def inputs(positions: int, seed: int = 0) -> torch.Tensor:
    """Queries, keys and values of each layer, [layers, 3, rows, H, T, D]; a few channels of keys are large."""
    some = torch.randn(LAYERS, 3, ROWS, HEADS, positions, DIM, generator=torch.Generator().manual_seed(seed))
    some[:, 1, ..., :3] *= 8
    some[:, 2] += 3  # values far from 0
    return some


def attend(held: KVCache, some: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """All that is found, [layers, rows, H, T, D], so many positions at a time."""
    found = []
    for part in some.split(sizes, dim=4):
        found.append(torch.stack([held.attend(layer, x[0], x[1:]) for layer, x in enumerate(part)]))
        held.advance(part.shape[4])
    return torch.cat(found, dim=3)


@pytest.mark.parametrize(
    "sizes",
    [[1] * POSITIONS, [POSITIONS], [BLOCK, 1, BLOCK - 1, 5, *[1] * (BLOCK + 5)], [150, *[1] * (POSITIONS - 150)]],
    ids=["one by one", "at once", "by blocks", "after a prompt"],
)
def test_nearly_what_float32_finds(sizes: list[int]) -> None:
    some = inputs(sum(sizes))
    wanted, found = attend(empty(exact=True), some, sizes), attend(empty(), some, sizes)
    assert (found - wanted).norm() / (wanted - 3).norm() < 0.02
    assert (found - wanted).abs().max() < 0.2


def test_an_error_would_show() -> None:
    """The bound above is tight enough: a past without one of its blocks is not within it."""
    some = inputs(POSITIONS)
    wanted = attend(empty(exact=True), some, [1] * POSITIONS)
    some[:, 1, ..., BLOCK : 2 * BLOCK, :] = 0
    found = attend(empty(), some, [1] * POSITIONS)
    assert (found - wanted).norm() / (wanted - 3).norm() > 0.1


def test_the_past_begins_anew() -> None:
    held = empty()
    attend(held, inputs(100, seed=1), [40, *[1] * 60])
    held.reset()
    sizes = [70, *[1] * 30]
    assert torch.equal(attend(held, inputs(100), sizes), attend(empty(), inputs(100), sizes))


def test_room_that_is_not_used_changes_nothing() -> None:
    sizes = [1] * 100
    assert torch.equal(attend(empty(positions=101), inputs(100), sizes), attend(empty(), inputs(100), sizes))


def test_its_rows_are_alone() -> None:
    some = inputs(100)
    both = attend(empty(), some, [1] * 100)
    for row in range(ROWS):
        one = Int8KVCache(LAYERS, 1, HEADS, POSITIONS, DIM)
        assert torch.equal(attend(one, some[:, :, row : row + 1], [1] * 100)[:, 0], both[:, row])


@pytest.mark.parametrize("recipe", [MONO, PREPEND])
def test_what_a_clip_takes_is_known(recipe: object) -> None:
    shape = create_engine(recipe).checkpoint.weights.shape
    for how in (FLOAT32, FLOAT16_WEIGHTS):
        made = create_kv_cache(
            shape, how, torch.device("cpu"), 2, 300 + (7 if shape.text_conditioning == "prepend" else 0)
        )
        taken = sum(x.nbytes for x in vars(made).values() if isinstance(x, torch.Tensor))
        cross = 0 if shape.text_conditioning == "prepend" else 2 * shape.layers * shape.dim * 7 * 4
        assert request_kv_bytes(shape, how, 2, 300, 7) == taken + cross
