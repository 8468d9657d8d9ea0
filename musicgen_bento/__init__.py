"""musicgen-bento: text to music with MusicGen, served by BentoML."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musicgen_bento.pipelines import LoadProgressCallback, Pipeline

__version__ = "0.1.0"

# Set before torch is imported. By default torch's idle threads spin for some 15 ms, which takes CPU time from the
# threads of the native kernel; see docs/performance.md.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def pipeline(
    model: str | None = None,
    *,
    device: str | None = None,
    precision: str | None = None,
    on_load_progress: LoadProgressCallback | None = None,
) -> Pipeline:
    """Load a model into this process: `pipeline("demo")("lofi hip hop", duration=10).save("lofi.wav")`.

    Args:
        model: an id or alias of the catalogue, another MusicGen repository of the Hugging Face Hub, or a folder with
            its files; None means MUSICGEN_DEFAULT_MODEL, else demo.
        device: auto, cpu, cuda or cuda:N.
        precision: auto, float32, bfloat16, float16 or int8, if the device supports it.
        on_load_progress: receives the load progress repeatedly until the model is loaded.

    Raises:
        MusicGenError: the model could not be loaded; `code` and `hint` give the reason and a remedy.
    """
    from musicgen_bento.pipelines import Pipeline  # imports torch

    return Pipeline(model, device=device, precision=precision, on_load_progress=on_load_progress)
