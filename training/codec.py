"""The codec: AudioCraft's EnCodec (Défossez et al. 2022), small, trained to give the songs back.

What it is asked for, without a discriminator (`losses.py`):

- the waveform below 1.5 kHz. Above, 50 vectors of 64 numbers a second cannot say where in its period a tone is, and a
  codec that is asked for the waveform there answers with nothing;
- the magnitudes of mel bands at several resolutions, each band beside its own energy: drums are a hundredth of a song's
  energy above 6 kHz, and all there is;
- that its latents say how loud each band is, by one linear layer that is thrown away afterwards, and that the first
  codebook alone says it too. The decoder learns to strike a drum within a hundred steps once the latents tell it when;
  left to itself the encoder never does, because the decoder makes nothing of it;
- the level above 8 kHz, where there are drums and nothing else.

Some windows are drums alone. The first steps go without quantisation; then each codebook is found by k-means on what
the encoder says by then, and follows it as a moving average. Once the tokens are decided, the decoder goes on alone.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from training import fast
from training.dataset import SECONDS, Dataset
from training.loop import Clock, cosine, steps
from training.losses import INAUDIBLE, Reconstruction, mel_bands, power
from training.plan import CARD, CODEBOOKS, FRAME_RATE, HOP, SAMPLE_RATE, Plan
from training.released import configuration
from training.render import render
from training.songs import Song

LOG_SHARES = 0.1, 0.4  # of the spectral error: at first, and once there is something to be heard
COMMITMENT = 0.25
LESSON_BANDS = 8
KMEANS_WINDOWS, KMEANS_ROUNDS = 512, 15
HIGHS_SHARES = 1.0, 2.0  # of the gradient: once there is something to be heard, and when the decoder learns alone


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
    device = fast.device()
    codec = build(plan).to(device).train()
    lesson = Lesson(plan).to(device)
    parameters = [*codec.parameters(), *lesson.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.codec_rate, betas=(0.8, 0.99), weight_decay=1e-4)
    judge = Reconstruction().to(device)

    def step(number: int) -> dict[str, float]:
        wav = torch.from_numpy(windows(plan, songs, number)).to(device)[:, None]
        for group in optimizer.param_groups:
            group["lr"] = plan.codec_rate * cosine(number, plan.codec_steps)
        if number == plan.plain_steps:
            _find_codebooks(plan, codec, songs, device)
        latent = codec.encoder(wav)
        penalty = torch.zeros((), device=device)
        coarse = latent
        if number >= plan.plain_steps:
            quantized = codec.quantizer(latent, FRAME_RATE)
            # what the first codebook alone says, moved by this step already; the gradient goes to the latents
            coarse = latent + (codec.quantizer.vq.layers[0].decode(quantized.codes[:, 0]) - latent).detach()
            latent, penalty = quantized.x, quantized.penalty
        made = codec.decoder(latent)[..., : wav.shape[-1]]
        taught = lesson(latent, wav[:, 0]) + lesson(coarse, wav[:, 0])  # the same twice while there are no codebooks
        optimizer.zero_grad(set_to_none=True)
        clean = number >= plan.clean_from
        error, figures = judge(made, wav, LOG_SHARES[clean], HIGHS_SHARES[0] * clean)
        (error + COMMITMENT * penalty + taught).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return figures | {"lesson": float(taught.detach()), "commitment": float(penalty.detach())}

    state = {"model": codec, "lesson": lesson, "optimizer": optimizer}
    steps("codec", plan.folder, plan.codec_steps, state, step, clock, plan.seed)
    return codec.eval().requires_grad_(False)


def finish(plan: Plan, codec: Any, songs: Dataset, clock: Clock) -> Any:
    """The decoder of a trained codec learns on alone, and songs keep their tokens; gives the codec.

    A bright string that is struck and a drum have tokens in common; left to the mean of both, the string hisses.

    Raises:
        OutOfTime: the clock ran out; call again.
    """
    decoder = codec.decoder.train().requires_grad_(True)
    device = next(decoder.parameters()).device
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=plan.decoder_rate, betas=(0.8, 0.99), weight_decay=1e-4)
    judge = Reconstruction().to(device)

    def step(number: int) -> dict[str, float]:
        wav = torch.from_numpy(windows(plan, songs, 2_000_000 + number)).to(device)[:, None]
        for group in optimizer.param_groups:
            group["lr"] = plan.decoder_rate * cosine(number, plan.decoder_steps)
        with torch.no_grad():
            latent = codec.quantizer(codec.encoder(wav), FRAME_RATE).x
        made = decoder(latent)[..., : wav.shape[-1]]
        optimizer.zero_grad(set_to_none=True)
        error, figures = judge(made, wav, LOG_SHARES[1], HIGHS_SHARES[1])
        error.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        return figures

    state = {"decoder": decoder, "optimizer": optimizer}
    steps("decoder", plan.folder, plan.decoder_steps, state, step, clock, plan.seed)
    decoder.eval().requires_grad_(False)
    return codec


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
        there = self.bands @ power(wav, HOP, hop=HOP, center=False)
        told = self.head(latent.transpose(1, 2)).transpose(1, 2)[..., : there.shape[-1]]
        return F.mse_loss(told, torch.log10(there + INAUDIBLE))


def windows(plan: Plan, songs: Dataset, number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The batch of a step, [B, T], its last ones drums alone."""
    rng = np.random.default_rng([plan.seed, 10, number])
    length = int(plan.codec_seconds * SAMPLE_RATE) // HOP * HOP
    frames = int((SECONDS - 1) * FRAME_RATE)
    # at whole frames, where notes begin: elsewhere the tokens need not be good
    at = [(int(rng.integers(len(songs))), HOP * int(rng.integers(frames))) for _ in range(plan.codec_batch)]
    gain = rng.uniform(0.7, 2.1, (plan.codec_batch, 1)).astype(np.float32)
    alone = round(plan.codec_drums * plan.codec_batch)
    some = [songs.window(song, begin, length) for song, begin in at[alone:]]
    some += [_drums_alone(songs.songs[song], length, begin) for song, begin in at[:alone]]
    return gain * np.stack(some)


def _drums_alone(song: Song, length: int, begin: int) -> np.ndarray[Any, Any]:
    """Samples [length] of nothing but the drums of a song's style."""
    return render(replace(song, drums=True), length / SAMPLE_RATE, begin / SAMPLE_RATE, drums_alone=True)


@torch.no_grad()
def _find_codebooks(plan: Plan, codec: Any, songs: Dataset, device: torch.device) -> None:
    """Each codebook by k-means on what the ones before it leave."""
    found = []
    for number in range(KMEANS_WINDOWS // plan.codec_batch):
        wav = torch.from_numpy(windows(plan, songs, 1_000_000 + number)).to(device)[:, None]
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
def tokens(codec: Any, samples: NDArray[np.int16]) -> Tensor:
    """The tokens of songs [N, T], [N, K, frames]."""
    device = next(codec.parameters()).device
    wavs = torch.from_numpy(samples.astype(np.float32) / 32_767)[:, None]
    # one by one: ten at once take twice as long, as what lies between two layers leaves the processor's cache
    codes = torch.cat([codec.encode(wav.to(device))[0] for wav in wavs.split(1)])
    assert codes.shape[1] == CODEBOOKS
    return codes.to(torch.int16).cpu()
