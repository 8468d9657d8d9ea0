"""The decoder on the C kernel, compared with the eager torch decoder, and the memory that it takes."""

from __future__ import annotations

import mmap
from dataclasses import replace
from typing import Any

import pytest
import torch

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.text_conditioner import TextConditioner
from musicgen_bento.errors import LoadFailed
from musicgen_bento.lm.cpu_decoder import PHASES, CpuDecoder
from musicgen_bento.lm.decoder import EagerDecoder, KVCacheRequest
from musicgen_bento.lm.factory import create_decoder
from musicgen_bento.lm.kv_cache.paged import PagedKVCache, can_fuse_prompt, fused_prompt_bytes
from musicgen_bento.lm.sampling import SamplingParams, sample
from musicgen_bento.native import bindings
from musicgen_bento.native.bindings import BLOCK_SIZE, MAX_FUSED_TOKENS
from musicgen_bento.precision import (
    FLOAT32,
    FLOAT32_NATIVE,
    INT8,
    Precision,
    default_precision,
    supported_precisions,
)
from tests.support.decoder_variants import MIXED_REQUESTS, assert_same_tokens
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import (
    CPU,
    MONO,
    PREPEND,
    STEREO,
    EventLog,
    create_engine,
    folder,
    load,
    params,
    run_requests,
)

ODD_HEADS = replace(MONO, dim=96, heads=2, window=3)  # heads are 48 wide; a row fills more than one block


def run_script(config: RandomModelConfig, precision: Precision) -> torch.Tensor:
    """The logits of three sequences, one without guidance, that open one after the other; then one of them closes."""
    model = load(config, precision)
    conditioner, decoder = TextConditioner(model), create_decoder(model.weights, 3)
    assert type(decoder) is (CpuDecoder if precision.native_kernel else EagerDecoder)
    torch.manual_seed(0)
    sequences: list[Any] = []
    logits = []
    for number in range(12):
        if number in (0, 3, 4):
            prompt = conditioner.encode(conditioner.tokenize("techno " * (1 + 12 * number)))
            sequence = decoder.open_sequence(prompt, guided=number != 3, max_positions=140)
            if (prefix := decoder.prompt_prefix(sequence)).shape[1]:
                decoder.prefill(sequence, prefix)
            decoder.prefill(sequence, torch.randn(sequence.rows, 70, model.weights.shape.dim) * 0.1)
            sequences.append(sequence)
        if number == 8:
            decoder.close_sequence(sequences.pop(1))
        batch = sequences[::-1]  # not in the order of opening
        tokens = torch.randint(model.weights.shape.codebook_size, (len(batch), model.weights.shape.codebooks))
        logits.append(decoder.step(batch, tokens, torch.linspace(2, 4, len(batch))))
    return torch.cat(logits)


@pytest.mark.parametrize(
    "config", [replace(MONO, window=3), replace(STEREO, window=3), replace(PREPEND, window=3), ODD_HEADS]
)
def test_logits_equal_torch_for_sequences_at_different_positions(config: RandomModelConfig) -> None:
    expected = run_script(config, FLOAT32)
    torch.testing.assert_close(run_script(config, FLOAT32_NATIVE), expected, atol=1e-4, rtol=1e-4)
    error = run_script(config, INT8) - expected
    assert error.pow(2).mean().sqrt() < 0.02 * expected.std()


@pytest.mark.parametrize("tokens", [1, 7, 16, 17, MAX_FUSED_TOKENS, MAX_FUSED_TOKENS + 1])
@pytest.mark.parametrize("config", [MONO, ODD_HEADS, replace(MONO, dim=128, heads=1)])
def test_a_short_prompt_is_fused_and_gives_the_same_logits(config: RandomModelConfig, tokens: int) -> None:
    torch.manual_seed(tokens)
    prompt, columns = torch.randn(tokens, config.dim) * 3, torch.randint(100, (8, 1, 4))

    def logits_of(precision: Precision, prompt: torch.Tensor) -> torch.Tensor:
        decoder = create_decoder(load(config, precision).weights, 1)
        sequence = decoder.open_sequence(prompt, guided=False, max_positions=30)
        if isinstance(decoder, CpuDecoder) and isinstance(sequence.kv_cache, PagedKVCache):
            is_fused = sequence.kv_cache.fused_prompt != 0
            assert is_fused == can_fuse_prompt(precision, tokens) == (tokens <= MAX_FUSED_TOKENS)
            kernel_bytes = decoder._library.decoder_fused_prompt_bytes(decoder._handle, tokens)
            assert kernel_bytes == fused_prompt_bytes(decoder.shape, tokens)
        return torch.cat([decoder.step([sequence], column, torch.ones(1)) for column in columns])

    expected = logits_of(FLOAT32, prompt)
    assert (logits_of(INT8, prompt) - expected).pow(2).mean().sqrt() < 0.02 * expected.std()
    # The bound is tight enough: another prompt exceeds it.
    assert (logits_of(INT8, prompt * 0) - expected).pow(2).mean().sqrt() > 0.1 * expected.std()


