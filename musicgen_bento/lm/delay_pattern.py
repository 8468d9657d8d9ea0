"""The delay pattern: how K codebooks of one frame are spread over positions of one sequence.

    Copet et al., "Simple and Controllable Music Generation", 2023, section 2.2 (arXiv:2306.05284)

With delays [0, 1, 2, 3], frames a b c d e, and S the special token (2048, an id beyond the codebook):

    position      0  1  2  3  4  5  6  7  8
    codebook 0    S  a  b  c  d  e  S  S  S
    codebook 1    S  S  a  b  c  d  e  S  S
    codebook 2    S  S  S  a  b  c  d  e  S
    codebook 3    S  S  S  S  a  b  c  d  e

Each step of the model reads one column and predicts the next. Column 0 is an input, never predicted. Frame 0 (a) is
complete when position 4 is filled. Stereo models have eight codebooks, left and right in turn, with delays
[0, 0, 1, 1, 2, 2, 3, 3].
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DelayPattern:
    """The offset of each codebook in the token sequence.

    Attributes:
        delays: positions by which each codebook is delayed; ascending, the first is 0.
    """

    delays: tuple[int, ...]

    @property
    def codebooks(self) -> int:
        """The number of codebooks, K."""
        return len(self.delays)

    @property
    def max_delay(self) -> int:
        """The delay of the last codebook: so many positions after a frame's first token, the frame is complete."""
        return max(self.delays)

    def last_position(self, frames: int) -> int:
        """The position that completes the last of so many frames. It is also the number of steps for them."""
        return frames + self.max_delay

    def frames(self, position: int) -> list[int]:
        """The frame of each codebook's token at a position; outside of [0, frames) the token is the special token."""
        return [position - 1 - delay for delay in self.delays]

    def complete_frames(self, position: int) -> int:
        """The number of frames that are complete when this position is filled."""
        return max(0, position - self.max_delay)
