"""Generate clips in this process."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from musicgen_bento import config, model_catalog
from musicgen_bento.cli.clip_options import ClipOptions
from musicgen_bento.cli.progress import ProgressDisplay
from musicgen_bento.clip import Clip, Progress

if TYPE_CHECKING:
    from musicgen_bento.engine.types import LoadProgress
    from musicgen_bento.pipelines import Pipeline
    from musicgen_bento.schemas import GenerationRequest


def generate_locally(options: ClipOptions, display: ProgressDisplay) -> Generator[tuple[int, Clip], None, None]:
    """Check the options, and return an iterator over the clips and their indices. Reading it loads the model.

    Raises:
        InvalidRequest: a prompt, an option or a setting is invalid.
    """
    settings = config.load_settings()
    requests = options.build_requests(model=None, max_duration=settings.max_duration)
    model = _choose_model(options.model, settings.default_model, display)
    return _generate(requests, model, display)


def stream_locally(options: ClipOptions, display: ProgressDisplay) -> Generator[bytes, None, None]:
    """Generate one clip, and yield its bytes while it is generated.

    Raises:
        InvalidRequest: the prompt, an option or a setting is invalid.
        MusicGenError: the model cannot be loaded, or the generation failed.
    """
    settings = config.load_settings()
    request = options.build_stream_request(model=None, max_duration=settings.max_duration)
    model = _choose_model(options.model, settings.default_model, display)
    with _load_pipeline(model, request.duration, display) as pipeline:
        yield from pipeline.stream(request, display.update)
    display.log(f"Wrote {request.duration:g} s by {model}, seed {request.seed}.")


def _choose_model(model: str | None, default_model: str, display: ProgressDisplay) -> str:
    if model is None:
        model = default_model
        display.log(f"No --model was given: using {model}.")
    card = model_catalog.find_model(model)
    if card and card.note:
        display.log(card.note)
    return model


def _generate(
    requests: Sequence[GenerationRequest], model: str, display: ProgressDisplay
) -> Generator[tuple[int, Clip], None, None]:
    with _load_pipeline(model, sum(request.duration for request in requests), display) as pipeline:
        for generated in pipeline.generate(requests, display.update):
            yield generated.index, generated.clip()


def _load_pipeline(model: str, total_seconds: float, display: ProgressDisplay) -> Pipeline:
    """Load the model and show the progress of the download."""
    from musicgen_bento.pipelines import Pipeline  # imports torch: not before the options are checked

    def on_load_progress(progress: LoadProgress) -> None:
        if progress.total_bytes:
            display.update_download(model, progress.done_bytes or 0, progress.total_bytes)
        else:
            display.update(Progress("loading", None, 0.0, total_seconds))

    return Pipeline(model, on_load_progress=on_load_progress)
