"""The group of commands, exit statuses, and errors of one line.

At import it needs the standard library and click only: help and completion must start fast. Each command imports the
rest of what it needs.
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

OK, FAILED, USAGE_ERROR, UNREACHABLE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_STATUSES = {
    OK: "Success.",
    FAILED: "Failure: a clip could not be generated or written, or the model's files could not be fetched.",
    USAGE_ERROR: "Usage error: the command, a setting or the request is invalid; nothing was started.",
    UNREACHABLE: "Unreachable: no server responds at this address, or not in time.",
    REFUSED: "Refused: the server is too busy or is shutting down; retry later.",
    INTERRUPTED: "Interrupted: Ctrl-C; running clips are cancelled, also on the server.",
}
INSTALL_HINT = 'running a model or the server requires: pip install "musicgen-bento[serve]"'
HELP = """Generate music from text with MusicGen.

Without a command, musicgen-bento runs `generate` with the options below.

\b
musicgen-bento --prompt "lofi hip hop" --duration 20 --output lofi.wav
"""


class Program(click.Group):
    """A group of commands that runs `generate` if the arguments begin with one of its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `generate` if the arguments begin with an option that is not the group's own."""
        group_options = {name for option in self.get_params(ctx) for name in option.opts}
        begins_with_option = bool(args) and args[0].startswith("-") and args[0] not in group_options
        is_empty = not args and not ctx.resilient_parsing
        is_generate = begins_with_option or is_empty
        return super().parse_args(ctx, ["generate", *args] if is_generate else args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of `generate`'s options and the group's own, then of the commands."""
        options = {option.name: option.get_help_record(ctx) for option in (*generate.params, *self.get_params(ctx))}
        with formatter.section("Options"):
            formatter.write_dl([record for record in options.values() if record])
        self.format_commands(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete commands, and the options of `generate`."""
        generate_context = generate.make_context("generate", [], parent=ctx, resilient_parsing=True)
        return [*super().shell_complete(ctx, incomplete), *generate.shell_complete(generate_context, incomplete)]


PROGRAM = Program(
    commands=[generate, models, pull, serve, verify],
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
click.version_option(__version__)(PROGRAM)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with one of `EXIT_STATUSES`. An error is one line on standard error."""
    # pydantic would search all installed packages for its plugins, which takes longer than importing click
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        status = PROGRAM.main(args=args, prog_name="musicgen-bento", standalone_mode=False)
    except click.ClickException as error:
        usage = " See musicgen-bento --help." if isinstance(error, click.UsageError) else ""
        _exit(f"error: {' '.join(error.format_message().split())}{usage}", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _exit("interrupted", INTERRUPTED)
    except MusicGenError as error:
        _exit(f"error: {error}", _exit_status(error))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("musicgen_bento"):
            raise
        _exit(f"error: {INSTALL_HINT} (the module {error.name} is missing)")
    sys.exit(status or OK)


def commands() -> frozenset[str]:
    """Return the names of the commands."""
    return frozenset(PROGRAM.commands)


def _exit_status(error: MusicGenError) -> int:
    if isinstance(error, InvalidRequest):
        return USAGE_ERROR
    if not error.status:  # no server has responded; see client/errors.py
        return UNREACHABLE
    refused = isinstance(error, QueueFull | JobStorageFull | Unavailable) and not isinstance(error, ModelUnavailable)
    return REFUSED if refused else FAILED


def _exit(line: str, status: int = FAILED) -> NoReturn:
    print(line, file=sys.stderr)  # noqa: T201
    sys.exit(status)
