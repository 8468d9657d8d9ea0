"""The codec: AudioCraft's EnCodec (Défossez et al. 2022), small, trained to give the songs back.

What it is asked for, without a discriminator:

- the waveform below 1.5 kHz. Above, 50 vectors of 64 numbers a second cannot say where in its period a tone is, and a
  codec that is asked for the waveform there answers with nothing;
- the magnitudes of mel bands at several resolutions, each band beside its own energy: drums are a hundredth of a song's
  energy above 6 kHz, and all there is;
- that its latents say how loud each band is, by one linear layer that is thrown away afterwards. The decoder learns to
  strike a drum within a hundred steps once the latents tell it when; left to itself the encoder never does, because the
  decoder makes nothing of it.

Some windows are drums alone. The first steps go without quantisation; then each codebook is found by k-means on what
the encoder says by then, and follows it as a moving average.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
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
from training.render import render
from training.songs import Song

MELS = {256: 12, 512: 24, 1024: 48, 2048: 80}  # bands, by the size of the transform
FAINT = 1e-3  # what the logarithm of a band's magnitude is taken above: -60 dBFS
WAVE_BELOW = 1_500  # Hz
QUIET = 0.03  # RMS: of a quieter window the waveform counts less
SPECTRAL_SHARE = 2.0  # of the gradient, beside the waveform's
LOG_SHARES = 0.1, 0.4  # of the spectral error: at first, and once there is something to be heard
STEP_SIZE = 0.01  # of the gradient of a window, beside the lesson and the commitment
COMMITMENT = 0.25
LESSON_BANDS = 8
INAUDIBLE = 1e-6  # the power of a band: -60 dBFS
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
    lesson = Lesson(plan).to(device)
    parameters = [*codec.parameters(), *lesson.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.codec_rate, betas=(0.8, 0.99), weight_decay=1e-4)
    low = torch.from_numpy(firwin(129, WAVE_BELOW, fs=SAMPLE_RATE)).float().to(device)[None, None]
    bands = {size: mel_bands(size, count).to(device) for size, count in MELS.items()}

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
        taught = lesson(latent, wav[:, 0])
        below = F.conv1d(wav, low, padding="same")
        wave = waveform_error(F.conv1d(made, low, padding="same"), below)
        spectra = spectral_error(made[:, 0], wav[:, 0], bands, LOG_SHARES[number >= plan.clean_from])
        optimizer.zero_grad(set_to_none=True)
        loudness = below.square().mean(dim=-1, keepdim=True).sqrt()
        gradient = loudness / (loudness + QUIET) * _direction(wave, made) + SPECTRAL_SHARE * _direction(spectra, made)
        # a loss whose gradient with respect to `made` is `gradient`
        ((made * STEP_SIZE * gradient).sum() + COMMITMENT * penalty + taught).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return {
            "sdr": -float(wave.detach()),
            "spectral": float(spectra.detach()),
            "lesson": float(taught.detach()),
            "commitment": float(penalty.detach()),
        }

    steps(
        "codec", plan.folder, plan.codec_steps, {"model": codec, "lesson": lesson, "optimizer": optimizer}, step, clock
    )
    return codec.eval().requires_grad_(False)


class Lesson(nn.Module):
    """What the latents are to say, read off them by one layer: how loud each of a few bands is in each frame.

    Left out of the model when it is done.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        torch.manual_seed(plan.seed)
        self.head = nn.Linear(plan.latent, LESSON_BANDS)
        self.bands: Tensor
        self.register_buffer("bands", mel_bands(HOP, LESSON_BANDS), persistent=False)
        with torch.no_grad():
            self.head.bias.fill_(-5.0)  # about what it is on average

    def forward(self, latent: Tensor, wav: Tensor) -> Tensor:
        """How wrongly the latents [B, D, frames] of wav [B, T] say it, in squared bels."""
        power = self.bands @ _power(wav, HOP, hop=HOP, center=False)
        told = self.head(latent.transpose(1, 2)).transpose(1, 2)[..., : power.shape[-1]]
        return F.mse_loss(told, torch.log10(power + INAUDIBLE))


def _windows(plan: Plan, songs: Dataset, number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The batch of a step, [B, T], its last ones drums alone."""
    rng = np.random.default_rng([plan.seed, 10, number])
    length = int(plan.codec_seconds * SAMPLE_RATE) // HOP * HOP
    frames = int((SECONDS - 1) * FRAME_RATE)
    # at whole frames, where notes begin: elsewhere the tokens need not be good
    at = [(int(rng.integers(len(songs))), HOP * int(rng.integers(frames))) for _ in range(plan.codec_batch)]
    gain = rng.uniform(0.5, 1.5, (plan.codec_batch, 1)).astype(np.float32)
    alone = round(plan.codec_drums * plan.codec_batch)
    windows = [songs.window(song, begin, length) for song, begin in at[alone:]]
    windows += [_drums_alone(songs.songs[song], length, begin, rng) for song, begin in at[:alone]]
    return gain * np.stack(windows)


def _drums_alone(song: Song, length: int, begin: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Samples [length] of nothing but the drums of a song's style."""
    bare = replace(song, chords="", melody="", bass=False, drums=True)
    return render(bare, length / SAMPLE_RATE, int(rng.integers(2**31)), begin / SAMPLE_RATE)


def _direction(loss: Tensor, made: Tensor) -> Tensor:
    """The loss's gradient with respect to `made` [B, 1, T], of length 1 for each window.

    After EnCodec's balancer, by window: left to their own sizes one loss wins over the other, and windows that are
    nearly right or nearly silent over those that there is something to learn from.
    """
    gradient = torch.autograd.grad(loss, made, retain_graph=True)[0]
    return gradient / gradient.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def waveform_error(made: Tensor, wav: Tensor) -> Tensor:
    """Energy of the error over that of the signal, in dB, the mean over [B, 1, T]; near-silent windows count little."""
    error = (made - wav).square().mean(dim=-1) + 1e-6
    return (10 * torch.log10(error / (wav.square().mean(dim=-1) + 1e-4) + 1e-3)).mean()


def mel_bands(size: int, count: int) -> Tensor:
    """Filters [count, frequencies] that give white noise of a variance of 1 a power of 1 in each band."""
    import librosa

    filters = torch.from_numpy(librosa.filters.mel(sr=SAMPLE_RATE, n_fft=size, n_mels=count, fmin=50, norm=None))
    filters = filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return filters / torch.hann_window(size).square().sum()


def _power(wav: Tensor, size: int, hop: int, center: bool = True) -> Tensor:
    """Spectra [B, frequencies, windows] of wav [B, T]."""
    window = torch.hann_window(size, device=wav.device)
    return torch.stft(wav, size, hop, window=window, center=center, return_complex=True).abs().square()


def spectral_error(made: Tensor, wav: Tensor, bands: dict[int, Tensor], log_share: float) -> Tensor:
    """Of [B, T]: how far the magnitudes of mel bands are off, the mean over resolutions.

    Each band's squared error over the batch beside its energy there, which lets rare sounds be learnt, and the error of
    the logarithms, which cleans what should be silent: alone, that asks for silence wherever a sound is rare.
    """
    total = torch.zeros((), device=wav.device)
    for size, filters in bands.items():
        one, other = ((filters @ _power(x, size, size // 4) + 1e-9).sqrt() for x in (made, wav))
        ratio = (one - other).square().mean(dim=(0, 2)) / (other.square().mean(dim=(0, 2)) + INAUDIBLE)
        logarithms = (torch.log(one + FAINT) - torch.log(other + FAINT)).abs()
        total = total + ratio.mean() + log_share * logarithms.mean()
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
