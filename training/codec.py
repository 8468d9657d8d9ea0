"""The codec: AudioCraft's EnCodec (Défossez et al. 2022), small, trained to give the songs back.

Two losses: the error of the waveform in decibels, below 1.5 kHz, and of log-mel spectrograms at several resolutions; no
discriminator. Above, 50 vectors of 64 numbers a second cannot say where in its period a tone is, and a codec that is
asked for the waveform there answers with nothing: cymbals and brightness were gone. The first steps go without
quantisation; then each codebook is found by k-means on what the encoder says by then, and follows it as a moving
average.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import torch
from scipy.signal import firwin
from torch import Tensor, nn
from torch.nn import functional as F

from training.dataset import SECONDS, Dataset
from training.loop import Clock, cosine, steps
from training.plan import CARD, CODEBOOKS, FRAME_RATE, HOP, SAMPLE_RATE, Plan
from training.released import configuration

MELS = {256: 12, 512: 24, 1024: 48, 2048: 80}  # bands, by the size of the transform
FAINT = 3e-3  # what a band's magnitude is compared above
WAVE_BELOW = 1_500  # Hz
SPECTRAL_SHARE = 4.0
KMEANS_WINDOWS, KMEANS_ROUNDS = 512, 15


def build(plan: Plan) -> Any:
    """The untrained codec."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*weight_norm", category=FutureWarning)
    from audiocraft.models import builders

    torch.manual_seed(plan.seed)
    return builders.get_compression_model(configuration(plan))


def train(plan: Plan, songs: Dataset, clock: Clock) -> Any:
    """Train the codec, or go on; gives it in eval mode once it is done.

    Raises:
        OutOfTime: the clock ran out; call again.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = build(plan).to(device).train()
    optimizer = torch.optim.AdamW(codec.parameters(), lr=plan.codec_rate, betas=(0.8, 0.99), weight_decay=1e-4)
    low = torch.from_numpy(firwin(129, WAVE_BELOW, fs=SAMPLE_RATE)).float().to(device)[None, None]
    bands = mel_bands(device)

    def step(number: int) -> dict[str, float]:
        wav = torch.from_numpy(_windows(plan, songs, number)).to(device)[:, None]
        for group in optimizer.param_groups:
            group["lr"] = plan.codec_rate * cosine(number, plan.codec_steps)
        torch.manual_seed(plan.seed * 1_000_003 + number)  # which songs revive a dead entry
        if number == plan.plain_steps:
            _find_codebooks(plan, codec, songs, device)
        latent = codec.encoder(wav)
        penalty = torch.zeros((), device=device)
        if number >= plan.plain_steps:
            quantized = codec.quantizer(latent, FRAME_RATE)
            latent, penalty = quantized.x, quantized.penalty
        made = codec.decoder(latent)[..., : wav.shape[-1]]
        wave = waveform_error(F.conv1d(made, low, padding="same"), F.conv1d(wav, low, padding="same"))
        spectra = spectral_error(made[:, 0], wav[:, 0], bands)
        optimizer.zero_grad(set_to_none=True)
        gradient = _balanced(made, 0.1 * wave, spectra, SPECTRAL_SHARE)
        # a loss whose gradient with respect to `made` is `gradient`
        ((made * gradient).sum() + 0.25 * penalty).backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        return {
            "sdr": -float(wave.detach()),
            "spectral": float(spectra.detach()),
            "commitment": float(penalty.detach()),
        }

    steps("codec", plan.folder, plan.codec_steps, {"model": codec, "optimizer": optimizer}, step, clock)
    return codec.eval().requires_grad_(False)


def _windows(plan: Plan, songs: Dataset, number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The batch of a step, [B, T]."""
    rng = np.random.default_rng([plan.seed, 10, number])
    length = int(plan.codec_seconds * SAMPLE_RATE) // HOP * HOP
    frames = int((SECONDS - 1) * FRAME_RATE)
    # at whole frames, where notes begin: elsewhere the tokens need not be good
    at = [(int(rng.integers(len(songs))), HOP * int(rng.integers(frames))) for _ in range(plan.codec_batch)]
    gain = rng.uniform(0.5, 1.5, (plan.codec_batch, 1)).astype(np.float32)
    return gain * np.stack([songs.window(song, begin, length) for song, begin in at])


