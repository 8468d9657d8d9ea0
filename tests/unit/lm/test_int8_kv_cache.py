"""Attention on keys and values in 8 bits: its accuracy, and its independence of other rows and unused positions."""

from __future__ import annotations

import pytest
import torch

from musicgen_bento.lm.kv_cache.dense import DenseKVCache
from musicgen_bento.lm.kv_cache.factory import KVCache, create_kv_cache, request_kv_bytes
from musicgen_bento.lm.kv_cache.int8 import BLOCK_POSITIONS, Int8KVCache
from musicgen_bento.precision import FLOAT16_WEIGHTS, FLOAT32
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import MONO, PREPEND, create_engine

LAYERS, ROWS, HEADS, DIM = 2, 2, 4, 64
POSITIONS = 3 * BLOCK_POSITIONS + 10


def create_dense(positions: int = POSITIONS) -> KVCache:
    return DenseKVCache(torch.empty(LAYERS, 2, ROWS, HEADS, positions, DIM))


def create_int8(positions: int = POSITIONS) -> KVCache:
    return Int8KVCache(LAYERS, ROWS, HEADS, positions, DIM)


def random_inputs(positions: int, seed: int = 0) -> torch.Tensor:
    """Queries, keys and values of each layer, [layers, 3, rows, H, T, D]; a few key channels are large."""
    inputs = torch.randn(LAYERS, 3, ROWS, HEADS, positions, DIM, generator=torch.Generator().manual_seed(seed))
    inputs[:, 1, ..., :3] *= 8
    inputs[:, 2] += 3  # values are far from 0
    return inputs


def attend(cache: KVCache, inputs: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """The attention outputs of all positions, [layers, rows, H, T, D], computed in parts of the given sizes."""
    outputs = []
    for part in inputs.split(sizes, dim=4):
        outputs.append(torch.stack([cache.attend(layer, x[0], x[1:]) for layer, x in enumerate(part)]))
        cache.advance(part.shape[4])
    return torch.cat(outputs, dim=3)


@pytest.mark.parametrize(
    "sizes",
    [
        [1] * POSITIONS,
        [POSITIONS],
        [BLOCK_POSITIONS, 1, BLOCK_POSITIONS - 1, 5, *[1] * (BLOCK_POSITIONS + 5)],
        [150, *[1] * (POSITIONS - 150)],
    ],
    ids=["one by one", "at once", "by blocks", "after a prompt"],
)
def test_attention_is_close_to_float32(sizes: list[int]) -> None:
    inputs = random_inputs(sum(sizes))
    expected, output = attend(create_dense(), inputs, sizes), attend(create_int8(), inputs, sizes)
    assert (output - expected).norm() / (expected - 3).norm() < 0.02
    assert (output - expected).abs().max() < 0.2


def test_a_lost_block_exceeds_the_error_bound() -> None:
    """The bound of the test above is tight enough to detect it."""
    inputs = random_inputs(POSITIONS)
    expected = attend(create_dense(), inputs, [1] * POSITIONS)
    inputs[:, 1, ..., BLOCK_POSITIONS : 2 * BLOCK_POSITIONS, :] = 0
    output = attend(create_int8(), inputs, [1] * POSITIONS)
    assert (output - expected).norm() / (expected - 3).norm() > 0.1


def test_a_reset_cache_equals_an_empty_one() -> None:
    cache = create_int8()
    attend(cache, random_inputs(100, seed=1), [40, *[1] * 60])
    cache.reset()
    sizes = [70, *[1] * 30]
    assert torch.equal(attend(cache, random_inputs(100), sizes), attend(create_int8(), random_inputs(100), sizes))


def test_unused_positions_do_not_change_the_output() -> None:
    sizes = [1] * 100
    output = attend(create_int8(positions=101), random_inputs(100), sizes)
    assert torch.equal(output, attend(create_int8(), random_inputs(100), sizes))


def test_rows_are_independent() -> None:
    inputs = random_inputs(100)
    both = attend(create_int8(), inputs, [1] * 100)
    for row in range(ROWS):
        cache = Int8KVCache(LAYERS, 1, HEADS, POSITIONS, DIM)
        assert torch.equal(attend(cache, inputs[:, :, row : row + 1], [1] * 100)[:, 0], both[:, row])


@pytest.mark.parametrize("config", [MONO, PREPEND])
def test_the_computed_bytes_equal_the_size_of_the_cache(config: RandomModelConfig) -> None:
    shape = create_engine(config).checkpoint.weights.shape
    prompt_tokens = 7
    is_prepended = shape.text_conditioning == "prepend"
    for precision in (FLOAT32, FLOAT16_WEIGHTS):
        positions = 300 + (prompt_tokens if is_prepended else 0)
        cache = create_kv_cache(shape, precision, torch.device("cpu"), 2, positions)
        cache_bytes = sum(x.nbytes for x in vars(cache).values() if isinstance(x, torch.Tensor))
        cross_bytes = 0 if is_prepended else 2 * shape.layers * shape.dim * prompt_tokens * 4
        assert request_kv_bytes(shape, precision, 2, 300, prompt_tokens) == cache_bytes + cross_bytes
