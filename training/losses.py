"""What the codec is asked for: the waveform where it can be had, and the magnitudes of mel bands."""

from __future__ import annotations

import torch
from scipy.signal import firwin
from torch import Tensor, nn
from torch.nn import functional as F

from training.plan import SAMPLE_RATE

MELS = {256: 12, 512: 24, 1024: 48, 2048: 80}  # bands, by the size of the transform
FAINT = 1e-3  # what the logarithm of a band's magnitude is taken above: -60 dBFS
WAVE_BELOW = 1_500  # Hz
QUIET = 0.03  # RMS: of a quieter window the waveform counts less
SPECTRAL_SHARE = 2.0  # of the gradient, beside the waveform's
STEP_SIZE = 0.01  # of the gradient of a window, beside other losses
INAUDIBLE = 1e-6  # the power of a band: -60 dBFS
HIGH_BINS = 512 * 8_000 // SAMPLE_RATE  # of a transform of 512: where 8 kHz are
NEAR = 2.0  # dB above 8 kHz that are right enough
UNHEARD = 58.0  # dB below a window's loudness: what lies there is let be


class Reconstruction(nn.Module):
    """How far a song that came back is off."""

    def __init__(self) -> None:
        super().__init__()
        self.low: Tensor
        low = torch.from_numpy(firwin(129, WAVE_BELOW, fs=SAMPLE_RATE)).float()[None, None]
        self.register_buffer("low", low, persistent=False)
        for size, count in MELS.items():
            self.register_buffer(f"mel_{size}", mel_bands(size, count), persistent=False)

    def forward(
        self, made: Tensor, wav: Tensor, log_share: float, highs_share: float = 0.0
    ) -> tuple[Tensor, dict[str, float]]:
        """A loss for made [B, 1, T], whose gradient has a given length for each window, and figures for the curves.

        Args:
            made: what the decoder says.
            wav: the song.
            log_share: how much the logarithms count, see `spectral_error`.
            highs_share: how much of the gradient is for what lies above 8 kHz, beside the waveform's 1; see
                `highs_error`.
        """
        below = F.conv1d(wav, self.low, padding="same")
        wave = waveform_error(F.conv1d(made, self.low, padding="same"), below)
        bands = {size: self.get_buffer(f"mel_{size}") for size in MELS}
        spectra = spectral_error(made[:, 0], wav[:, 0], bands, log_share)
        figures = {"sdr": -float(wave.detach()), "spectral": float(spectra.detach())}
        loudness = below.square().mean(dim=-1, keepdim=True).sqrt()
        gradient = loudness / (loudness + QUIET) * direction(wave, made) + SPECTRAL_SHARE * direction(spectra, made)
        if highs_share:
            highs = highs_error(made[:, 0], wav[:, 0])
            figures["highs"] = float(highs.detach())
            gradient = gradient + highs_share * direction(highs, made)
        return STEP_SIZE * (made * gradient).sum(), figures


def direction(loss: Tensor, made: Tensor) -> Tensor:
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


def spectral_error(made: Tensor, wav: Tensor, bands: dict[int, Tensor], log_share: float) -> Tensor:
    """Of [B, T]: how far the magnitudes of mel bands are off, the mean over resolutions.

    Each band's squared error over the batch beside its energy there, which lets rare sounds be learnt, and the error of
    the logarithms, which cleans what should be silent: alone, that asks for silence wherever a sound is rare.
    """
    total = torch.zeros((), device=wav.device)
    for size, filters in bands.items():
        one, other = ((filters @ power(x, size, size // 4) + 1e-9).sqrt() for x in (made, wav))
        ratio = (one - other).square().mean(dim=(0, 2)) / (other.square().mean(dim=(0, 2)) + INAUDIBLE)
        logarithms = (torch.log(one + FAINT) - torch.log(other + FAINT)).abs()
        total = total + ratio.mean() + log_share * logarithms.mean()
    return total / len(bands)


def highs_error(made: Tensor, wav: Tensor) -> Tensor:
    """Of [B, T]: how far its level above 8 kHz is off, in squared dB beyond `NEAR`, the mean over 16 ms, every 4 ms.

    Hiss where the song has none reads as a drum, and a drum without it is missed. Squared, because a drum is rare: a
    window that is 20 dB off counts for more than many that are a little.
    """
    there, wanted = (10 * torch.log10(power(x, 512, 128)[:, HIGH_BINS:].mean(dim=1) + 1e-7) for x in (made, wav))
    floor = 10 * torch.log10(power(wav, 512, 128).mean(dim=(1, 2)) + 1e-7)[:, None] - UNHEARD
    off = torch.maximum(there, floor) - torch.maximum(wanted, floor)
    return F.relu(off.abs() - NEAR).square().mean()


def mel_bands(size: int, count: int) -> Tensor:
    """Filters [count, frequencies] that give white noise of a variance of 1 a power of 1 in each band."""
    import librosa

    filters = torch.from_numpy(librosa.filters.mel(sr=SAMPLE_RATE, n_fft=size, n_mels=count, fmin=50, norm=None))
    filters = filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return filters / torch.hann_window(size).square().sum()


def power(wav: Tensor, size: int, hop: int, center: bool = True) -> Tensor:
    """Spectra [B, frequencies, windows] of wav [B, T]."""
    window = torch.hann_window(size, device=wav.device)
    return torch.stft(wav, size, hop, window=window, center=center, return_complex=True).abs().square()
