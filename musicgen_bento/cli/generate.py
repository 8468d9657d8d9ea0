"""`generate`: write clips to files, generated in this process or on a server."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import IO, TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from musicgen_bento import audio_options, model_catalog
from musicgen_bento.cli.output import STDOUT, check_stdout, clip_writer, write_stdout
from musicgen_bento.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from musicgen_bento.cli.clip_options import ClipOptions
    from musicgen_bento.clip import Clip

REQUEST_FIELDS = ("duration", "seed", "temperature", "top_k", "top_p", "cfg_coef", "normalize")
HELP = """Generate clips and write them to WAV files.

The model runs in this process or, with --server, on a server. Files are written completely or not at all.

\b
musicgen-bento generate --prompt "lofi hip hop" --duration 20 --output lofi.wav
musicgen-bento generate --prompt "drone" --duration 20 --output - --stream --server http://localhost:8000 > drone.wav
musicgen-bento generate --prompts prompts.txt --duration 20 --output clips.wav
"""


def complete_model_name(context: click.Context, option: click.Parameter, prefix: str) -> list[str]:
    """Return the models whose id begins with the prefix, for the completion of a shell."""
    return [card.id for card in model_catalog.CATALOG if card.id.startswith(prefix)]


@click.command(help=HELP)
@click.option("--prompt", metavar="TEXT", help="What the music should sound like.")
@click.option(
    "--prompts",
    type=click.File(encoding="utf-8-sig"),
    metavar="FILE",
    help="Several prompts, one per line; - is standard input. The clips are numbered: clips-1.wav, clips-2.wav.",
)
@click.option("--duration", type=float, default=30.0, show_default=True, metavar="SECONDS", help="Length of a clip.")
@click.option("--output", metavar="FILE", help="The WAV file to write; - is standard output.")
@click.option(
    "--model",
    metavar="ID-OR-FOLDER",
    shell_complete=complete_model_name,
    help="A model by id, or a folder with its files.  [default: MUSICGEN_DEFAULT_MODEL, else demo]",
)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    help="The same seed and options give the same clip. Further clips use the next numbers.  [default: random]",
)
@click.option(
    "--temperature",
    type=float,
    default=1.0,
    show_default=True,
    help="Higher values give more varied output; 0 is greedy.",
)
@click.option(
    "--top-k",
    type=int,
    default=250,
    show_default=True,
    help="Sample among the k likeliest tokens; 0 means all tokens.",
)
@click.option(
    "--top-p",
    type=float,
    default=0.0,
    show_default=True,
    help="Sample among the likeliest tokens with this total probability; 0 is off.",
)
@click.option(
    "--cfg-coef", type=float, default=3.0, show_default=True, help="How closely to follow the prompt; 1 is off."
)
@click.option(
    "--normalize",
    type=click.Choice(audio_options.NORMALIZE_CHOICES),
    default="loudness",
    show_default=True,
    help="How to set the level.",
)
@click.option("--server", metavar="URL", help="Generate on the server at this address, with its models.")
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    help="Time limit of each clip, with --server.  [default: no limit]",
)
@click.option(
    "--stream",
    is_flag=True,
    help="Write to --output - while generating, for a player. Peaks are clipped.",
)
@click.option(
    "--format",
    type=click.Choice(audio_options.FORMATS),
    default="wav",
    show_default=True,
    help="Format of a stream: a WAV file, or only its 16-bit samples.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
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
    **fields: Any,
) -> None:
    """Check all options before a model is loaded or a request is sent, then generate and write the clips."""
    texts = _read_prompts(prompt, prompts)
    if not output:
        raise click.UsageError("--output is missing.")
    if timeout is not None and server is None:
        raise click.UsageError("--timeout requires --server.")
    if format == "pcm" and not stream:
        raise click.UsageError("--format pcm requires --stream.")
    if stream and output != STDOUT:
        raise click.UsageError("--stream requires --output -; files are written completely or not at all.")
    from musicgen_bento.cli.clip_options import ClipOptions  # imports pydantic

    explicit_fields = {name: fields[name] for name in REQUEST_FIELDS if _is_given(context, name)}
    options = ClipOptions(texts, model, explicit_fields, format)
    display = ProgressDisplay(quiet)
    try:
        if stream:
            _write_stream(options, server, timeout, display)
        else:
            _write_clips(options, output, server, timeout, display)
    finally:
        display.clear()


def _is_given(context: click.Context, option: str) -> bool:
    return context.get_parameter_source(option) != ParameterSource.DEFAULT


def _read_prompts(prompt: str | None, prompts: IO[str] | None) -> list[str]:
    """Return the prompts of either option.

    Raises:
        click.UsageError: there is no prompt, both options are given, or the file is not text.
    """
    if prompts is None:
        if not prompt:
            raise click.UsageError("--prompt is missing.")
        return [prompt]
    if prompt:
        raise click.UsageError("--prompt and --prompts exclude each other.")
    try:
        lines = [line.strip() for line in prompts]
    except UnicodeDecodeError:
        raise click.UsageError(f"{prompts.name} is not UTF-8 text.") from None
    if not any(lines):
        raise click.UsageError(f"{prompts.name} contains no prompt.")
    return [line for line in lines if line]


def _write_clips(
    options: ClipOptions, output: str, server: str | None, timeout: float | None, display: ProgressDisplay
) -> None:
    """Generate the clips and write each one when it is finished."""
    write = clip_writer(output, len(options.prompts), display)
    with closing(_generate_clips(options, server, timeout, display)) as clips:
        for index, clip in clips:
            write(index, clip)


def _generate_clips(
    options: ClipOptions, server: str | None, timeout: float | None, display: ProgressDisplay
) -> Generator[tuple[int, Clip], None, None]:
    if server is None:
        from musicgen_bento.cli.local import generate_locally

        return generate_locally(options, display)
    from musicgen_bento.cli.remote import generate_on_server

    return generate_on_server(server, timeout, options, display)


def _write_stream(options: ClipOptions, server: str | None, timeout: float | None, display: ProgressDisplay) -> None:
    """Write one clip to standard output while it is generated."""
    check_stdout(len(options.prompts))
    with closing(_stream_clip(options, server, timeout, display)) as chunks:
        for chunk in chunks:
            write_stdout(chunk)


def _stream_clip(
    options: ClipOptions, server: str | None, timeout: float | None, display: ProgressDisplay
) -> Generator[bytes, None, None]:
    if server is None:
        from musicgen_bento.cli.local import stream_locally

        return stream_locally(options, display)
    from musicgen_bento.cli.remote import stream_from_server

    return stream_from_server(server, timeout, options, display)
