"""The decoder that ONNX Runtime runs, against the one that torch runs; its seats, and the memory behind them."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from musicgen_bento.engine.compiled_decoder import CompiledDecoder
from musicgen_bento.engine.conditioning import TextConditioner
from musicgen_bento.engine.decoder import EagerDecoder, Need
from musicgen_bento.engine.decoders import decoder_of
from musicgen_bento.engine.pages import Pages, forget_file
from musicgen_bento.engine.sampling import SamplingRows
from musicgen_bento.engine.types import GenerationParams
from musicgen_bento.precision import FLOAT32, FLOAT32_COMPILED, INT8, Precision
from tests.checkpoints import Recipe
from tests.models import MONO, PREPEND, STEREO, Story, engine, load, make, params
from tests.seated import COMPANY, assert_same, plain


@pytest.mark.parametrize("recipe", [MONO, STEREO, PREPEND])
def test_logits_of_clips_at_different_positions(recipe: Recipe) -> None:
    """Three clips, one without guidance, that join one after the other; two of them then go on without the third."""
    found = []
    for how in (FLOAT32_COMPILED, FLOAT32):
        model = load(recipe, how)
        hears, decoder = TextConditioner(model), decoder_of(model.weights, 3)
        assert type(decoder) is (CompiledDecoder if how.compiled else EagerDecoder)
        torch.manual_seed(0)
        sequences: list[Any] = []
        said = []
        for number in range(12):
            if number in (0, 3, 4):
                text = hears.encode(hears.tokenize("techno " * (1 + 9 * number)))
                sequence = decoder.open(text, guided=number != 3, positions=40)
                if (known := decoder.prefix(sequence)).shape[1]:
                    decoder.prefill(sequence, known)
                decoder.prefill(sequence, torch.randn(sequence.rows, 5, model.weights.shape.dim) * 0.1)
                sequences.append(sequence)
            if number == 8:
                decoder.close(sequences.pop(1))
            some = sequences[::-1]  # in no order of seats
            tokens = torch.randint(model.weights.shape.card, (len(some), model.weights.shape.codebooks))
            said.append(decoder.step(some, tokens, torch.linspace(2, 4, len(some))))
        found.append(torch.cat(said))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_seats_are_given_back() -> None:
    model = engine(MONO)
    make(model, COMPANY)
    make(model, {"one": params(duration=0.2)})
    assert model._decoder._seated == []
    assert not model._decoder._own.any()  # those of four guests are zeros again


def test_nobody_sits_behind_the_last_seat() -> None:
    decoder = decoder_of(load(MONO).weights, 2)
    text = torch.zeros(3, decoder.shape.dim)
    seated = [decoder.open(text, True, 30) for _ in range(2)]
    with pytest.raises(IndexError):
        decoder.open(text, True, 30)
    decoder.close(seated.pop(0))
    decoder.open(text, True, 30)


def test_only_what_is_filled_is_written() -> None:
    """What is not written takes no memory."""
    model = engine(MONO, slots=4)
    for number, coef in enumerate((1.0, 3.0)):
        model.submit(str(number), params(duration=1.0, cfg_coef=coef), Story())
    for _ in range(10):
        model.step()
    positions = [int(row.any(dim=-1).sum()) for row in model._decoder._own[0, 0, :, 0]]
    lengths = [slot.sequence.cache.length for slot in model._running if slot.sequence]
    assert positions == [lengths[0], 1, lengths[1], lengths[1], 0, 0, 0, 0]
    assert min(lengths) > 5


def test_a_clip_that_went_to_infinity_spoils_none_beside_it() -> None:
    model = engine(MONO)
    decoder = model._decoder
    request: GenerationParams = params(duration=0.4, seed=1)
    wanted = make(plain(MONO), {"one": request})
    decoder._own.fill_(torch.nan)
    assert_same(make(model, {"one": request}), wanted)


@pytest.mark.parametrize("how", [FLOAT32_COMPILED, INT8])
def test_what_is_not_a_number_is_seen(how: Precision) -> None:
    """Wherever it begins, it is told to whoever waits for the clip."""
    model = load(MONO, how)
    decoder = CompiledDecoder(model.weights, 2)
    pair = [decoder.open(torch.zeros(3, decoder.shape.dim), True, 30) for _ in range(2)]
    rows = SamplingRows.of([0, 0], [1.0, 1.0], [250, 250], [0.0, 0.0], torch.device("cpu"))
    decoder._embeddings = decoder._embeddings.clone()
    decoder._embeddings[0, 7] = torch.nan
    tokens = torch.tensor([[7, 1, 1, 1], [1, 1, 1, 1]])
    drawn = decoder.draw(pair, tokens, torch.tensor([3.0, 3.0]), rows, torch.tensor([1, 1]))
    assert (drawn[0] == -1).all()
    assert (drawn[1] >= 0).all()


def test_heads_of_any_width_begin_with_a_page() -> None:
    decoder = CompiledDecoder(load(replace(MONO, dim=96, heads=2), INT8).weights, 2)  # heads are 48 wide
    assert decoder._own[0, 0, 0, 0].nbytes % mmap.PAGESIZE == 0


def test_what_it_remembers_is_counted_with_the_longest_prompt() -> None:
    decoder = decoder_of(load(MONO).weights, 4)
    one = decoder.bytes([Need(2, 30, 5)])
    assert decoder.bytes([]) == 0
    assert decoder.bytes([Need(2, 30, 5)] * 3) == 3 * one
    among_long = decoder.bytes([Need(2, 30, 5), Need(2, 30, 80)]) - decoder.bytes([Need(2, 30, 80)])
    assert among_long - one == 2 * decoder.shape.layers * decoder.shape.dim * (80 - 16) * 4


def test_who_moves_up_takes_no_more_than_before() -> None:
    """A long clip leaves, and a short one without guidance takes its seat."""
    weights = load(MONO).weights
    hears, decoder = TextConditioner(load(MONO)), decoder_of(weights, 2)
    text = hears.encode(hears.tokenize("techno"))
    long, short = decoder.open(text, True, 60), decoder.open(text, False, 60)
    torch.manual_seed(0)
    decoder.prefill(long, torch.randn(2, 40, weights.shape.dim))
    decoder.prefill(short, torch.randn(1, 8, weights.shape.dim))
    decoder.close(long)
    assert isinstance(decoder, CompiledDecoder)
    filled = decoder._own.any(dim=-1).any(dim=3).any(dim=0).any(dim=0)  # [rows, positions]
    assert filled.sum(dim=1).tolist() == [8, 0, 0, 0]


def test_who_sits_between_is_not_disturbed() -> None:
    """Two clips step while the one between them reads what it knows; then all three."""
    found = []
    for how in (FLOAT32_COMPILED, FLOAT32):
        model = load(MONO, how)
        hears, decoder = TextConditioner(model), decoder_of(model.weights, 3)
        torch.manual_seed(0)
        text = hears.encode(hears.tokenize("techno"))
        some = [decoder.open(text, True, 40) for _ in range(3)]
        known = torch.randn(2, 6, model.weights.shape.dim) * 0.1
        tokens = torch.randint(model.weights.shape.card, (3, 4))
        decoder.step([some[0], some[2]], tokens[:2], torch.full((2,), 3.0))
        decoder.prefill(some[1], known[:, :3])
        decoder.step([some[2], some[0]], tokens[1:], torch.full((2,), 3.0))
        decoder.prefill(some[1], known[:, 3:])
        found.append(decoder.step(some, tokens, torch.full((3,), 3.0)))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


# ---- memory by the page


def test_pages_take_memory_when_they_are_written_and_give_it_back() -> None:
    process, many = psutil.Process(), 64 * 2**20
    begin = process.memory_info().rss
    pages = Pages(4, many // 16)
    assert process.memory_info().rss - begin < many / 8
    pages.tensor[1].fill_(1.0)
    assert process.memory_info().rss - begin > many / 5
    pages.forget(pages.tensor[1])
    assert process.memory_info().rss - begin < many / 8
    assert not pages.tensor.any()


def test_what_shares_a_page_with_others_is_left() -> None:
    pages = Pages(mmap.PAGESIZE)  # four pages
    pages.tensor.fill_(1.0)
    quarter = mmap.PAGESIZE // 4
    pages.forget(pages.tensor[10 : 3 * quarter - 10])
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
    process = psutil.Process()
    before = process.memory_info().rss
    forget_file(mapped.values())
    assert process.memory_info().rss < before - 0.9 * (tmp_path / "file").stat().st_size
    for name, tensor in wanted.items():
        assert torch.equal(mapped[name], tensor)
