"""Losses of the codec: the waveform at low frequencies, and the magnitudes of mel bands."""

from __future__ import annotations

import torch
from scipy.signal import firwin
from torch import Tensor, nn
from torch.nn import functional as F

from training.plan import SAMPLE_RATE

MEL_BANDS = {256: 12, 512: 24, 1024: 48, 2048: 80}  # number of bands by FFT size
LOG_FLOOR = 1e-3  # added to a band's magnitude before its logarithm: -60 dBFS
WAVEFORM_CUTOFF_HZ = 1_500
QUIET_RMS = 0.03  # the waveform of quieter windows counts less
SPECTRAL_SHARE = 2.0  # weight of the spectral gradient, relative to the waveform's
GRADIENT_SCALE = 0.01  # of a window, relative to other losses
POWER_FLOOR = 1e-6  # of a band: -60 dBFS
HIGH_BINS = 512 * 8_000 // SAMPLE_RATE  # index of 8 kHz in an FFT of 512
HIGHS_TOLERANCE_DB = 2.0  # deviation above 8 kHz without a penalty
HIGHS_FLOOR_DB = 58.0  # below a window's loudness; quieter levels are ignored


class Reconstruction(nn.Module):
    """Loss between a song and its reconstruction."""

    def __init__(self) -> None:
        super().__init__()
        self.low: Tensor
        low = torch.from_numpy(firwin(129, WAVEFORM_CUTOFF_HZ, fs=SAMPLE_RATE)).float()[None, None]
        self.register_buffer("low", low, persistent=False)
        for size, count in MEL_BANDS.items():
            self.register_buffer(f"mel_{size}", mel_bands(size, count), persistent=False)

    def forward(
        self, output: Tensor, wav: Tensor, log_share: float, highs_share: float = 0.0
    ) -> tuple[Tensor, dict[str, float]]:
        """Return a loss whose gradient has a given norm for each window, and figures for the curves.

        Args:
            output: of the decoder, [B, 1, T].
            wav: the song, [B, 1, T].
            log_share: weight of the logarithms; see `spectral_error`.
            highs_share: weight of the gradient above 8 kHz, relative to the waveform's 1; see `highs_error`.
        """
        below = F.conv1d(wav, self.low, padding="same")
        wave = waveform_error(F.conv1d(output, self.low, padding="same"), below)
        bands = {size: self.get_buffer(f"mel_{size}") for size in MEL_BANDS}
        spectra = spectral_error(output[:, 0], wav[:, 0], bands, log_share)
        figures = {"sdr": -float(wave.detach()), "spectral": float(spectra.detach())}
        loudness = below.square().mean(dim=-1, keepdim=True).sqrt()
        gradient = loudness / (loudness + QUIET_RMS) * unit_gradient(wave, output) + SPECTRAL_SHARE * unit_gradient(
            spectra, output
        )
        if highs_share:
            highs = highs_error(output[:, 0], wav[:, 0])
            figures["highs"] = float(highs.detach())
            gradient = gradient + highs_share * unit_gradient(highs, output)
        return GRADIENT_SCALE * (output * gradient).sum(), figures


def unit_gradient(loss: Tensor, output: Tensor) -> Tensor:
    """Return the gradient of the loss with respect to `output` [B, 1, T], with norm 1 for each window.

    This is EnCodec's balancer by window. Without it one loss dominates the other, and nearly correct or nearly silent
    windows dominate those with larger errors.
    """
    gradient = torch.autograd.grad(loss, output, retain_graph=True)[0]
    return gradient / gradient.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def waveform_error(output: Tensor, wav: Tensor) -> Tensor:
    """Return the error over the signal in dB, the mean over [B, 1, T]; nearly silent windows count little."""
    error = (output - wav).square().mean(dim=-1) + 1e-6
    return (10 * torch.log10(error / (wav.square().mean(dim=-1) + 1e-4) + 1e-3)).mean()


def spectral_error(output: Tensor, wav: Tensor, bands: dict[int, Tensor], log_share: float) -> Tensor:
    """Return the error of the mel band magnitudes of [B, T], the mean over resolutions.

    The squared error of a band over the batch, relative to its energy, lets rare sounds be learnt. The error of the
    logarithms removes noise from silence; alone, it would prefer silence wherever a sound is rare.
    """
    total = torch.zeros((), device=wav.device)
    for size, filters in bands.items():
        decoded, original = ((filters @ power(x, size, size // 4) + 1e-9).sqrt() for x in (output, wav))
        ratio = (decoded - original).square().mean(dim=(0, 2)) / (original.square().mean(dim=(0, 2)) + POWER_FLOOR)
        logarithms = (torch.log(decoded + LOG_FLOOR) - torch.log(original + LOG_FLOOR)).abs()
        total = total + ratio.mean() + log_share * logarithms.mean()
    return total / len(bands)


def highs_error(output: Tensor, wav: Tensor) -> Tensor:
    """Return the error of the level of [B, T] above 8 kHz, in squared dB beyond the tolerance, over 16 ms every 4 ms.

    Hiss sounds like a drum, and a drum without it is not detected. The error is squared because drums are rare: one
    window 20 dB off counts more than many small errors.
    """
    actual, expected = (10 * torch.log10(power(x, 512, 128)[:, HIGH_BINS:].mean(dim=1) + 1e-7) for x in (output, wav))
    floor = 10 * torch.log10(power(wav, 512, 128).mean(dim=(1, 2)) + 1e-7)[:, None] - HIGHS_FLOOR_DB
    error = torch.maximum(actual, floor) - torch.maximum(expected, floor)
    return F.relu(error.abs() - HIGHS_TOLERANCE_DB).square().mean()


def mel_bands(size: int, count: int) -> Tensor:
    """Return filters [count, frequencies] for which white noise of variance 1 has power 1 in each band."""
    import librosa

    filters = torch.from_numpy(librosa.filters.mel(sr=SAMPLE_RATE, n_fft=size, n_mels=count, fmin=50, norm=None))
    filters = filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return filters / torch.hann_window(size).square().sum()


def power(wav: Tensor, size: int, hop: int, center: bool = True) -> Tensor:
    """Return power spectra [B, frequencies, windows] of wav [B, T]."""
    window = torch.hann_window(size, device=wav.device)
    return torch.stft(wav, size, hop, window=window, center=center, return_complex=True).abs().square()
