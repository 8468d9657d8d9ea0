"""What may be said of an unexpected exception: never its text, which may quote a prompt."""

from __future__ import annotations

import traceback


def exception_location(error: BaseException) -> str:
    """Its type and the places in the code it came through, outermost first; no values."""
    frames = traceback.extract_tb(error.__traceback__)
    path = " > ".join(f"{_short(frame.filename)}:{frame.lineno}" for frame in frames[-8:])
    return f"{type(error).__module__}.{type(error).__qualname__} at {path or 'an unknown place'}"


def exception_summary(error: BaseException) -> str:
    """Its type and the place it was raised at, such as `ValueError at decoder.py:31`: short enough for an answer."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{_short(frames[-1].filename).rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else "an unknown place"
    return f"{type(error).__qualname__} at {place}"


def _short(filename: str) -> str:
    return "/".join(filename.replace("\\", "/").split("/")[-2:])
