"""What the command line does in its own process: one clip to a file, the table of models."""

from __future__ import annotations

import queue
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from musicgen_bento import catalogue
from musicgen_bento.body import invalid
from musicgen_bento.config import Settings
from musicgen_bento.engine.types import Chunk, Event, Failed, Finished, GenerationParams, Samples, Started
from musicgen_bento.errors import InvalidRequest, MusicGenError
from musicgen_bento.schemas import MAX_SEED, GenerationRequest

WAKE_SECONDS = 0.2  # how often the wait for the engine looks for Ctrl-C


def settings() -> Settings:
    """The settings, or an error that names the variable.

    Raises:
        InvalidRequest: a variable is out of its range.
    """
    try:
        return Settings()
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        name = f"MUSICGEN_{str(fault['loc'][0]).upper()}" if fault["loc"] else "MUSICGEN_*"
        raise InvalidRequest(f"{name}: {fault['msg']}.") from None


def generate(*, prompt: str, output: str, model: str | None, seed: int | None, **options: Any) -> None:
    """Make a clip and write it as WAV. What the file is to be is checked before anything is loaded.

    Raises:
        MusicGenError: it could not be made or written; there is no file then, nor a part of one.
    """
    chosen = settings()
    target = _target(output)
    try:
        asked = GenerationRequest(prompt=prompt, seed=seed, **options)
    except ValidationError as error:
        fault = invalid(error, GenerationRequest)
        raise InvalidRequest(f"{fault.message}.", hint="See musicgen-bento --help.") from None
    if asked.duration > chosen.max_duration:
        raise InvalidRequest(
            f"duration is {asked.duration:g} s and the longest is {chosen.max_duration:g} s.",
            hint="MUSICGEN_MAX_DURATION sets it.",
        )
    if model is None:
        model = chosen.default_model
        _say(f"No --model was given: taking {model}.")
    card = catalogue.find(model)
    if card and card.note:
        _say(card.note)
    drawn = secrets.randbelow(MAX_SEED + 1) if asked.seed is None else asked.seed
    params = GenerationParams(seed=drawn, **asked.model_dump(exclude={"model", "normalize", "seed"}))
    # Nothing is preloaded: only the model that was asked for.
    samples, started = _make(chosen.model_copy(update={"preload": ()}), model, params)
    from musicgen_bento import audio

    _write(
        target, audio.encode_wav(audio.normalize(samples, started.sample_rate, asked.normalize), started.sample_rate)
    )
    _say(f"Wrote {output}: {started.samples / started.sample_rate:g} s by {started.model}, seed {drawn}.")


def model_table() -> str:
    """The catalogue as text: name, where its files are, licence, size of the download."""
    from musicgen_bento.engine.hub import is_cached

    rows = [("MODEL", "STATE", "LICENCE", "DOWNLOAD")]
    for card in catalogue.CATALOGUE:
        state = "built in" if card.folder else "cached" if is_cached(card.id, "state_dict.bin") else "downloadable"
        rows.append(
            (card.id, state, card.license, f"{card.download_bytes / 1e9:.1f} GB" if card.download_bytes else "-")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{card.id}: {card.note}" for card in catalogue.CATALOGUE if card.note]
    return "\n".join([*lines, "", *notes])


def _make(chosen: Settings, model: str, params: GenerationParams) -> tuple[Samples, Started]:
    import numpy as np

    from musicgen_bento.engine.pool import EnginePool

    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    pool = EnginePool(chosen, allow_any_model=True, allow_folders=True)
    try:
        pool.submit(model, params, events.put)
        started: Started | None = None
        while True:
            match _next(events):
                case Started() as started:
                    samples = np.zeros((started.channels, started.samples), np.float32)
                case Chunk(piece, position) if started:
                    samples[:, position : position + piece.shape[1]] = piece
                    _progress(position + piece.shape[1], started)
                case Finished() if started:
                    return samples, started
                case Failed(error):
                    raise error
    finally:  # also when interrupted: what runs is dropped, not finished
        pool.close()


def _next(events: queue.SimpleQueue[Event]) -> Event:
    while True:
        try:
            return events.get(timeout=WAKE_SECONDS)
        except queue.Empty:
            continue


def _target(output: str) -> Path:
    """Where the file goes, once it is sure that it can.

    Raises:
        InvalidRequest: it cannot.
    """
    target = Path(output)
    folder = target.parent
    if not folder.is_dir():
        raise InvalidRequest(f"There is no folder {folder}.", hint="Make it, or choose another --output.")
    if target.is_dir():
        raise InvalidRequest(f"{target} is a folder.", hint="Name a file in it.")
    if not _special(target):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InvalidRequest(
                f"Cannot write to {folder}: {error.strerror}.", hint="Choose another --output."
            ) from None
    return target


def _special(target: Path) -> bool:
    """A device or a pipe, which must not be replaced by a file."""
    return target.exists() and not target.is_file()


def _write(target: Path, wav: bytes) -> None:
    """All of it or nothing: into a file beside it, which then takes its name."""
    if _special(target):
        target.write_bytes(wav)
        return
    partial = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("xb") as file:
            file.write(wav)
        partial.replace(target)
    except OSError as error:
        raise MusicGenError(f"Cannot write {target}: {error.strerror}.", hint="Is the disk full?") from None
    finally:
        partial.unlink(missing_ok=True)


def _progress(done: int, started: Started) -> None:
    if sys.stderr.isatty():
        end = "\n" if done >= started.samples else ""
        sys.stderr.write(f"\r{done / started.sample_rate:6.1f} of {started.samples / started.sample_rate:g} s{end}")
        sys.stderr.flush()


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201
