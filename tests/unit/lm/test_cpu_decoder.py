"""The decoder that the kernel runs, against the one that torch runs; its blocks, and the memory behind them."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.text_conditioner import TextConditioner
from musicgen_bento.errors import LoadFailed
from musicgen_bento.lm.cpu_decoder import PHASES, CpuDecoder
from musicgen_bento.lm.decoder import EagerDecoder, KVCacheRequest
from musicgen_bento.lm.factory import create_decoder
from musicgen_bento.lm.kv_cache.paged import BlockPool, PagedKVCache, can_fuse_prompt, fused_prompt_bytes
from musicgen_bento.lm.sampling import SamplingParams, sample
from musicgen_bento.native import bindings
from musicgen_bento.native.bindings import BLOCK_SIZE, MAX_FUSED_TOKENS
from musicgen_bento.native.mmap_tensor import HUGE_PAGE_BYTES, MmapTensor, evict_file_pages
from musicgen_bento.precision import FLOAT32, FLOAT32_NATIVE, INT8, Precision
from tests.support.decoder_variants import COMPANY, assert_same
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

ODD = replace(MONO, dim=96, heads=2, window=3)  # heads are 48 wide; a row fills more than one block


def script(recipe: RandomModelConfig, how: Precision) -> torch.Tensor:
    """Three clips, one without guidance, that join one after the other; two of them then go on without the third."""
    model = load(recipe, how)
    hears, decoder = TextConditioner(model), create_decoder(model.weights, 3)
    assert type(decoder) is (CpuDecoder if how.native_kernel else EagerDecoder)
    torch.manual_seed(0)
    sequences: list[Any] = []
    said = []
    for number in range(12):
        if number in (0, 3, 4):
            text = hears.encode(hears.tokenize("techno " * (1 + 12 * number)))
            sequence = decoder.open(text, guided=number != 3, positions=140)
            if (known := decoder.prompt_prefix(sequence)).shape[1]:
                decoder.prefill(sequence, known)
            decoder.prefill(sequence, torch.randn(sequence.rows, 70, model.weights.shape.dim) * 0.1)
            sequences.append(sequence)
        if number == 8:
            decoder.close(sequences.pop(1))
        some = sequences[::-1]  # in no order of seats
        tokens = torch.randint(model.weights.shape.codebook_size, (len(some), model.weights.shape.codebooks))
        said.append(decoder.step(some, tokens, torch.linspace(2, 4, len(some))))
    return torch.cat(said)


@pytest.mark.parametrize(
    "recipe", [replace(MONO, window=3), replace(STEREO, window=3), replace(PREPEND, window=3), ODD]
)
def test_logits_of_clips_at_different_positions(recipe: RandomModelConfig) -> None:
    expected = script(recipe, FLOAT32)
    torch.testing.assert_close(script(recipe, FLOAT32_NATIVE), expected, atol=1e-4, rtol=1e-4)
    off = script(recipe, INT8) - expected
    assert off.pow(2).mean().sqrt() < 0.02 * expected.std()


@pytest.mark.parametrize("tokens", [1, 7, 16, 17, MAX_FUSED_TOKENS, MAX_FUSED_TOKENS + 1])
@pytest.mark.parametrize("recipe", [MONO, ODD, replace(MONO, dim=128, heads=1)])
def test_a_short_prompt_is_folded(recipe: RandomModelConfig, tokens: int) -> None:
    """It is heard as one that is not, and takes what is counted."""
    torch.manual_seed(tokens)
    text, read = torch.randn(tokens, recipe.dim) * 3, torch.randint(100, (8, 1, 4))

    def said(how: Precision, text: torch.Tensor) -> torch.Tensor:
        decoder = create_decoder(load(recipe, how).weights, 1)
        sequence = decoder.open(text, guided=False, positions=30)
        if isinstance(decoder, CpuDecoder) and isinstance(sequence.cache, PagedKVCache):
            assert (sequence.cache.fused_prompt != 0) == can_fuse_prompt(how, tokens) == (tokens <= MAX_FUSED_TOKENS)
            assert decoder._kernel.decoder_fused_prompt_bytes(decoder._handle, tokens) == fused_prompt_bytes(
                decoder.shape, tokens
            )
        return torch.cat([decoder.step([sequence], column, torch.ones(1)) for column in read])

    expected = said(FLOAT32, text)
    assert (said(INT8, text) - expected).pow(2).mean().sqrt() < 0.02 * expected.std()
    assert (said(INT8, text * 0) - expected).pow(2).mean().sqrt() > 0.1 * expected.std()  # it matters what is heard


def test_a_prompt_that_is_not_a_number_is_its_clips_alone() -> None:
    decoder = create_decoder(load(MONO, INT8).weights, 2)
    for value in (torch.nan, torch.inf):
        text = torch.ones(3, decoder.shape.dim)
        text[1, 5] = value
        pair = [decoder.open(each, True, 30) for each in (text, torch.ones(3, decoder.shape.dim))]
        rows = SamplingParams.from_lists([0, 0], [1.0, 1.0], [250, 250], [0.0, 0.0], CPU)
        drawn = decoder.step_and_sample(pair, [[1] * 4] * 2, torch.tensor([3.0, 3.0]), rows, [1, 1])
        for sequence in pair:
            decoder.close(sequence)
        assert drawn[0] == [-1] * 4
        alone = decoder.open(torch.ones(3, decoder.shape.dim), True, 30)
        rows = SamplingParams.from_lists([0], [1.0], [250], [0.0], CPU)
        assert drawn[1:] == decoder.step_and_sample([alone], [[1] * 4], torch.tensor([3.0]), rows, [1])
        decoder.close(alone)


def test_tokens_are_drawn_as_sampling_draws_them() -> None:
    """The kernel's draws and those of sampling.py, from the same logits."""
    weights = load(MONO).weights
    found = []
    for drawing in (True, False):
        decoder, keys = create_decoder(weights, 4), torch.arange(4) * 7
        rows = SamplingParams.from_lists(
            [3, 2**32 - 1, 0, 9], [1.0, 0.7, 0.0, 1.3], [250, 20, 0, 0], [0.0, 0.0, 0.0, 0.8], CPU
        )
        cfg = torch.tensor([3.0, 1.0, 2.0, 4.0])
        torch.manual_seed(0)
        some = [decoder.open(torch.randn(5, weights.shape.dim), c != 1.0, 100) for c in cfg.tolist()]
        tokens = torch.randint(weights.shape.codebook_size, (4, 4))
        drawn = []
        for step in range(60):
            if drawing:
                tokens = torch.tensor(decoder.step_and_sample(some, tokens.tolist(), cfg, rows, (keys + step).tolist()))
            else:
                tokens = sample(decoder.step(some, tokens, cfg), rows, keys + step)
            drawn.append(tokens)
        found.append(torch.stack(drawn))
    assert torch.equal(*found)