def test_a_nonfinite_prompt_fails_its_own_sequence_alone() -> None:
    decoder = create_decoder(load(MONO, INT8).weights, 2)
    finite = torch.ones(3, decoder.shape.dim)
    for value in (torch.nan, torch.inf):
        nonfinite = torch.ones(3, decoder.shape.dim)
        nonfinite[1, 5] = value
        pair = [decoder.open_sequence(prompt, True, 30) for prompt in (nonfinite, finite)]
        sampling = SamplingParams.from_lists([0, 0], [1.0, 1.0], [250, 250], [0.0, 0.0], CPU)
        sampled = decoder.step_and_sample(pair, [[1] * 4] * 2, torch.tensor([3.0, 3.0]), sampling, [1, 1])
        for sequence in pair:
            decoder.close_sequence(sequence)
        assert sampled[0] == [-1] * 4
        alone = decoder.open_sequence(finite, True, 30)
        sampling = SamplingParams.from_lists([0], [1.0], [250], [0.0], CPU)
        assert sampled[1:] == decoder.step_and_sample([alone], [[1] * 4], torch.tensor([3.0]), sampling, [1])
        decoder.close_sequence(alone)


def test_the_kernel_samples_the_same_tokens_as_sampling_py() -> None:
    weights = load(MONO).weights
    runs = []
    for by_kernel in (True, False):
        decoder, noise_steps = create_decoder(weights, 4), torch.arange(4) * 7
        sampling = SamplingParams.from_lists(
            [3, 2**32 - 1, 0, 9], [1.0, 0.7, 0.0, 1.3], [250, 20, 0, 0], [0.0, 0.0, 0.0, 0.8], CPU
        )
        cfg_coef = torch.tensor([3.0, 1.0, 2.0, 4.0])
        torch.manual_seed(0)
        batch = [
            decoder.open_sequence(torch.randn(5, weights.shape.dim), coef != 1.0, 100) for coef in cfg_coef.tolist()
        ]
        tokens = torch.randint(weights.shape.codebook_size, (4, 4))
        sampled = []
        for step in range(60):
            if by_kernel:
                steps = (noise_steps + step).tolist()
                tokens = torch.tensor(decoder.step_and_sample(batch, tokens.tolist(), cfg_coef, sampling, steps))
            else:
                tokens = sample(decoder.step(batch, tokens, cfg_coef), sampling, noise_steps + step)
            sampled.append(tokens)
        runs.append(torch.stack(sampled))
    assert torch.equal(*runs)


# ---- memory


def test_finished_requests_free_their_blocks() -> None:
    engine = create_engine(MONO)
    decoder = engine._decoder
    assert isinstance(decoder, CpuDecoder)
    before = decoder._blocks.num_free
    run_requests(engine, MIXED_REQUESTS)
    run_requests(engine, {"one": params(duration=0.2)})
    assert decoder._blocks.num_free == before
    # The released pages read as zeros.
    assert not decoder._blocks._pages.tensor[:, mmap.PAGESIZE : -mmap.PAGESIZE].any()


def test_a_full_batch_accepts_no_sequence_until_another_closes() -> None:
    decoder = create_decoder(load(MONO).weights, 2)
    prompt = torch.zeros(3, decoder.shape.dim)
    sequences = [decoder.open_sequence(prompt, True, 30) for _ in range(2)]
    with pytest.raises(IndexError):
        decoder.open_sequence(prompt, True, 30)
    decoder.close_sequence(sequences.pop(0))
    decoder.open_sequence(prompt, True, 30)


