"""The delay pattern, compared with AudioCraft's pattern provider, and the windows of a token sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
from hypothesis import given
from hypothesis import strategies as st

from musicgen_bento.engine.token_sequence import TokenSequence
from musicgen_bento.lm.delay_pattern import DelayPattern

MONO = DelayPattern((0, 1, 2, 3))
STEREO = DelayPattern((0, 0, 1, 1, 2, 2, 3, 3))


@pytest.mark.parametrize("pattern", [MONO, STEREO])
@given(frames=st.integers(1, 40))
def test_columns_equal_audiocraft(pattern: DelayPattern, frames: int) -> None:
    codes = torch.arange(pattern.codebooks * frames).view(1, pattern.codebooks, frames)
    provider_pattern = DelayedPatternProvider(pattern.codebooks, list(pattern.delays)).get_pattern(frames)
    expected, _, _ = provider_pattern.build_pattern_sequence(codes, 2048)
    sequence = TokenSequence(pattern, frames, 1500, special_token=2048)
    sequence.tokens[:] = codes[0].numpy()
    assert pattern.last_position(frames) == expected.shape[-1] - 1
    for position in range(expected.shape[-1]):
        assert sequence.column(position) == expected[0, :, position].tolist()


@pytest.mark.parametrize("pattern", [MONO, STEREO])
@given(frames=st.integers(1, 400), window=st.integers(10, 100))
def test_each_token_is_written_once_and_all_are_written(pattern: DelayPattern, frames: int, window: int) -> None:
    """This holds for any length and window. A frame counts as complete only when all of its tokens are written."""
    sequence = TokenSequence(pattern, frames, window, special_token=-1)
    steps = sequence.steps_left
    appended, noise_steps = 0, set()
    while not sequence.done:
        noise_steps.add(sequence.noise_step)
        before = sequence.tokens.copy()
        sequence.append([appended] * pattern.codebooks)
        appended += 1
        written = before != sequence.tokens
        assert (before[written] == -1).all()
        complete_frames = sequence.complete_frames
        assert (sequence.tokens[:, :complete_frames] >= 0).all()
        if complete_frames < frames:
            assert (sequence.tokens[:, complete_frames] < 0).any()
        if sequence.window_done and not sequence.done:
            context = sequence.next_window()
            assert context.shape == (pattern.codebooks, sequence.context_frames)
            assert sequence.complete_frames == complete_frames
    assert (sequence.tokens >= 0).all()
    assert appended == steps
    assert sequence.steps_left == 0


def test_no_codebook_is_sampled_twice_with_one_noise_step() -> None:
    """Two windows overlap by the last positions of the delay pattern."""
    sequence = TokenSequence(MONO, 250, 100, special_token=-1)
    sampled: set[tuple[int, int]] = set()
    while not sequence.done:
        noise_step, before = sequence.noise_step, sequence.tokens.copy()
        sequence.append([0] * 4)
        for codebook in np.nonzero((before != sequence.tokens).any(axis=1))[0]:
            assert (noise_step, int(codebook)) not in sampled
            sampled.add((noise_step, int(codebook)))
        if sequence.window_done and not sequence.done:
            sequence.next_window()
    assert len(sampled) == 250 * 4
