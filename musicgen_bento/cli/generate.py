"""`generate`: clips to files, made in this process or by a server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from musicgen_bento import model_catalog
from musicgen_bento.cli.progress import ProgressDisplay
from musicgen_bento.clip import Progress
from musicgen_bento.errors import InvalidRequest, MusicGenError

if TYPE_CHECKING:
    from musicgen_bento.client.generation import Generation
    from musicgen_bento.clip import Clip, ProgressCallback
    from musicgen_bento.engine.types import LoadProgress
    from musicgen_bento.pipelines import Pipeline
    from musicgen_bento.schemas import GenerationRequest

NORMALIZE = ("loudness", "peak", "rms", "clip", "none")
FORMATS = ("wav", "pcm")
FIELDS = ("duration", "seed", "temperature", "top_k", "top_p", "cfg_coef", "normalize")
TOGETHER = 8  # clips asked of a server at once: it is kept busy, and others have their turn
STDOUT = "-"
HELP = """Make clips and write them to WAV files.

In this process, with the model on this machine; or by a server, with --server. Only what is asked for is written:
whole files, or none.

\b
musicgen-bento generate --prompt "lofi hip hop" --duration 20 --output lofi.wav
musicgen-bento generate --prompt "drone" --duration 20 --output - --stream --server http://localhost:8000 > drone.wav
musicgen-bento generate --prompts prompts.txt --duration 20 --output clips.wav
"""

Made = Generator[tuple[int, "Clip"], None, None]
Sound = Generator[bytes, None, None]


def names(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """The models a shell may complete to."""
    return [card.id for card in model_catalog.CATALOG if card.id.startswith(begun)]


@click.command(help=HELP)
@click.option("--prompt", metavar="TEXT", help="What the music should sound like.")
@click.option(
    "--prompts",
    type=click.File(encoding="utf-8-sig"),
    metavar="FILE",
    help="Several prompts, a line each; - is standard input. The clips are numbered: clips-1.wav, clips-2.wav.",
)
@click.option("--duration", type=float, default=30.0, show_default=True, metavar="SECONDS", help="Length of a clip.")
@click.option("--output", metavar="FILE", help="The WAV to write; - is standard output.")
@click.option(
    "--model",
    metavar="ID-OR-FOLDER",
    shell_complete=names,
    help="A model by id, or a folder with its files.  [default: from MUSICGEN_DEFAULT_MODEL, else demo]",
)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    help="The same seed and options give the same clip; several clips count up from it.  [default: drawn]",
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Higher is wilder; 0 is greedy.")
@click.option(
    "--top-k", type=int, default=250, show_default=True, help="Sample among the k likeliest tokens; 0 is all."
)
@click.option(
    "--top-p", type=float, default=0.0, show_default=True, help="Sample among the likeliest of this total; 0 is off."
)
@click.option(
    "--cfg-coef", type=float, default=3.0, show_default=True, help="How closely to follow the prompt; 1 is off."
)
@click.option(
    "--normalize", type=click.Choice(NORMALIZE), default="loudness", show_default=True, help="How to set the level."
)
@click.option("--server", metavar="URL", help="Have it made by the server at this address, with its models.")
@click.option(
    "--timeout", type=float, metavar="SECONDS", help="How long a clip of a server may take.  [default: no limit]"
)
@click.option("--stream", is_flag=True, help="Write while it is made, to --output -: for a player. Peaks are cut.")
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    default="wav",
    show_default=True,
    help="What a stream is: a WAV, or its samples alone, of 16 bits.",
)
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but errors.")
@click.pass_context
def generate(
    context: click.Context,
    /,
    prompt: str | None,
    prompts: IO[str] | None,
    output: str | None,
    model: str | None,
    server: str | None,
    timeout: float | None,
    stream: bool,
    format: str,
    quiet: bool,
    **options: Any,
) -> None:
    """Check all there is to check before anything is loaded or asked for, then make and write."""
    texts = _texts(prompt, prompts)
    if not output:
        raise click.UsageError("--output is missing.")
    if timeout is not None and server is None:
        raise click.UsageError("--timeout goes with --server.")
    if format == "pcm" and not stream:
        raise click.UsageError("--format pcm goes with --stream.")
    given = {name: options[name] for name in FIELDS if context.get_parameter_source(name) != ParameterSource.DEFAULT}
    bar = ProgressDisplay(quiet)
    try:
        if stream:
            _stream(texts, output, model, server, timeout, {**given, "format": format}, bar)
            return
        keep = _keeper(output, len(texts), bar)
        make = _here if server is None else partial(_there, server, timeout)
        with closing(make(texts, model, given, bar)) as made:
            for index, clip in made:
                keep(index, clip)
    finally:
        bar.clear()


def _texts(prompt: str | None, prompts: IO[str] | None) -> list[str]:
    if prompts is None:
        if not prompt:
            raise click.UsageError("--prompt is missing.")
        return [prompt]
    if prompt:
        raise click.UsageError("--prompt and --prompts exclude each other.")
    try:
        lines = [line.strip() for line in prompts]
    except UnicodeDecodeError:
        raise click.UsageError(f"{prompts.name} is not text in UTF-8.") from None
    if not any(lines):
        raise click.UsageError(f"{prompts.name} holds no prompt.")
    return [line for line in lines if line]


def _keeper(output: str, count: int, bar: ProgressDisplay) -> Callable[[int, Clip], None]:
    """Where each clip goes.

    Raises:
        InvalidRequest: it cannot go there.
    """
    from musicgen_bento import clip

    if output == STDOUT:
        _check_stdout(count)
        return lambda index, made: _pour(made, bar)
    targets = [clip.check_output_path(path) for path in clip.numbered_paths(Path(output), count)]

    def keep(index: int, made: Clip) -> None:
        clip.write_atomically(targets[index], made.audio)
        bar.say(f"Wrote {targets[index]}: {_about(made)}")

    return keep


def _check_stdout(count: int) -> None:
    if count > 1:
        raise click.UsageError("--output - takes one clip.")
    if sys.stdout.isatty():
        raise click.UsageError("--output - writes sound, which is nothing for a terminal.")


def _stream(
    texts: Sequence[str],
    output: str,
    model: str | None,
    server: str | None,
    timeout: float | None,
    given: dict[str, Any],
    bar: ProgressDisplay,
) -> None:
    """One clip to standard output, while it is made."""
    if output != STDOUT:
        raise click.UsageError("--stream goes with --output -; a file is written when it is whole.")
    _check_stdout(len(texts))
    with closing(
        _sound_here(texts, model, given, bar)
        if server is None
        else _sound_there(server, timeout, texts, model, given, bar)
    ) as pieces:
        for piece in pieces:
            _write(piece)


def _sound_here(texts: Sequence[str], model: str | None, given: dict[str, Any], bar: ProgressDisplay) -> Sound:
    from musicgen_bento.schemas import StreamRequest

    [request], model = _asked_here(texts, model, given, bar, StreamRequest)
    assert isinstance(request, StreamRequest)
    with _pipeline(model, request.duration, bar) as pipe:
        yield from pipe.stream(request, bar.show)
    bar.say(f"Wrote {request.duration:g} s by {model}, seed {request.seed}.")


def _sound_there(
    url: str,
    timeout: float | None,
    texts: Sequence[str],
    model: str | None,
    given: dict[str, Any],
    bar: ProgressDisplay,
) -> Sound:
    from musicgen_bento.client.sync_client import MusicGenClient
    from musicgen_bento.schemas import StreamRequest

    [request] = _requests(texts, model, None, given, StreamRequest)
    asked = {"seed": request.seed, **given}
    with MusicGenClient(url).stream(texts[0], model=model, progress=bar.show, timeout=timeout, **asked) as stream:
        for piece in stream:
            yield piece
            bar.show(Progress("running", None, stream.position, stream.duration))
        bar.say(f"Wrote {stream.duration:g} s by {stream.model}, seed {stream.seed}.")


def _pour(made: Clip, bar: ProgressDisplay) -> None:
    _write(made.audio)
    bar.say(f"Wrote {_about(made)}")


def _write(audio: bytes) -> None:
    try:
        sys.stdout.buffer.write(audio)
        sys.stdout.buffer.flush()
    except OSError as error:
        sys.stdout = None  # or the interpreter tries again at its end
        raise MusicGenError(f"Cannot write to standard output: {error.strerror}.") from None


def _about(made: Clip) -> str:
    return f"{made.duration:g} s by {made.model}, seed {made.seed}."


def _here(texts: Sequence[str], model: str | None, given: dict[str, Any], bar: ProgressDisplay) -> Made:
    """In this process. Checks at once, loads when the first clip is wanted."""
    asked, model = _asked_here(texts, model, given, bar)
    return _made(asked, model, bar)


def _asked_here(
    texts: Sequence[str],
    model: str | None,
    given: dict[str, Any],
    bar: ProgressDisplay,
    kind: type[GenerationRequest] | None = None,
) -> tuple[list[GenerationRequest], str]:
    from musicgen_bento import config

    chosen = config.load_settings()
    asked = _requests(texts, None, chosen.max_duration, given, kind)
    if model is None:
        model = chosen.default_model
        bar.say(f"No --model was given: taking {model}.")
    card = model_catalog.find_model(model)
    if card and card.note:
        bar.say(card.note)
    return asked, model


def _made(asked: Sequence[GenerationRequest], model: str, bar: ProgressDisplay) -> Made:
    with _pipeline(model, sum(request.duration for request in asked), bar) as pipe:
        for made in pipe.make(asked, bar.show):
            yield made.index, made.clip()


def _pipeline(model: str, total: float, bar: ProgressDisplay) -> Pipeline:
    """The model, once it is loaded."""
    from musicgen_bento.pipelines import Pipeline

    def tell(arrival: LoadProgress) -> None:
        if arrival.total_bytes:
            bar.fetch(model, arrival.done_bytes or 0, arrival.total_bytes)
        else:
            bar.show(Progress("loading", None, 0.0, total))

    return Pipeline(model, arriving=tell)


def _there(
    url: str,
    timeout: float | None,
    texts: Sequence[str],
    model: str | None,
    given: dict[str, Any],
    bar: ProgressDisplay,
) -> Made:
    """By a server. Checks at once, asks when the first clip is wanted."""
    from musicgen_bento.client.deadline import Deadline
    from musicgen_bento.client.generation import Generation
    from musicgen_bento.client.sync_client import DEFAULT_RETRIES
    from musicgen_bento.client.transport import Server

    Deadline(timeout)  # says what is wrong with it
    server = Server(url, DEFAULT_RETRIES, {})
    asked = _requests(texts, model, None, given)
    return _collected([Generation(server, request, timeout) for request in asked], _Sum(asked, bar))


def _collected(generations: Sequence[Generation], total: _Sum) -> Made:
    from concurrent.futures import ThreadPoolExecutor, as_completed

    if len(generations) == 1:
        yield 0, generations[0].result(total.part(0))
        return
    with ThreadPoolExecutor(TOGETHER) as threads:
        try:
            work = {
                threads.submit(generation.result, total.part(index)): index
                for index, generation in enumerate(generations)
            }
            for done in as_completed(work):
                yield work[done], done.result()
        finally:  # also when interrupted
            threads.shutdown(wait=False, cancel_futures=True)
            for generation in generations:
                generation.cancel()


class _Sum:
    """How far several clips are together."""

    def __init__(self, asked: Sequence[GenerationRequest], bar: ProgressDisplay) -> None:
        self._parts = [(0.0, request.duration) for request in asked]
        self._bar = bar

    def part(self, index: int) -> ProgressCallback:
        """What the clip of this index tells."""

        def tell(progress: Progress) -> None:
            self._parts[index] = progress.audio_seconds, progress.duration
            made, total = map(sum, zip(*self._parts, strict=True))
            self._bar.show(Progress(progress.state, progress.position, made, total))

        return tell


def _requests(
    texts: Sequence[str],
    model: str | None,
    longest: float | None,
    given: dict[str, Any],
    kind: type[GenerationRequest] | None = None,
) -> list[GenerationRequest]:
    from musicgen_bento import schemas, validation

    try:
        return validation.build_requests(
            texts, request_type=kind or schemas.GenerationRequest, model=model, max_duration=longest, **given
        )
    except InvalidRequest as error:
        message = error.message.removesuffix(".")
        ours = (longest and error.field == "duration" and "MUSICGEN" in error.hint) or error.field == "normalize"
        hint = error.hint if ours else ""
        raise InvalidRequest(f"{message}.", hint=hint or "See musicgen-bento --help.") from None
