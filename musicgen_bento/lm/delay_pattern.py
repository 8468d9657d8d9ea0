"""The delay pattern: how K codebooks of one frame are spread over positions of one sequence.

    Copet et al., "Simple and Controllable Music Generation", 2023, section 2.2 (arXiv:2306.05284)

With delays [0, 1, 2, 3], frames a b c d e, and S the special token (2048, an id beyond the codebook):

    position      0  1  2  3  4  5  6  7  8
    codebook 0    S  a  b  c  d  e  S  S  S
    codebook 1    S  S  a  b  c  d  e  S  S
    codebook 2    S  S  S  a  b  c  d  e  S
    codebook 3    S  S  S  S  a  b  c  d  e

Each step of the model reads one column and predicts the next. Column 0 is given, never predicted. Frame 0 (a) is
complete once position 4 is filled. Stereo models have eight codebooks, left and right in turn, with delays
[0, 0, 1, 1, 2, 2, 3, 3].
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DelayPattern:
    """Which frame stands where.

    Attributes:
        delays: positions by which each codebook lags; ascending, the first 0.
    """

    delays: tuple[int, ...]

    @property
    def codebooks(self) -> int:
        """K."""
        return len(self.delays)

    @property
    def max_delay(self) -> int:
        """Positions after which a frame begun is complete."""
        return max(self.delays)

    def last_position(self, frames: int) -> int:
        """The position that completes the last of so many frames; as many steps does a clip of them take."""
        return frames + self.max_delay

    def frames(self, position: int) -> list[int]:
        """The frame of each codebook's token at a position; out of [0, frames) where the special token stands."""
        return [position - 1 - delay for delay in self.delays]

    def complete_frames(self, position: int) -> int:
        """How many frames have every codebook once this position is filled."""
        return max(0, position - self.max_delay)