def _balanced(made: Tensor, wave: Tensor, spectra: Tensor, share: float) -> Tensor:
    """Both losses' gradients with respect to `made`, the second `share` times as large as the first.

    After EnCodec's balancer: left to their own sizes one of them wins, and the other is never learnt.
    """
    first = torch.autograd.grad(wave, made, retain_graph=True)[0]
    second = torch.autograd.grad(spectra, made, retain_graph=True)[0]
    total: Tensor = first + second * (share * first.norm() / second.norm().clamp(min=1e-12))
    return total


def waveform_error(made: Tensor, wav: Tensor) -> Tensor:
    """Energy of the error over that of the signal, in dB, the mean over [B, 1, T]; near-silent windows count little."""
    error = (made - wav).square().mean(dim=-1) + 1e-6
    return (10 * torch.log10(error / (wav.square().mean(dim=-1) + 1e-4) + 1e-3)).mean()


def mel_bands(device: torch.device) -> dict[int, Tensor]:
    """Filters [bands, frequencies] for each size of transform."""
    import librosa

    return {
        size: torch.from_numpy(librosa.filters.mel(sr=SAMPLE_RATE, n_fft=size, n_mels=count, fmin=50)).to(device)
        for size, count in MELS.items()
    }


def spectral_error(made: Tensor, wav: Tensor, bands: dict[int, Tensor]) -> Tensor:
    """Of [B, T]: the error of the logarithms of mel bands, the mean over resolutions, bands and time."""
    total = torch.zeros((), device=wav.device)
    for size, filters in bands.items():
        window = torch.hann_window(size, device=wav.device)
        one, other = (
            (filters @ torch.stft(x, size, size // 4, window=window, return_complex=True).abs().square() + 1e-6).sqrt()
            for x in (made, wav)
        )
        total = total + (torch.log(one + FAINT) - torch.log(other + FAINT)).abs().mean()
    return total / len(bands)


@torch.no_grad()
def _find_codebooks(plan: Plan, codec: Any, songs: Dataset, device: torch.device) -> None:
    """Each codebook by k-means on what the ones before it leave."""
    found = []
    for number in range(KMEANS_WINDOWS // plan.codec_batch):
        wav = torch.from_numpy(_windows(plan, songs, 1_000_000 + number)).to(device)[:, None]
        found.append(codec.encoder(wav).transpose(1, 2).reshape(-1, plan.latent))
    rest = torch.cat(found)
    for layer in codec.quantizer.vq.layers:
        centres, sizes = kmeans(rest, CARD)
        book = layer._codebook
        batches = len(rest) / (plan.codec_batch * plan.codec_seconds * FRAME_RATE)
        book.cluster_size.copy_(sizes / batches)
        book.embed.copy_(centres)
        book.embed_avg.copy_(centres * (sizes / batches)[:, None])
        rest = rest - centres[torch.cdist(rest, centres).argmin(dim=1)]


def kmeans(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centres [count, D] of points [N, D] and how many each has (Lloyd 1982); empty ones move to a point."""
    centres = points[torch.randperm(len(points), device=points.device)[:count]].clone()
    sizes = torch.ones(count, device=points.device)
    for _ in range(KMEANS_ROUNDS):
        nearest = torch.cdist(points, centres).argmin(dim=1)
        sizes = torch.bincount(nearest, minlength=count).to(points.dtype)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        fresh = points[torch.randint(len(points), (count,), device=points.device)]
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], fresh)
    return centres, sizes.clamp(min=1)


@torch.no_grad()
def tokens(codec: Any, songs: Dataset, number: int) -> Tensor:
    """A song's tokens [K, frames]."""
    device = next(codec.parameters()).device
    wav = torch.from_numpy(songs.window(number, 0, int(SECONDS * SAMPLE_RATE))).to(device)
    codes: Tensor = codec.encode(wav[None, None])[0][0]
    assert codes.shape[0] == CODEBOOKS
    return codes.to(torch.int16).cpu()
