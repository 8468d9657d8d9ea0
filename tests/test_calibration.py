"""Keys and values in 8 bits: how far a model's go, and what that leaves of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from musicgen_bento.engine.calibration import calibrated
from musicgen_bento.engine.compiled import CompiledWeights
from musicgen_bento.engine.compiled_decoder import CompiledDecoder
from musicgen_bento.engine.conditioning import TextConditioner
from musicgen_bento.precision import FLOAT32_COMPILED, INT8
from tests.checkpoints import Recipe
from tests.models import MONO, PREPEND, STEREO, load

FLOATS = replace(INT8, cache=torch.float32, cached=4)  # matrices in 8 bits, and keys and values in 32


def weights_of(recipe: Recipe) -> CompiledWeights:
    weights = load(recipe, INT8).weights
    assert isinstance(weights, CompiledWeights)
    return weights


def played(recipe: Recipe, how: Any = INT8, steps: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a clip of random tokens, and what is remembered of it."""
    model = load(recipe, how)
    hears, decoder = TextConditioner(model), CompiledDecoder(model.weights, 1)
    text = hears.encode(hears.tokenize("slow techno with a deep bass"))
    sequence = decoder.open(text, guided=True, positions=60)
    if (known := decoder.prefix(sequence)).shape[1]:
        decoder.prefill(sequence, known)
    dice = torch.Generator().manual_seed(5)
    shape = model.weights.shape
    tokens = torch.randint(shape.card, (steps, 1, shape.codebooks), generator=dice)
    said = [decoder.step([sequence], each, torch.tensor([3.0])) for each in tokens]
    return torch.cat(said), sequence.cache.both[..., : sequence.cache.length, :].clone()


@pytest.mark.parametrize("recipe", [MONO, STEREO, PREPEND])
def test_hardly_anything_is_cut_off_and_the_range_is_used(recipe: Recipe) -> None:
    kept = played(recipe)[1].float().abs()
    assert (kept >= 127).float().mean() < 1e-3
    assert kept.amax(dim=(2, 4)).median() > 48  # of each channel


def test_late_positions_are_within_range_too() -> None:
    """Where a model's keys say where they are more than what they are of."""
    weights = weights_of(MONO)
    quiet = CompiledDecoder(replace(weights, embeddings=0.1 * weights.embeddings), 1)
    scales = calibrated(replace(weights, embeddings=0.1 * weights.embeddings)).scales
    assert scales is not None
    quiet._weights = replace(quiet._weights, scales=scales)
    sequence = quiet.open(torch.zeros(3, weights.shape.dim), True, 1500)
    quiet.prefill(sequence, 0.1 * torch.randn(2, 1400, weights.shape.dim))
    kept = sequence.cache.both[..., :1400, :].float().abs()
    assert (kept >= 127).float().mean() < 1e-3


@pytest.mark.parametrize("recipe", [MONO, STEREO, PREPEND])
def test_8_bits_are_near_to_floats(recipe: Recipe) -> None:
    kept, floats = played(recipe)[0], played(recipe, FLOATS)[0]
    assert ((kept - floats).norm() / floats.norm()) < 0.02
    assert not torch.equal(kept, floats)


def test_scales_that_fit_are_better_than_wide_ones() -> None:
    weights = weights_of(MONO)
    assert weights.scales is not None
    wide = replace(weights, scales=8 * weights.scales)
    again = calibrated(wide).scales
    assert again is not None
    assert (again / weights.scales).log2().abs().max() < 0.26  # the next of four to an octave
    decoders = [CompiledDecoder(each, 1) for each in (weights, wide)]
    wanted = CompiledDecoder(load(MONO, FLOATS).weights, 1)  # type: ignore[arg-type]
    torch.manual_seed(0)
    text, x = torch.randn(4, weights.shape.dim), torch.randn(2, 12, weights.shape.dim)
    said = []
    for decoder in (wanted, *decoders):
        sequence = decoder.open(text, True, 20)
        decoder.prefill(sequence, x)
        said.append(decoder.step([sequence], torch.zeros(1, 4, dtype=torch.int64), torch.tensor([3.0])))
    near, far = ((each - said[0]).norm() for each in said[1:])
    assert near < far / 2


def test_floats_need_none() -> None:
    weights = load(MONO, FLOAT32_COMPILED).weights
    assert isinstance(weights, CompiledWeights)
    assert weights.scales is None
    assert calibrated(weights) is weights
