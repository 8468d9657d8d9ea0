"""The command line: a group of commands, exit statuses, errors of one line.

Nothing but the standard library and click is imported before it is known what is wanted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from musicgen_bento import __version__
from musicgen_bento.cli.generate import generate
from musicgen_bento.cli.models import models
from musicgen_bento.cli.pull import pull
from musicgen_bento.cli.serve import serve
from musicgen_bento.cli.verify import verify
from musicgen_bento.errors import (
    InvalidRequest,
    JobStorageFull,
    ModelUnavailable,
    MusicGenError,
    QueueFull,
    Unavailable,
)

OK, FAILED, MISUSE, UNREACHABLE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130
STATUSES = {
    OK: "Done.",
    FAILED: "Failed: the music could not be made or written, the model's files could not be had.",
    MISUSE: "Misused: the command, a setting or the request is wrong as it is written; nothing was begun.",
    UNREACHABLE: "Unreachable: no such server answers at that address, or not in time.",
    REFUSED: "Refused: the server is too busy, or about to stop; later it may do.",
    INTERRUPTED: "Interrupted: Ctrl-C; what was begun is cancelled, on the server too.",
}
INSTALL = 'this needs the model or the server: pip install "musicgen-bento[serve]"'
HELP = """Text to music with MusicGen.

Without a command it is `generate`, whose options are below.

\b
musicgen-bento --prompt "lofi hip hop" --duration 20 --output lofi.wav
"""


class Program(click.Group):
    """A group that takes the options of `generate` without its name, as documents in use write them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name before the options, where it is left out."""
        own = {name for option in self.get_params(ctx) for name in option.opts}
        unnamed = args[0].startswith("-") and args[0] not in own if args else not ctx.resilient_parsing
        return super().parse_args(ctx, ["generate", *args] if unnamed else args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options of `generate` and its own, then the commands."""
        options = {option.name: option.get_help_record(ctx) for option in (*generate.params, *self.get_params(ctx))}
        with formatter.section("Options"):
            formatter.write_dl([record for record in options.values() if record])
        self.format_commands(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands, and the options of `generate`."""
        unnamed = generate.make_context("generate", [], parent=ctx, resilient_parsing=True)
        return [*super().shell_complete(ctx, incomplete), *generate.shell_complete(unnamed, incomplete)]


PROGRAM = Program(
    commands=[generate, models, pull, serve, verify],
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
click.version_option(__version__)(PROGRAM)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with one of STATUSES; where it did not go well, one line on standard error says why."""
    # pydantic would look for plugins of its own in all that is installed, which takes longer than click
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        status = PROGRAM.main(args=args, prog_name="musicgen-bento", standalone_mode=False)
    except click.ClickException as error:
        usage = " See musicgen-bento --help." if isinstance(error, click.UsageError) else ""
        _fail(f"error: {' '.join(error.format_message().split())}{usage}", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except MusicGenError as error:
        _fail(f"error: {error}", _status(error))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("musicgen_bento"):
            raise
        _fail(f"error: {INSTALL} (there is no {error.name})")
    sys.exit(status or OK)


def commands() -> frozenset[str]:
    """The names of the commands."""
    return frozenset(PROGRAM.commands)


def _status(error: MusicGenError) -> int:
    if isinstance(error, InvalidRequest):
        return MISUSE
    if not error.status:  # no server has spoken; see calls.py
        return UNREACHABLE
    busy = isinstance(error, QueueFull | JobStorageFull | Unavailable) and not isinstance(error, ModelUnavailable)
    return REFUSED if busy else FAILED


def _fail(line: str, status: int = FAILED) -> NoReturn:
    print(line, file=sys.stderr)  # noqa: T201
    sys.exit(status)
