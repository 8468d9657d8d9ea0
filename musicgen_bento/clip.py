"""A finished clip, and its file."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from musicgen_bento.errors import InvalidRequest, MusicGenError


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the generation of a clip is; of several clips together, the sums of their seconds.

    Attributes:
        state: queued, loading, running or done.
        position: rank in the queue, counted from 1, which is next; None for a clip that is not queued.
        audio_seconds: seconds of audio generated so far.
        duration: seconds of audio to generate.
    """

    state: str
    position: int | None
    audio_seconds: float
    duration: float


ProgressCallback: TypeAlias = Callable[[Progress], object]
"""A function that receives each change of the progress. Its result is ignored."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip as a server or a pipeline made it.

    Attributes:
        audio: a whole WAV file: 16-bit PCM.
        seed: with the same request it makes this clip again.
        model: the id of the model that made it.
        sample_rate: Hz.
        channels: 1 or 2.
        duration: seconds.
    """

    audio: bytes = field(repr=False)
    seed: int
    model: str
    sample_rate: int
    channels: int
    duration: float

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the WAV. The file is there whole or not at all; one of that name is replaced.

        Raises:
            InvalidRequest: there can be no such file.
            MusicGenError: it cannot be written, the disk being full for one.
        """
        write_atomically(check_output_path(path), self.audio)


def check_output_path(path: str | os.PathLike[str]) -> Path:
    """Where the file goes, once it is sure that it can.

    Raises:
        InvalidRequest: it cannot.
    """
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise InvalidRequest(f"There is no folder {folder}.", hint="Make it, or choose another file.")
    if target.is_dir():
        raise InvalidRequest(f"{target} is a folder.", hint="Name a file in it.")
    if not _special(target):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InvalidRequest(f"Cannot write to {folder}: {error.strerror}.", hint="Choose another file.") from None
    return target


def numbered_paths(path: Path, count: int) -> list[Path]:
    """Return the path of one clip, or the numbered paths of several: `lofi-01.wav` to `lofi-12.wav`."""
    if count == 1:
        return [path]
    width = len(str(count))
    return [path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}") for number in range(1, count + 1)]


def write_atomically(target: Path, audio: bytes) -> None:
    """All of it or nothing: into a file beside it, which then takes its name.

    Raises:
        MusicGenError: it cannot be written; no part of it stays.
    """
    special = _special(target)
    partial = target if special else target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("wb" if special else "xb") as file:
            file.write(audio)
        if not special:
            partial.replace(target)
    except OSError as error:
        raise MusicGenError(f"Cannot write {target}: {error.strerror}.", hint="Is the disk full?") from None
    finally:
        if not special:
            partial.unlink(missing_ok=True)


def _special(target: Path) -> bool:
    """A device or a pipe, which must not be replaced by a file."""
    return target.exists() and not target.is_file()
