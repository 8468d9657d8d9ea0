"""Samples tokens from logits, each request with its own temperature, top-k, top-p and seed.

A sample from softmax(logits) is argmax(logits + g) with standard Gumbel noise g (Gumbel 1954; Maddison et al. 2014).
The noise is a hash of (seed, noise step, codebook, entry) and of nothing else. There is no generator state, so a sample
depends on no other request and on no history. The hash is exact on every device; the logarithms may differ in a bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Constants of SplitMix64 (Steele, Lea, Flood 2014) as signed 64-bit integers, which torch multiplies modulo 2**64.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64

MIN_POSITIVE = 1e-6  # the smallest temperature that is not greedy, and the smallest top_p


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The sampling parameters of B requests.

    Attributes:
        seeds: [B] int64.
        temperature: [B] float32; 0 is greedy.
        top_k: [B] int64; 0 is off.
        top_p: [B] float32; 0 is off. Where it is on, it overrides top_k, as in AudioCraft.
        largest_top_k: the largest top_k of the requests whose top_p is off; 0 skips top-k.
        any_top_p: whether any top_p is on.
        any_noise: whether any request is not greedy.
    """

    seeds: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    largest_top_k: int
    any_top_p: bool
    any_noise: bool

    @staticmethod
    def from_lists(
        seeds: list[int], temperature: list[float], top_k: list[int], top_p: list[float], device: torch.device
    ) -> SamplingParams:
        """Create the parameters from one value per request. A temperature too small for float32 is greedy."""
        limits = [0 if p > 0 else k for k, p in zip(top_k, top_p, strict=True)]
        temperature = [t if t >= MIN_POSITIVE else 0.0 for t in temperature]
        top_p = [max(p, MIN_POSITIVE) if p > 0 else 0.0 for p in top_p]
        return SamplingParams(
            seeds=torch.tensor(seeds, dtype=torch.int64, device=device),
            temperature=torch.tensor(temperature, dtype=torch.float32, device=device),
            top_k=torch.tensor(limits, dtype=torch.int64, device=device),
            top_p=torch.tensor(top_p, dtype=torch.float32, device=device),
            largest_top_k=max(limits),
            any_top_p=any(p > 0 for p in top_p),
            any_noise=any(t > 0 for t in temperature),
        )


def sample(logits: Tensor, params: SamplingParams, noise_steps: Tensor) -> Tensor:
    """Sample one token for each request and codebook.

    Args:
        logits: [B, K, codebook_size] float32.
        params: the sampling parameters of the B requests.
        noise_steps: [B] int64; each keys the noise of one position.

    Returns:
        Tokens [B, K] int64.
    """
    if not params.any_noise:
        return logits.argmax(dim=-1)
    greedy = params.temperature == 0
    scaled = logits / params.temperature.masked_fill(greedy, 1.0)[:, None, None]
    if params.largest_top_k:
        scaled = _keep_top_k(scaled, params.top_k, params.largest_top_k)
    if params.any_top_p:
        scaled = _keep_top_p(scaled, params.top_p)
    noise = gumbel_noise(params.seeds, noise_steps, *logits.shape[1:])
    return (scaled + noise.masked_fill(greedy[:, None, None], 0.0)).argmax(dim=-1)


def _keep_top_k(logits: Tensor, top_k: Tensor, largest: int) -> Tensor:
    """Set the entries below a request's k-th largest to -inf; entries equal to it stay."""
    codebook_size = logits.shape[-1]
    if largest >= codebook_size:
        top_k = torch.where(top_k >= codebook_size, 0, top_k)
        largest = codebook_size
    top = logits.topk(largest, dim=-1).values  # [B, K, largest]
    last = (top_k - 1).clamp(min=0)[:, None, None].expand(-1, logits.shape[1], 1)
    threshold = top.gather(-1, last)
    return logits.masked_fill((logits < threshold) & (top_k > 0)[:, None, None], -torch.inf)


def _keep_top_p(logits: Tensor, top_p: Tensor) -> Tensor:
    """Set entries to -inf after the likeliest ones whose sum exceeds top_p; the entry that exceeds it stays."""
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = (before > top_p[:, None, None]) & (top_p > 0)[:, None, None]
    return logits.masked_fill(dropped.gather(-1, order.argsort(dim=-1)), -torch.inf)


def gumbel_noise(seeds: Tensor, noise_steps: Tensor, codebooks: int, codebook_size: int) -> Tensor:
    """Compute standard Gumbel noise [B, codebooks, codebook_size], float32, from seeds [B] and noise steps [B]."""
    # Entries count from 1, because the hash of 0 is 0.
    entries = torch.arange(1, codebooks * codebook_size + 1, dtype=torch.int64, device=seeds.device)
    streams = _mix(_mix(seeds + _GOLDEN) + (noise_steps + 1) * _GOLDEN)  # [B]
    bits = _mix(streams[:, None] + entries * _GOLDEN)  # [B, codebooks * codebook_size]
    # 53 random bits plus one half, so never 0. float32 may round it up to 1, so clamp it to just below 1.
    uniform = (((bits >> 11) & (2**53 - 1)).to(torch.float64) + 0.5) * 2.0**-53
    exponential = -torch.log1p(-uniform.to(torch.float32).clamp(max=1 - 2**-24))
    return -torch.log(exponential).view(len(seeds), codebooks, codebook_size)


def _mix(x: Tensor) -> Tensor:
    """Apply the finalizer of SplitMix64 to int64 numbers."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift to the right without the sign, which torch's shift keeps."""
    return (x >> bits).bitwise_and((1 << (64 - bits)) - 1)
