"""What is trained, how large and how long: everything that a run depends on, in one place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

SAMPLE_RATE = 32_000
FRAME_RATE = 50
HOP = SAMPLE_RATE // FRAME_RATE
CODEBOOKS = 4
CARD = 256


SOURCES = "instruments.py", "songs.py", "render.py", "captions.py", "text.py"  # what songs and their words come of
LATER = "folder", "lm_steps", "louder", "temperatures"  # may change between two parts of a run


class OtherPlan(Exception):
    """The folder holds what another plan, other songs or other captions have made."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run. The defaults are to make `demo`.

    Attributes:
        folder: where everything goes that is not the result.
        seed: of songs, weights, batches.
        songs: how many are learnt from, of all that there are, in whole shards.
        codec_steps, codec_batch, codec_seconds, codec_rate: of the codec's training; the rate is AdamW's highest.
        codec_drums: the share of its windows that are drums alone.
        plain_steps: the codec's first steps, without quantisation; its codebooks are then found by k-means.
        clean_from: the step from which the codec is to be silent where the song is.
        decoder_steps, decoder_rate: of the codec's decoder, after that, alone.
        lm_steps, lm_batch, lm_seconds, lm_rate: of the language model's; a window is `lm_seconds` long.
        noise: the share of tokens that it reads wrongly in training, as it does after a token that it chose badly.
        deaf: the share of clips that the language model learns without their captions, for guidance's second row.
        louder: dB that the exported decoder adds: clips at those temperatures are that much quieter than songs.
        temperatures: at which each codebook is best heard; a request's temperature of 1 is these.
    """

    folder: Path = Path("build/training")
    seed: int = 1
    songs: int = 3_400
    codec_steps: int = 5_000
    codec_batch: int = 8
    codec_seconds: float = 0.5
    codec_rate: float = 1e-3
    codec_drums: float = 0.375
    plain_steps: int = 600
    clean_from: int = 1_800
    decoder_steps: int = 1_500
    decoder_rate: float = 5e-4
    lm_steps: int = 6_800
    lm_batch: int = 8
    lm_seconds: float = 8.0
    lm_rate: float = 1e-3
    noise: float = 0.05
    deaf: float = 0.15
    louder: float = 2.0
    temperatures: tuple[float, ...] = (0.85, 0.65, 0.6, 0.6)

    # Sizes, in AudioCraft's terms.
    filters: int = 16
    latent: int = 64
    dim: int = 256
    heads: int = 4
    layers: int = 6
    text_dim: int = 64
    text_layers: int = 2
    text_heads: int = 4
    text_hidden: int = 192
    text_vocab: int = 900

    @property
    def window(self) -> int:
        """Frames of the language model's window."""
        return int(self.lm_seconds * FRAME_RATE)

    def claim(self) -> None:
        """Write into the folder what it is for, or make sure that it is for the same.

        Raises:
            OtherPlan: it is not.
        """
        sources = b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)
        fixed = {key: value for key, value in asdict(self).items() if key not in LATER}
        said = json.dumps(fixed | {"sources": hashlib.sha256(sources).hexdigest()}, indent=1)
        place = self.folder / "plan.json"
        if place.exists():
            if place.read_text(encoding="utf-8") != said:
                raise OtherPlan
        elif (self.folder / "songs").exists() or any(self.folder.glob("*.state")):
            raise OtherPlan
        else:
            part = place.with_suffix(".part")
            part.write_text(said, encoding="utf-8")
            part.replace(place)
