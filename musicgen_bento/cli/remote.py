"""Generate clips on a server."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from musicgen_bento.cli.clip_options import ClipOptions
from musicgen_bento.cli.progress import ProgressDisplay
from musicgen_bento.client.deadline import Deadline
from musicgen_bento.client.generation import Generation
from musicgen_bento.client.sync_client import DEFAULT_RETRIES, MusicGenClient
from musicgen_bento.client.transport import Server
from musicgen_bento.clip import Clip, Progress, ProgressCallback
from musicgen_bento.schemas import GenerationRequest

MAX_CONCURRENT_CLIPS = 8  # enough to keep a server busy, and few enough that other clients get their turn


def generate_on_server(
    url: str, timeout: float | None, options: ClipOptions, display: ProgressDisplay
) -> Generator[tuple[int, Clip], None, None]:
    """Check the options, and return an iterator over the clips and their indices. Reading it sends the requests.

    Args:
        url: address of the server.
        timeout: seconds that each clip may take; None means no limit.
        options: the clips to generate.
        display: shows the progress of all clips together.

    Raises:
        InvalidRequest: the URL, the timeout, a prompt or an option is invalid.
    """
    Deadline(timeout)  # checks the timeout before any request
    server = Server(url, DEFAULT_RETRIES, {})
    requests = options.build_requests(model=options.model)
    generations = [Generation(server, request, timeout) for request in requests]
    return _collect(generations, _CombinedProgress(requests, display))


def stream_from_server(
    url: str, timeout: float | None, options: ClipOptions, display: ProgressDisplay
) -> Generator[bytes, None, None]:
    """Yield the bytes of one clip while a server generates it.

    Raises:
        InvalidRequest: the URL, the timeout, the prompt or an option is invalid.
        MusicGenError: the server cannot be reached, or the generation failed.
    """
    request = options.build_stream_request(model=options.model)
    fields = {"seed": request.seed, **options.fields, "format": options.format}
    client = MusicGenClient(url)
    with client.stream(
        options.prompts[0], model=options.model, progress=display.update, timeout=timeout, **fields
    ) as stream:
        for chunk in stream:
            yield chunk
            display.update(Progress("running", None, stream.position, stream.duration))
        display.log(f"Wrote {stream.duration:g} s by {stream.model}, seed {stream.seed}.")


def _collect(generations: Sequence[Generation], progress: _CombinedProgress) -> Generator[tuple[int, Clip], None, None]:
    """Yield each clip when it is finished. An error in one of them, or an early close, cancels the others."""
    if len(generations) == 1:
        yield 0, generations[0].result(progress.callback(0))
        return
    with ThreadPoolExecutor(MAX_CONCURRENT_CLIPS) as executor:
        try:
            indices = {
                executor.submit(generation.result, progress.callback(index)): index
                for index, generation in enumerate(generations)
            }
            for future in as_completed(indices):
                yield indices[future], future.result()
        finally:  # also after Ctrl-C
            executor.shutdown(wait=False, cancel_futures=True)
            for generation in generations:
                generation.cancel()


class _CombinedProgress:
    """The progress of several clips together."""

    def __init__(self, requests: Sequence[GenerationRequest], display: ProgressDisplay) -> None:
        self._seconds = [(0.0, request.duration) for request in requests]  # generated, total
        self._display = display

    def callback(self, index: int) -> ProgressCallback:
        """Return the function that receives the progress of the clip of this index."""

        def update(progress: Progress) -> None:
            self._seconds[index] = progress.audio_seconds, progress.duration
            generated, total = map(sum, zip(*self._seconds, strict=True))
            self._display.update(Progress(progress.state, progress.position, generated, total))

        return update
