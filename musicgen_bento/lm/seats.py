"""Seats: clips side by side in one piece of memory, for decoders that run over neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Clip = TypeVar("Clip")


def seat_of(clip: Clip, seated: Sequence[Clip]) -> int:
    """Where it sits, by what it is, not by what it is equal to.

    Raises:
        StopIteration: it does not.
    """
    return next(seat for seat, other in enumerate(seated) if other is clip)