def test_blocks_are_given_back() -> None:
    model = create_engine(MONO)
    decoder = model._decoder
    assert isinstance(decoder, CpuDecoder)
    before = decoder._blocks.num_free
    run_requests(model, COMPANY)
    run_requests(model, {"one": params(duration=0.2)})
    assert decoder._blocks.num_free == before
    assert not decoder._blocks._pages.tensor[:, mmap.PAGESIZE : -mmap.PAGESIZE].any()  # zeros again


def test_nobody_sits_behind_the_last_seat() -> None:
    decoder = create_decoder(load(MONO).weights, 2)
    text = torch.zeros(3, decoder.shape.dim)
    seated = [decoder.open(text, True, 30) for _ in range(2)]
    with pytest.raises(IndexError):
        decoder.open(text, True, 30)
    decoder.close(seated.pop(0))
    decoder.open(text, True, 30)


def test_a_clip_takes_blocks_as_it_fills_them() -> None:
    blocks = BlockPool(10, 4096)
    cache = PagedKVCache(blocks, rows=2, positions=4 * BLOCK_SIZE, tokens=BLOCK_SIZE + 1)
    assert blocks.num_free == 8
    cache.ensure_capacity(1)
    assert blocks.num_free == 6
    cache.advance(BLOCK_SIZE)
    assert blocks.num_free == 6
    cache.ensure_capacity(1)
    assert blocks.num_free == 4
    cache.reset()  # the next window writes into the same ones
    cache.ensure_capacity(2 * BLOCK_SIZE)
    assert blocks.num_free == 4
    cache.close()
    assert blocks.num_free == 10


