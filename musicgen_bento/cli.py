"""The command line: make a clip in this process, serve, list the models.

Nothing but the standard library and click is imported before it is known what is wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from musicgen_bento.errors import InvalidRequest, MusicGenError

try:
    import click
except ModuleNotFoundError:  # the base install is the client alone
    click = None  # type: ignore[assignment]

OK, FAILED, MISUSE, INTERRUPTED = 0, 1, 2, 130
INSTALL = 'error: this command needs the server: pip install "musicgen-bento[serve]"'
HELP = """Text to music with MusicGen.

Without a command: make a clip here, in this process, and write it to a WAV file.

\b
musicgen-bento --prompt "lofi hip hop" --duration 20 --output lofi.wav
"""
NORMALIZE = ("loudness", "peak", "rms", "clip", "none")


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit: 0 done, 1 failed, 2 misused, 130 interrupted; an error is one line on stderr."""
    if click is None:
        _fail(INSTALL)
    try:
        status = _commands().main(args=args, prog_name="musicgen-bento", standalone_mode=False)
    except click.ClickException as error:
        usage = " See musicgen-bento --help." if isinstance(error, click.UsageError) else ""
        _fail(f"error: {' '.join(error.format_message().split())}{usage}", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except MusicGenError as error:
        _fail(f"error: {error}", MISUSE if isinstance(error, InvalidRequest) else FAILED)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("musicgen_bento"):
            raise
        _fail(f"{INSTALL} (there is no {error.name})")
    sys.exit(status or OK)


def _fail(line: str, status: int = FAILED) -> NoReturn:
    print(line, file=sys.stderr)  # noqa: T201
    sys.exit(status)


def commands() -> frozenset[str]:
    """The names of the commands."""
    return frozenset(_commands().commands)


def _commands() -> Any:
    from musicgen_bento import __version__

    @click.group(
        invoke_without_command=True,
        help=HELP,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    @click.option("--prompt", metavar="TEXT", help="What the music should sound like.")
    @click.option(
        "--duration", type=float, default=30.0, show_default=True, metavar="SECONDS", help="Length of the clip."
    )
    @click.option("--output", metavar="FILE", help="The WAV to write.")
    @click.option(
        "--model",
        metavar="ID-OR-FOLDER",
        help="A model by id, or a folder with its files.  [default: from MUSICGEN_DEFAULT_MODEL, else demo]",
    )
    @click.option(
        "--seed", type=int, metavar="N", help="The same seed and options give the same clip.  [default: drawn]"
    )
    @click.option("--temperature", type=float, default=1.0, show_default=True, help="Higher is wilder; 0 is greedy.")
    @click.option(
        "--top-k", type=int, default=250, show_default=True, help="Sample among the k likeliest tokens; 0 is all."
    )
    @click.option(
        "--top-p",
        type=float,
        default=0.0,
        show_default=True,
        help="Sample among the likeliest of this total; 0 is off.",
    )
    @click.option(
        "--cfg-coef", type=float, default=3.0, show_default=True, help="How closely to follow the prompt; 1 is off."
    )
    @click.option(
        "--normalize", type=click.Choice(NORMALIZE), default="loudness", show_default=True, help="How to set the level."
    )
    @click.version_option(__version__)
    @click.pass_context
    def group(context: click.Context, /, prompt: str | None, output: str | None, **options: Any) -> None:
        if context.invoked_subcommand is None:
            if not prompt or not output:
                raise click.UsageError(f"{'--output' if prompt else '--prompt'} is missing.")
            from musicgen_bento import local

            local.generate(prompt=prompt, output=output, **options)

    @group.command()
    @click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
    @click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
    def serve(host: str, port: int) -> None:
        """Start the HTTP service and its page."""
        from musicgen_bento import launch

        launch.serve(host, port)

    @group.command()
    def models() -> None:
        """List the models by name."""
        from musicgen_bento import local

        click.echo(local.model_table())

    return group


if __name__ == "__main__":
    main()
