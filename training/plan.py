"""The parameters of a training run: sizes, steps and rates."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

SAMPLE_RATE = 32_000
FRAME_RATE = 50
HOP = SAMPLE_RATE // FRAME_RATE
CODEBOOKS = 4
CODEBOOK_SIZE = 256


SOURCES = "instruments.py", "songs.py", "render.py", "captions.py", "text.py"  # they determine songs and captions
CHANGEABLE = "folder", "lm_steps", "gain_db", "temperatures"  # may differ when a run is resumed


class PlanMismatch(Exception):
    """The folder holds the output of another plan, or of other songs or captions."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A training run. The defaults are those of `demo`.

    Attributes:
        folder: for intermediate files.
        seed: of songs, weights and batches.
        songs: number of training songs, in whole shards.
        codec_steps, codec_batch, codec_seconds, codec_rate: of the codec's training; the rate is AdamW's highest.
        codec_drums: share of the codec's windows that contain only drums.
        unquantized_steps: first steps of the codec, without quantization; k-means initializes the codebooks then.
        highs_from: step from which the codec's loss includes the level above 8 kHz.
        decoder_steps, decoder_rate: of the training of the codec's decoder alone, afterwards.
        lm_steps, lm_batch, lm_seconds, lm_rate: of the language model's training; a window has `lm_seconds`.
        token_noise: share of input tokens that are replaced in training, like badly sampled ones when generating.
        cfg_dropout: share of clips trained without their caption, for the unconditional row of guidance.
        gain_db: gain of the exported decoder; clips at these temperatures are that much quieter than songs.
        temperatures: best temperature of each codebook; the exported heads make a request's 1 equal to them.
    """

    folder: Path = Path("build/training")
    seed: int = 1
    songs: int = 3_400
    codec_steps: int = 5_000
    codec_batch: int = 8
    codec_seconds: float = 0.5
    codec_rate: float = 1e-3
    codec_drums: float = 0.375
    unquantized_steps: int = 600
    highs_from: int = 1_800
    decoder_steps: int = 1_500
    decoder_rate: float = 5e-4
    lm_steps: int = 6_800
    lm_batch: int = 8
    lm_seconds: float = 8.0
    lm_rate: float = 1e-3
    token_noise: float = 0.05
    cfg_dropout: float = 0.15
    gain_db: float = 2.0
    temperatures: tuple[float, ...] = (0.85, 0.65, 0.6, 0.6)

    # Sizes, under AudioCraft's names.
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
        """Number of frames in the language model's window."""
        return int(self.lm_seconds * FRAME_RATE)

    def claim_folder(self) -> None:
        """Record the plan in the folder, or check that the folder belongs to the same plan.

        Raises:
            PlanMismatch: the folder belongs to another plan.
        """
        sources = b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)
        fixed = {key: value for key, value in asdict(self).items() if key not in CHANGEABLE}
        record = json.dumps(fixed | {"sources": hashlib.sha256(sources).hexdigest()}, indent=1)
        path = self.folder / "plan.json"
        if path.exists():
            if path.read_text(encoding="utf-8") != record:
                raise PlanMismatch
        elif (self.folder / "songs").exists() or any(self.folder.glob("*.state")):
            raise PlanMismatch
        else:
            part = path.with_suffix(".part")
            part.write_text(record, encoding="utf-8")
            part.replace(path)