def test_what_a_clip_takes_is_what_is_counted() -> None:
    decoder = create_decoder(load(replace(MONO, window=3)).weights, 4)
    assert isinstance(decoder, CpuDecoder)
    before, text = decoder._blocks.num_free, torch.zeros(70, decoder.shape.dim)
    cache = decoder.open(text, True, 100).cache
    assert isinstance(cache, PagedKVCache)
    cache.ensure_capacity(100)
    taken = before - decoder._blocks.num_free
    numbers = (
        2 * decoder.shape.layers * decoder.shape.dim * BLOCK_SIZE
    )  # in a block: a key and a value of each position
    scales = 2 * decoder.shape.layers * decoder.shape.heads * BLOCK_SIZE  # in an int8 block
    assert decoder.kv_cache_bytes([KVCacheRequest(2, 100, 70)]) == taken * 4 * numbers
    assert decoder.kv_cache_bytes([]) == 0
    decoder = create_decoder(load(replace(MONO, window=3), INT8).weights, 4)
    assert isinstance(decoder, CpuDecoder)
    block, fused = numbers + 4 * scales, fused_prompt_bytes(decoder.shape, MAX_FUSED_TOKENS)
    assert decoder.kv_cache_bytes([KVCacheRequest(2, 100, MAX_FUSED_TOKENS)]) == 4 * block + fused
    assert decoder.kv_cache_bytes([KVCacheRequest(2, 100, MAX_FUSED_TOKENS + 1)]) == 5 * block


@pytest.mark.parametrize("how", [FLOAT32_NATIVE, INT8], ids=lambda how: how.name)
def test_a_clip_that_went_to_infinity_spoils_none_after_it(how: Precision) -> None:
    model = create_engine(MONO, precision=how)
    decoder = model._decoder
    assert isinstance(decoder, CpuDecoder)
    wanted = run_requests(create_engine(MONO, precision=how), {"one": params(duration=0.4, seed=1)})
    decoder._blocks._pages.tensor.fill_(255)  # as floats they are no numbers
    assert_same(run_requests(model, {"one": params(duration=0.4, seed=1)}), wanted)


@pytest.mark.parametrize("how", [FLOAT32_NATIVE, INT8], ids=lambda how: how.name)
def test_what_is_not_a_number_is_seen(how: Precision) -> None:
    """Wherever it begins, it is told to whoever waits for the clip, and to nobody else."""
    weights = load(MONO, how).weights
    decoder = create_decoder(weights, 2)
    pair = [decoder.open(torch.zeros(3, decoder.shape.dim), True, 30) for _ in range(2)]
    rows = SamplingParams.from_lists([0, 0], [1.0, 1.0], [250, 250], [0.0, 0.0], CPU)
    cfg = torch.tensor([3.0, 3.0])
    for value in (torch.nan, torch.inf):
        kept, weights.embeddings[0, 7] = weights.embeddings[0, 7].clone(), value
        drawn = decoder.step_and_sample(pair, [[7, 1, 1, 1], [1, 1, 1, 1]], cfg, rows, [1, 1])
        weights.embeddings[0, 7] = kept
        assert drawn[0] == [-1] * 4
        assert min(drawn[1]) >= 0


def test_where_its_time_goes_is_counted() -> None:
    decoder = create_decoder(load(MONO).weights, 1)
    assert isinstance(decoder, CpuDecoder)
    sequence = decoder.open(torch.zeros(3, decoder.shape.dim), True, 30)
    decoder.step([sequence], torch.zeros(1, 4, dtype=torch.int64), torch.tensor([3.0]))
    spent = decoder.phase_times()
    assert set(spent) == set(PHASES)
    assert spent["products"] > 0
    assert not any(decoder.phase_times().values())


def test_sizes_that_the_kernel_does_not_have() -> None:
    odd = replace(MONO, dim=80, heads=4)  # heads are 20 wide
    files = loading.open_files(Source("odd", folder(odd)))
    assert type(create_decoder(loading.load_weights(files, CPU, FLOAT32_NATIVE), 1)) is EagerDecoder
    with pytest.raises(LoadFailed, match="int8"):
        loading.load_weights(files, CPU, INT8)


