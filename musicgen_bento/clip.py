"""A finished clip, its WAV file, and the progress of its generation."""

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


def ignore_progress(_: Progress) -> None:
    """Do nothing: the callback of a caller that passes none."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A finished clip of a server or a pipeline.

    Attributes:
        audio: the bytes of a WAV file with 16-bit PCM.
        seed: the same request with this seed gives the same clip.
        model: id of the model that generated the clip.
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
        """Write the WAV file atomically, and replace an existing file.

        Raises:
            InvalidRequest: the path cannot be written to.
            MusicGenError: writing failed, for example on a full disk.
        """
        write_atomically(check_output_path(path), self.audio)


def check_output_path(path: str | os.PathLike[str]) -> Path:
    """Return the path, after a check that a file can be written there.

    Raises:
        InvalidRequest: the folder does not exist or is not writable, or the path is a folder.
    """
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise InvalidRequest(f"There is no folder {folder}.", hint="Create the folder, or choose another path.")
    if target.is_dir():
        raise InvalidRequest(f"{target} is a folder.", hint="Add a file name to the path.")
    if not _is_device_or_pipe(target):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InvalidRequest(
                f"Cannot write to {folder}: {error.strerror}.", hint="Choose another folder."
            ) from None
    return target


def numbered_paths(path: Path, count: int) -> list[Path]:
    """Return the path of one clip, or the numbered paths of several: `lofi-01.wav` to `lofi-12.wav`."""
    if count == 1:
        return [path]
    width = len(str(count))
    return [path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}") for number in range(1, count + 1)]


def write_atomically(target: Path, audio: bytes) -> None:
    """Write a file completely or not at all: into a temporary file in the same folder, which is then renamed.

    A device or a pipe is written to directly.

    Raises:
        MusicGenError: writing failed; the temporary file is removed.
    """
    in_place = _is_device_or_pipe(target)
    partial = target if in_place else target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("wb" if in_place else "xb") as file:
            file.write(audio)
        if not in_place:
            partial.replace(target)
    except OSError as error:
        raise MusicGenError(f"Cannot write {target}: {error.strerror}.", hint="Is the disk full?") from None
    finally:
        if not in_place:
            partial.unlink(missing_ok=True)


def _is_device_or_pipe(target: Path) -> bool:
    """Whether the path is something that a regular file must not replace."""
    return target.exists() and not target.is_file()
