"""musicgen-bento: text to music with MusicGen, served by BentoML."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musicgen_bento.pipelines import Arriving, Pipeline

__version__ = "0.1.0"

# Before torch is imported: its threads, which spin for some 15 ms when they have nothing to do, would be in the way of
# the kernel's. See docs/performance.md.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def pipeline(
    model: str | None = None,
    *,
    device: str | None = None,
    precision: str | None = None,
    arriving: Arriving | None = None,
) -> Pipeline:
    """A model in this process: `pipeline("demo")("lofi hip hop", duration=10).save("lofi.wav")`. See Pipeline."""
    from musicgen_bento.pipelines import Pipeline  # brings torch

    return Pipeline(model, device=device, precision=precision, arriving=arriving)
