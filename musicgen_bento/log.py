"""The logger, and descriptions of exceptions without their text, which may quote a prompt."""

from __future__ import annotations

import logging
import traceback

MAX_FRAMES = 8  # innermost stack frames of an exception that are logged

logger = logging.getLogger("bentoml.musicgen")  # a child of BentoML's logger, which has a handler


def exception_location(error: BaseException) -> str:
    """Return the type of an exception and the lines it passed through, outermost first, without any values."""
    frames = traceback.extract_tb(error.__traceback__)
    path = " > ".join(f"{_short_path(frame.filename)}:{frame.lineno}" for frame in frames[-MAX_FRAMES:])
    return f"{type(error).__module__}.{type(error).__qualname__} at {path or 'an unknown location'}"


def exception_summary(error: BaseException) -> str:
    """Return the type of an exception and the line that raised it, such as `ValueError at decoder.py:31`."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return f"{type(error).__qualname__} at an unknown location"
    file = _short_path(frames[-1].filename).rsplit("/", 1)[-1]
    return f"{type(error).__qualname__} at {file}:{frames[-1].lineno}"


def _short_path(filename: str) -> str:
    """Return the last folder and the file name."""
    return "/".join(filename.replace("\\", "/").split("/")[-2:])
