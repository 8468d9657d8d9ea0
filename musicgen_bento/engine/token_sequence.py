"""One clip's tokens: where it is in its sequence, what the model reads next, and how it goes on past the window.

A model hears at most `window` frames (30 s). A longer clip is made in windows, each primed with the last
`window - stride` frames of the one before, as AudioCraft does (`BaseGenModel._generate_tokens`):

    frames    0                    900           1500          2400          3300
    window 0  |-------------- made --------------|
    window 1                       |--- primed ---|---- made ----|
    window 2                                     |--- primed ---|---- made ----|
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from musicgen_bento.lm.delay_pattern import DelayPattern

Tokens = NDArray[np.int64]

# AudioCraft strides by 18 s of 30: three fifths of the window are new, two are memory.
STRIDE = 0.6


class TokenSequence:
    """Tokens [K, frames] as they come, and the position in the window's sequence.

    Args:
        pattern: the model's delay pattern.
        frames: length of the whole clip.
        window: most frames the model takes in one sequence.
        special: the token that stands where the pattern has no frame.
        stride: frames by which a full window moves on; by default three fifths of it.
    """

    def __init__(
        self, pattern: DelayPattern, frames: int, window: int, special: int, stride: int | None = None
    ) -> None:
        self.pattern = pattern
        self.frames = frames
        self.window = window
        self.special_token = special
        self.stride = int(window * STRIDE) if stride is None else stride
        self.tokens: Tokens = np.full((pattern.codebooks, frames), special, dtype=np.int64)
        self.start = 0  # first frame of this window
        self.context_frames = 0  # frames of this window known before it began
        self.position = 0  # last position of this window that is filled

    @property
    def window_frames(self) -> int:
        """Length of the window the clip is in."""
        return min(self.window, self.frames - self.start)

    @property
    def steps_left(self) -> int:
        """Positions still to fill, over all windows."""
        left = self.frames - self.start - self.window_frames
        windows = -(-left // self.stride)
        tail = self.pattern.max_delay
        return self.pattern.last_position(self.window_frames) - self.position + left + windows * tail

    @property
    def window_done(self) -> bool:
        """Whether every position of this window is filled."""
        return self.position == self.pattern.last_position(self.window_frames)

    @property
    def done(self) -> bool:
        """Whether every token of the clip is there."""
        return self.window_done and self.start + self.window_frames == self.frames

    @property
    def complete_frames(self) -> int:
        """Frames from the clip's start of which every codebook is known. Only these may be decoded."""
        return self.start + min(
            max(self.context_frames, self.pattern.complete_frames(self.position)), self.window_frames
        )

    @property
    def noise_step(self) -> int:
        """What the noise of the next position is keyed by. The few positions at a window's end share theirs with the
        next window's first, but no codebook draws at both.
        """
        return self.start + self.position + 1

    def next_window(self) -> Tokens:
        """Move on and give what primes the new window: columns [K, primed] at positions 0 to primed - 1."""
        self.context_frames = self.window_frames - self.stride
        self.start += self.stride
        self.position = self.context_frames
        return np.array([self.column(position) for position in range(self.context_frames)], dtype=np.int64).T

    def column(self, position: int) -> list[int]:
        """The tokens [K] at a position of this window; the special token where there is none."""
        there = range(self.window_frames)
        return [
            int(self.tokens[codebook, self.start + frame]) if frame in there else self.special_token
            for codebook, frame in enumerate(self.pattern.frames(position))
        ]

    def next_input(self) -> list[int]:
        """What the model reads to predict the next position: the last filled column [K]."""
        return self.column(self.position)

    def append(self, sampled: Sequence[int]) -> None:
        """Fill the next position with a sample [K]; what is known already, or has no frame, stays as it is."""
        self.position += 1
        made = range(self.context_frames, self.window_frames)
        for codebook, frame in enumerate(self.pattern.frames(self.position)):
            if frame in made:
                self.tokens[codebook, self.start + frame] = sampled[codebook]
