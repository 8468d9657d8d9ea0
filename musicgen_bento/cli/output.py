"""Write clips to files or to standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import click

from musicgen_bento.cli.progress import ProgressDisplay
from musicgen_bento.clip import Clip, check_output_path, numbered_paths, write_atomically
from musicgen_bento.errors import MusicGenError

STDOUT = "-"

ClipWriter: TypeAlias = Callable[[int, Clip], None]
"""A function that writes the clip of an index."""


def clip_writer(output: str, count: int, display: ProgressDisplay) -> ClipWriter:
    """Return the function that writes the clips. All output paths are checked before.

    Args:
        output: a file, or - for standard output. Several clips go to numbered files.
        count: number of clips.
        display: shows each file that is written.

    Raises:
        InvalidRequest: a file cannot be written.
        click.UsageError: standard output cannot take the clips.
    """
    if output == STDOUT:
        check_stdout(count)
        return lambda index, clip: _write_clip_to_stdout(clip, display)
    paths = [check_output_path(path) for path in numbered_paths(Path(output), count)]

    def write(index: int, clip: Clip) -> None:
        write_atomically(paths[index], clip.audio)
        display.log(f"Wrote {paths[index]}: {_describe(clip)}")

    return write


def check_stdout(count: int) -> None:
    """Check that standard output can take the clips.

    Raises:
        click.UsageError: there are several clips, or standard output is a terminal.
    """
    if count > 1:
        raise click.UsageError("--output - accepts one clip only.")
    if sys.stdout.isatty():
        raise click.UsageError("--output - writes audio data; redirect standard output to a file or a player.")


def write_stdout(audio: bytes) -> None:
    """Write bytes to standard output at once.

    Raises:
        MusicGenError: standard output is closed, or its disk is full.
    """
    try:
        sys.stdout.buffer.write(audio)
        sys.stdout.buffer.flush()
    except OSError as error:
        sys.stdout = None  # otherwise the interpreter flushes again at exit and prints a traceback
        raise MusicGenError(f"Cannot write to standard output: {error.strerror}.") from None


def _write_clip_to_stdout(clip: Clip, display: ProgressDisplay) -> None:
    write_stdout(clip.audio)
    display.log(f"Wrote {_describe(clip)}")


def _describe(clip: Clip) -> str:
    return f"{clip.duration:g} s by {clip.model}, seed {clip.seed}."