def test_a_machine_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from musicgen_bento.precision import default_precision, supported_precisions

    monkeypatch.setattr(bindings, "library", lambda: None)
    assert "int8" not in supported_precisions(CPU)
    assert default_precision(CPU) == supported_precisions(CPU)["float32"] == FLOAT32
    model = create_engine(MONO, precision=FLOAT32)
    assert type(model._decoder) is EagerDecoder
    story = run_requests(model, {"one": params(duration=0.3)})["one"].events
    assert story.audio.std() > 0


def test_only_what_is_filled_takes_memory() -> None:
    model = create_engine(MONO, max_slots=4)
    for number, coef in enumerate((1.0, 3.0)):
        model.add_request(str(number), params(duration=1.0, cfg_coef=coef), EventLog())
    for _ in range(10):
        model.step()
    decoder = model._decoder
    assert isinstance(decoder, CpuDecoder)
    assert int(decoder._blocks._pages.tensor.any(dim=1).sum()) == 2 + 1 + 2  # two prompts, a row and a pair of rows


# ---- memory by the page


def test_pages_take_memory_when_they_are_written_and_give_it_back() -> None:
    process, many = psutil.Process(), 64 * 2**20
    begin = process.memory_info().rss
    pages = MmapTensor(4, many // 16)
    assert process.memory_info().rss - begin < many / 8
    pages.tensor[1].fill_(1.0)
    assert process.memory_info().rss - begin > many / 5
    pages.release_pages(pages.tensor[1])
    assert process.memory_info().rss - begin < many / 8
    assert not pages.tensor.any()


def test_blocks_in_large_pages_are_given_back_in_whole_pages() -> None:
    """What a neighbour still has is as it was; with the last of them all is zeros."""
    blocks = BlockPool(8, 3 * 2**19)
    for number in range(8):
        assert blocks.allocate() == number
        blocks._pages.tensor[number] = number + 1
    blocks.free([1, 3, 5, 7])
    for number in (0, 2, 4, 6):
        assert (blocks._pages.tensor[number] == number + 1).all()
    assert blocks.num_free == 4
    blocks.free([0, 6, 2, 4])
    flat = blocks._pages.tensor.flatten()
    begin, end = -flat.data_ptr() % HUGE_PAGE_BYTES, len(flat) - (flat.data_ptr() + len(flat)) % HUGE_PAGE_BYTES
    assert end - begin >= HUGE_PAGE_BYTES
    assert not flat[begin:end].any()
    assert [blocks.allocate() for _ in range(8)] == list(range(8))


def test_what_shares_a_page_with_others_is_left() -> None:
    pages = MmapTensor(mmap.PAGESIZE)  # four pages
    pages.tensor.fill_(1.0)
    quarter = mmap.PAGESIZE // 4
    pages.release_pages(pages.tensor[10 : 3 * quarter - 10])
    kept = [float(part.sum()) for part in pages.tensor.split(quarter)]
    assert kept == [quarter, 0, quarter, quarter]


def test_a_file_that_was_read_is_forgotten_and_read_again(tmp_path: Path) -> None:
    wanted = {
        "a": torch.randn(3, 2**20),
        "b": torch.arange(2**20),
        "strided": torch.randn(2**16, 8)[:, 0],
        "repeated": torch.randn(1).expand(1024, 2**16),  # larger than the file
    }
    torch.save(wanted, tmp_path / "file")
    mapped = torch.load(tmp_path / "file", mmap=True)
    for name, tensor in wanted.items():
        assert torch.equal(mapped[name], tensor)
    heap = torch.full((2**20,), 7.0)
    process = psutil.Process()
    before = process.memory_info().rss
    evict_file_pages(tmp_path / "another")
    evict_file_pages(tmp_path / "file")
    assert (heap == 7).all()
    assert process.memory_info().rss < before - 0.9 * (tmp_path / "file").stat().st_size
    for name, tensor in wanted.items():
        assert torch.equal(mapped[name], tensor)