def test_allocated_blocks_match_the_computed_bytes() -> None:
    decoder = create_decoder(load(replace(MONO, window=3)).weights, 4)
    assert isinstance(decoder, CpuDecoder)
    before, prompt = decoder._blocks.num_free, torch.zeros(70, decoder.shape.dim)
    cache = decoder.open_sequence(prompt, True, 100).kv_cache
    assert isinstance(cache, PagedKVCache)
    cache.ensure_capacity(100)
    allocated = before - decoder._blocks.num_free
    shape = decoder.shape
    numbers = 2 * shape.layers * shape.dim * BLOCK_SIZE  # of a block: a key and a value for each position
    scales = 2 * shape.layers * shape.heads * BLOCK_SIZE  # of an int8 block
    assert decoder._blocks.memory(0).nbytes == 4 * numbers
    assert decoder.kv_cache_bytes([KVCacheRequest(2, 100, 70)]) == allocated * 4 * numbers
    assert decoder.kv_cache_bytes([]) == 0
    decoder = create_decoder(load(replace(MONO, window=3), INT8).weights, 4)
    assert isinstance(decoder, CpuDecoder)
    block, fused = numbers + 4 * scales, fused_prompt_bytes(decoder.shape, MAX_FUSED_TOKENS)
    assert decoder._blocks.memory(0).nbytes == block
    assert decoder.kv_cache_bytes([KVCacheRequest(2, 100, MAX_FUSED_TOKENS)]) == 4 * block + fused
    assert decoder.kv_cache_bytes([KVCacheRequest(2, 100, MAX_FUSED_TOKENS + 1)]) == 5 * block


def test_only_filled_blocks_take_memory() -> None:
    engine = create_engine(MONO, max_slots=4)
    for number, coef in enumerate((1.0, 3.0)):
        engine.add_request(str(number), params(duration=1.0, cfg_coef=coef), EventLog())
    for _ in range(10):
        engine.step()
    decoder = engine._decoder
    assert isinstance(decoder, CpuDecoder)
    # Two prompts, one row of the first request, and two rows of the second.
    assert int(decoder._blocks._pages.tensor.any(dim=1).sum()) == 2 + 1 + 2


# ---- values that are not finite


@pytest.mark.parametrize("precision", [FLOAT32_NATIVE, INT8], ids=lambda precision: precision.name)
def test_nonfinite_values_in_free_blocks_do_not_change_tokens(precision: Precision) -> None:
    engine = create_engine(MONO, precision=precision)
    decoder = engine._decoder
    assert isinstance(decoder, CpuDecoder)
    expected = run_requests(create_engine(MONO, precision=precision), {"one": params(duration=0.4, seed=1)})
    decoder._blocks._pages.tensor.fill_(255)  # NaN, as float32
    assert_same_tokens(run_requests(engine, {"one": params(duration=0.4, seed=1)}), expected)


@pytest.mark.parametrize("precision", [FLOAT32_NATIVE, INT8], ids=lambda precision: precision.name)
def test_a_nonfinite_embedding_is_reported_for_its_own_sequence_alone(precision: Precision) -> None:
    weights = load(MONO, precision).weights
    decoder = create_decoder(weights, 2)
    pair = [decoder.open_sequence(torch.zeros(3, decoder.shape.dim), True, 30) for _ in range(2)]
    sampling = SamplingParams.from_lists([0, 0], [1.0, 1.0], [250, 250], [0.0, 0.0], CPU)
    cfg_coef = torch.tensor([3.0, 3.0])
    for value in (torch.nan, torch.inf):
        original, weights.embeddings[0, 7] = weights.embeddings[0, 7].clone(), value
        sampled = decoder.step_and_sample(pair, [[7, 1, 1, 1], [1, 1, 1, 1]], cfg_coef, sampling, [1, 1])
        weights.embeddings[0, 7] = original
        assert sampled[0] == [-1] * 4
        assert min(sampled[1]) >= 0


# ---- phases, and models and machines without the kernel


def test_phase_times_are_counted_and_reset() -> None:
    decoder = create_decoder(load(MONO).weights, 1)
    assert isinstance(decoder, CpuDecoder)
    sequence = decoder.open_sequence(torch.zeros(3, decoder.shape.dim), True, 30)
    decoder.step([sequence], torch.zeros(1, 4, dtype=torch.int64), torch.tensor([3.0]))
    times = decoder.phase_times()
    assert set(times) == set(PHASES)
    assert times["products"] > 0
    assert not any(decoder.phase_times().values())


def test_torch_runs_a_model_of_a_shape_that_the_kernel_does_not_support() -> None:
    unaligned = replace(MONO, dim=80, heads=4)  # heads are 20 wide
    files = loading.open_files(Source("odd", folder(unaligned)))
    assert type(create_decoder(loading.load_weights(files, CPU, FLOAT32_NATIVE), 1)) is EagerDecoder
    with pytest.raises(LoadFailed, match="int8"):
        loading.load_weights(files, CPU, INT8)


def test_torch_runs_float32_on_a_machine_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "library", lambda: None)
    assert "int8" not in supported_precisions(CPU)
    assert default_precision(CPU) == supported_precisions(CPU)["float32"] == FLOAT32
    engine = create_engine(MONO, precision=FLOAT32)
    assert type(engine._decoder) is EagerDecoder
    events = run_requests(engine, {"one": params(duration=0.3)})["one"].events
    assert events.audio.std() > 0
