"""The tokens of one request: the position in its sequence, the model's next input, and the windows of a long clip.

The model reads at most `window` frames (30 s) in one sequence. A longer clip is generated in several windows. Each
window begins with the last `window - stride` frames of the previous one as context, as in AudioCraft
(`BaseGenModel._generate_tokens`):

    frames    0                    900           1500          2400          3300
    window 0  |------------ generated -----------|
    window 1                       |-- context --|- generated --|
    window 2                                     |-- context --|- generated --|
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from musicgen_bento.lm.delay_pattern import DelayPattern

Tokens = NDArray[np.int64]

# AudioCraft strides by 18 s of 30 s: three fifths of each later window are generated, two fifths are context.
STRIDE_FRACTION = 0.6


class TokenSequence:
    """The tokens [K, frames] of a clip, and the position in the current window.

    Args:
        pattern: the model's delay pattern.
        frames: length of the whole clip in frames.
        window: maximum number of frames that the model reads in one sequence.
        special_token: the token at positions where the pattern has no frame.
        stride: frames between the starts of two windows; three fifths of a window by default.
    """

    def __init__(
        self, pattern: DelayPattern, frames: int, window: int, special_token: int, stride: int | None = None
    ) -> None:
        self.pattern = pattern
        self.frames = frames
        self.window = window
        self.special_token = special_token
        self.stride = int(window * STRIDE_FRACTION) if stride is None else stride
        self.tokens: Tokens = np.full((pattern.codebooks, frames), special_token, dtype=np.int64)
        self.start = 0  # first frame of the current window
        self.context_frames = 0  # frames at the start of the current window that the previous one generated
        self.position = 0  # last filled position of the current window

    @property
    def window_frames(self) -> int:
        """Length of the current window in frames."""
        return min(self.window, self.frames - self.start)

    @property
    def steps_left(self) -> int:
        """Number of positions that are still to be filled, in all windows."""
        later_frames = self.frames - self.start - self.window_frames
        later_windows = -(-later_frames // self.stride)
        this_window = self.pattern.last_position(self.window_frames) - self.position
        return this_window + later_frames + later_windows * self.pattern.max_delay

    @property
    def window_done(self) -> bool:
        """Whether every position of the current window is filled."""
        return self.position == self.pattern.last_position(self.window_frames)

    @property
    def done(self) -> bool:
        """Whether every token of the clip is known."""
        return self.window_done and self.start + self.window_frames == self.frames

    @property
    def complete_frames(self) -> int:
        """Number of frames from the start of the clip with tokens of all codebooks. Only these may be decoded."""
        in_window = max(self.context_frames, self.pattern.complete_frames(self.position))
        return self.start + min(in_window, self.window_frames)

    @property
    def noise_step(self) -> int:
        """Counter that keys the sampling noise of the next position.

        The last positions of a window share their counters with the first positions of the next window, but no codebook
        samples at both.
        """
        return self.start + self.position + 1

    def next_window(self) -> Tokens:
        """Move to the next window; return its context tokens [K, context_frames], positions 0 to context_frames - 1."""
        self.context_frames = self.window_frames - self.stride
        self.start += self.stride
        self.position = self.context_frames
        return np.array([self.column(position) for position in range(self.context_frames)], dtype=np.int64).T

    def column(self, position: int) -> list[int]:
        """The tokens [K] at a position of the current window; the special token where the pattern has no frame."""
        window_range = range(self.window_frames)
        return [
            int(self.tokens[codebook, self.start + frame]) if frame in window_range else self.special_token
            for codebook, frame in enumerate(self.pattern.frames(position))
        ]

    def next_input(self) -> list[int]:
        """The tokens [K] that the model reads to predict the next position: those of the last filled position."""
        return self.column(self.position)

    def append(self, sampled: Sequence[int]) -> None:
        """Fill the next position with sampled tokens [K]. Tokens of context frames are not overwritten."""
        self.position += 1
        generated_range = range(self.context_frames, self.window_frames)
        for codebook, frame in enumerate(self.pattern.frames(self.position)):
            if frame in generated_range:
                self.tokens[codebook, self.start + frame] = sampled[codebook]
