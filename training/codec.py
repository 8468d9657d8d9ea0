"""Training of the codec: a small EnCodec (Défossez et al. 2022), built by AudioCraft, without a discriminator.

The losses (`losses.py`) are:

- the waveform below 1.5 kHz. Above, 50 vectors of 64 numbers a second cannot encode the phase of a tone, and a
  waveform loss there makes the codec output nothing;
- the magnitudes of mel bands at several resolutions, each relative to its own energy: above 6 kHz there are only drums,
  a hundredth of a song's energy;
- the loudness of each band, which a linear probe predicts from the latents and from the first codebook alone. Once the
  latents contain the time of a drum, the decoder learns to strike it within a hundred steps. Without the probe the
  encoder never learns it, because the decoder does not use it yet;
- the level above 8 kHz, where there are only drums.

Some windows contain only drums. The first steps run without quantization. Then k-means on the encoder's output
initializes each codebook, which follows it as a moving average. Finally the decoder trains alone, with fixed tokens.
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
from training.loop import Clock, cosine, run_steps
from training.losses import POWER_FLOOR, Reconstruction, mel_bands, power
from training.plan import CODEBOOK_SIZE, CODEBOOKS, FRAME_RATE, HOP, SAMPLE_RATE, Plan
from training.released import configuration
from training.render import render
from training.songs import Song

LOG_SHARES = 0.1, 0.4  # weight of the logarithms in the spectral error: before and after `highs_from`
COMMITMENT = 0.25
PROBE_BANDS = 8
KMEANS_WINDOWS, KMEANS_ROUNDS = 512, 15
HIGHS_SHARES = 1.0, 2.0  # weight of the gradient: after `highs_from`, and when the decoder trains alone


def build(plan: Plan) -> Any:
    """Create the untrained codec."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*weight_norm", category=FutureWarning)
    from audiocraft.models import builders

    torch.manual_seed(plan.seed)
    return builders.get_compression_model(configuration(plan))


def train(plan: Plan, songs: Dataset, clock: Clock) -> Any:
    """Train or resume the codec and return it in eval mode.

    Raises:
        OutOfTime: the time limit is reached; call again.
    """
    device = fast.device()
    codec = build(plan).to(device).train()
    probe = LoudnessProbe(plan).to(device)
    parameters = [*codec.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.codec_rate, betas=(0.8, 0.99), weight_decay=1e-4)
    reconstruction = Reconstruction().to(device)

    def step(number: int) -> dict[str, float]:
        wav = torch.from_numpy(windows(plan, songs, number)).to(device)[:, None]
        for group in optimizer.param_groups:
            group["lr"] = plan.codec_rate * cosine(number, plan.codec_steps)
        if number == plan.unquantized_steps:
            _initialize_codebooks(plan, codec, songs, device)
        latent = codec.encoder(wav)
        penalty = torch.zeros((), device=device)
        first_codebook = latent  # the latents themselves, while there are no codebooks
        if number >= plan.unquantized_steps:
            quantized = codec.quantizer(latent, FRAME_RATE)
            # this step has updated the codebook already; the gradient goes to the latents
            first_codebook = latent + (codec.quantizer.vq.layers[0].decode(quantized.codes[:, 0]) - latent).detach()
            latent, penalty = quantized.x, quantized.penalty
        output = codec.decoder(latent)[..., : wav.shape[-1]]
        probe_loss = probe(latent, wav[:, 0]) + probe(first_codebook, wav[:, 0])
        optimizer.zero_grad(set_to_none=True)
        with_highs = number >= plan.highs_from
        error, figures = reconstruction(output, wav, LOG_SHARES[with_highs], HIGHS_SHARES[0] * with_highs)
        (error + COMMITMENT * penalty + probe_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return figures | {"probe": float(probe_loss.detach()), "commitment": float(penalty.detach())}

    state = {"model": codec, "probe": probe, "optimizer": optimizer}
    run_steps("codec", plan.folder, plan.codec_steps, state, step, clock, plan.seed)
    return codec.eval().requires_grad_(False)


def train_decoder(plan: Plan, codec: Any, songs: Dataset, clock: Clock) -> Any:
    """Train the decoder of a trained codec alone, with the tokens fixed, and return the codec.

    Bright plucked strings and drums share tokens; trained on the mean of both, the decoder adds hiss to strings.

    Raises:
        OutOfTime: the time limit is reached; call again.
    """
    decoder = codec.decoder.train().requires_grad_(True)
    device = next(decoder.parameters()).device
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=plan.decoder_rate, betas=(0.8, 0.99), weight_decay=1e-4)
    reconstruction = Reconstruction().to(device)

    def step(number: int) -> dict[str, float]:
        wav = torch.from_numpy(windows(plan, songs, 2_000_000 + number)).to(device)[:, None]
        for group in optimizer.param_groups:
            group["lr"] = plan.decoder_rate * cosine(number, plan.decoder_steps)
        with torch.no_grad():
            latent = codec.quantizer(codec.encoder(wav), FRAME_RATE).x
        output = decoder(latent)[..., : wav.shape[-1]]
        optimizer.zero_grad(set_to_none=True)
        error, figures = reconstruction(output, wav, LOG_SHARES[1], HIGHS_SHARES[1])
        error.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        return figures

    state = {"decoder": decoder, "optimizer": optimizer}
    run_steps("decoder", plan.folder, plan.decoder_steps, state, step, clock, plan.seed)
    decoder.eval().requires_grad_(False)
    return codec


