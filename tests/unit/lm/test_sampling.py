"""Sampling, compared with AudioCraft's distributions, and the properties of the noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from audiocraft.utils import utils
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_bento.lm.sampling import SamplingParams, gumbel_noise, sample

CPU = torch.device("cpu")
DRAWS = 40_000


def uniform_params(
    count: int, seed: int = 0, temperature: float = 1.0, top_k: int = 0, top_p: float = 0.0
) -> SamplingParams:
    return SamplingParams.from_lists([seed] * count, [temperature] * count, [top_k] * count, [top_p] * count, CPU)


def audiocraft_distribution(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """The probabilities that AudioCraft's sampler draws from, recorded in its own code in place of the draw."""
    recorded: list[torch.Tensor] = []

    def record(probabilities: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        recorded.append(probabilities.clone())
        return probabilities.argmax(dim=-1, keepdim=True)

    probabilities = torch.softmax(logits / temperature, dim=-1)[None, None]
    original, utils.multinomial = utils.multinomial, record
    try:
        if top_p > 0:
            utils.sample_top_p(probabilities.clone(), p=top_p)
            order = probabilities.sort(dim=-1, descending=True).indices
            return torch.zeros_like(probabilities).scatter(-1, order, recorded[0])[0, 0]
        if top_k > 0:
            utils.sample_top_k(probabilities.clone(), k=top_k)
            return recorded[0][0, 0]
    finally:
        utils.multinomial = original
    return probabilities[0, 0]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 0.0), (0.5, 0, 0.0), (1.7, 0, 0.0), (1.0, 5, 0.0), (0.8, 20, 0.0), (1.0, 0, 0.7), (1.3, 5, 0.9)],
)
def test_samples_follow_the_distribution_of_audiocraft(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(32, generator=torch.Generator().manual_seed(3)) * 2
    expected = audiocraft_distribution(logits, temperature, top_k, top_p)
    repeated = logits.expand(DRAWS, 1, -1)
    sampled = sample(repeated, uniform_params(DRAWS, 1, temperature, top_k, top_p), torch.arange(DRAWS))[:, 0]
    counts = torch.bincount(sampled, minlength=32).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi2 = ((counts - DRAWS * expected) ** 2 / (DRAWS * expected).clamp(min=1e-9))[possible].sum().item()
    freedom = int(possible.sum()) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)  # five sigma; the samples are fixed by their seed


@settings(max_examples=60, deadline=None)
@given(top_k=st.integers(0, 32), top_p=st.floats(0, 1), temperature=st.floats(0.1, 3), seed=st.integers(0, 2**32 - 1))
def test_every_sample_is_possible_in_audiocraft(top_k: int, top_p: float, temperature: float, seed: int) -> None:
    logits = torch.randn(32, generator=torch.Generator().manual_seed(seed)) * 3
    expected = audiocraft_distribution(logits, temperature, top_k, top_p)
    sampled = sample(logits.expand(200, 1, -1), uniform_params(200, seed, temperature, top_k, top_p), torch.arange(200))
    # At the edge of top_p, float sums may differ in the last bit, so the next likely entry is allowed too.
    allowed = expected > 0
    if top_p > 0:
        order = logits.sort(descending=True).indices
        allowed[order[: int(allowed.sum()) + 1]] = True
    assert bool(allowed[sampled].all())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**32 - 1),
            st.sampled_from([0.0, 0.5, 1.0]),
            st.sampled_from([0, 1, 5, 100]),
            st.sampled_from([0.0, 0.5, 0.9]),
            st.integers(0, 10_000),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_samples_do_not_depend_on_the_batch(parameters: list[tuple[int, float, int, float, int]]) -> None:
    logits = torch.randn(len(parameters), 4, 64, generator=torch.Generator().manual_seed(1))
    seeds, temperatures, ks, ps, noise_steps = map(list, zip(*parameters, strict=True))
    params = SamplingParams.from_lists(seeds, temperatures, ks, ps, CPU)
    batched = sample(logits, params, torch.tensor(noise_steps))
    for i, (seed, temperature, k, p, noise_step) in enumerate(parameters):
        alone = sample(
            logits[i : i + 1],
            SamplingParams.from_lists([seed], [temperature], [k], [p], CPU),
            torch.tensor([noise_step]),
        )
        assert torch.equal(alone[0], batched[i])


def test_top_k_of_one_and_temperature_zero_are_greedy() -> None:
    logits = torch.randn(50, 4, 2048)
    for greedy in (
        uniform_params(50, top_k=1),
        uniform_params(50, temperature=0.0),
        uniform_params(50, top_p=1e-300),
        uniform_params(50, temperature=1e-300),
    ):
        assert torch.equal(sample(logits, greedy, torch.arange(50)), logits.argmax(dim=-1))


def test_a_top_k_of_the_whole_codebook_or_more_is_off() -> None:
    logits = torch.randn(20, 4, 64)
    noise_steps = torch.arange(20)
    assert torch.equal(
        sample(logits, uniform_params(20, top_k=64), noise_steps), sample(logits, uniform_params(20), noise_steps)
    )
    assert torch.equal(
        sample(logits, uniform_params(20, top_k=9_999), noise_steps), sample(logits, uniform_params(20), noise_steps)
    )


def test_noise_is_gumbel_and_uncorrelated() -> None:
    noise = gumbel_noise(torch.arange(32), torch.zeros(32, dtype=torch.int64), 4, 2048)
    assert bool(noise.isfinite().all())
    assert abs(noise.mean().item() - 0.57722) < 0.01
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.03
    for other in (
        gumbel_noise(torch.arange(1, 33), torch.zeros(32, dtype=torch.int64), 4, 2048),  # the next seed
        gumbel_noise(torch.arange(32), torch.ones(32, dtype=torch.int64), 4, 2048),  # the next position
        noise.roll(1, dims=1),  # the next codebook
        noise.roll(1, dims=2),  # the next entry
    ):
        pair = torch.stack([noise.flatten(), other.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.01


def test_noise_depends_only_on_seed_noise_step_and_codebook() -> None:
    one = gumbel_noise(torch.tensor([7, 9]), torch.tensor([3, 4]), 4, 100)
    assert torch.equal(one[1:], gumbel_noise(torch.tensor([9]), torch.tensor([4]), 4, 100))
    assert torch.equal(one[1:, :2], gumbel_noise(torch.tensor([9]), torch.tensor([4]), 2, 100))