class LoudnessProbe(nn.Module):
    """A linear layer that predicts the loudness of a few bands in each frame from the latents. It is not exported."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        torch.manual_seed(plan.seed)
        self.head = nn.Linear(plan.latent, PROBE_BANDS)
        self.bands: Tensor
        self.register_buffer("bands", mel_bands(HOP, PROBE_BANDS), persistent=False)
        with torch.no_grad():
            self.head.bias.fill_(-5.0)  # about the mean

    def forward(self, latent: Tensor, wav: Tensor) -> Tensor:
        """Return the error for latents [B, D, frames] of wav [B, T], in squared bels."""
        actual = self.bands @ power(wav, HOP, hop=HOP, center=False)
        predicted = self.head(latent.transpose(1, 2)).transpose(1, 2)[..., : actual.shape[-1]]
        return F.mse_loss(predicted, torch.log10(actual + POWER_FLOOR))


def windows(plan: Plan, songs: Dataset, number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the batch of a step, [B, T]; the last windows contain only drums."""
    rng = np.random.default_rng([plan.seed, 10, number])
    length = int(plan.codec_seconds * SAMPLE_RATE) // HOP * HOP
    frames = int((SECONDS - 1) * FRAME_RATE)
    # at whole frames, where notes start; tokens of other offsets need not be good
    starts = [(int(rng.integers(len(songs))), HOP * int(rng.integers(frames))) for _ in range(plan.codec_batch)]
    gain = rng.uniform(0.7, 2.1, (plan.codec_batch, 1)).astype(np.float32)
    num_drums = round(plan.codec_drums * plan.codec_batch)
    batch = [songs.window(song, begin, length) for song, begin in starts[num_drums:]]
    batch += [_drums_only(songs.songs[song], length, begin) for song, begin in starts[:num_drums]]
    return gain * np.stack(batch)


def _drums_only(song: Song, length: int, begin: int) -> np.ndarray[Any, Any]:
    """Return samples [length] of the drums of a song's style."""
    return render(replace(song, drums=True), length / SAMPLE_RATE, begin / SAMPLE_RATE, drums_only=True)


@torch.no_grad()
def _initialize_codebooks(plan: Plan, codec: Any, songs: Dataset, device: torch.device) -> None:
    """Initialize each codebook by k-means on the residual of those before it."""
    latents = []
    for number in range(KMEANS_WINDOWS // plan.codec_batch):
        wav = torch.from_numpy(windows(plan, songs, 1_000_000 + number)).to(device)[:, None]
        latents.append(codec.encoder(wav).transpose(1, 2).reshape(-1, plan.latent))
    residual = torch.cat(latents)
    for layer in codec.quantizer.vq.layers:
        centres, sizes = kmeans(residual, CODEBOOK_SIZE)
        book = layer._codebook
        batches = len(residual) / (plan.codec_batch * plan.codec_seconds * FRAME_RATE)
        book.cluster_size.copy_(sizes / batches)
        book.embed.copy_(centres)
        book.embed_avg.copy_(centres * (sizes / batches)[:, None])
        residual = residual - centres[torch.cdist(residual, centres).argmin(dim=1)]


def kmeans(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return centres [count, D] of points [N, D] and their sizes (Lloyd 1982); empty clusters move."""
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
    """Encode songs [N, T] to tokens [N, K, frames]."""
    device = next(codec.parameters()).device
    wavs = torch.from_numpy(samples.astype(np.float32) / 32_767)[:, None]
    # one by one: batches of ten take twice as long, because activations between layers exceed the CPU cache
    codes = torch.cat([codec.encode(wav.to(device))[0] for wav in wavs.split(1)])
    assert codes.shape[1] == CODEBOOKS
    return codes.to(torch.int16).cpu()
