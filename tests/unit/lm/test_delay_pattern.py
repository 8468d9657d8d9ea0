"""The delay pattern and the windows of a clip, against AudioCraft's own pattern provider."""

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
def test_columns_are_audiocrafts(pattern: DelayPattern, frames: int) -> None:
    codes = torch.arange(pattern.codebooks * frames).view(1, pattern.codebooks, frames)
    theirs = DelayedPatternProvider(pattern.codebooks, list(pattern.delays)).get_pattern(frames)
    sequence, _, _ = theirs.build_pattern_sequence(codes, 2048)
    clip = TokenSequence(pattern, frames, 1500, special_token=2048)
    clip.tokens[:] = codes[0].numpy()
    assert pattern.last_position(frames) == sequence.shape[-1] - 1
    for position in range(sequence.shape[-1]):
        assert clip.column(position) == sequence[0, :, position].tolist()


@pytest.mark.parametrize("pattern", [MONO, STEREO])
@given(frames=st.integers(1, 400), window=st.integers(10, 100))
def test_a_clip_is_filled_once_and_whole(pattern: DelayPattern, frames: int, window: int) -> None:
    """Whatever the length and the window: each token is written once, and frames are complete only when they are."""
    clip = TokenSequence(pattern, frames, window, special_token=-1)
    steps = clip.steps_left
    taken, keys = 0, set()
    while not clip.done:
        keys.add(clip.noise_step)
        before = clip.tokens.copy()
        clip.append([taken] * pattern.codebooks)
        taken += 1
        written = before != clip.tokens
        assert (before[written] == -1).all()
        done = clip.complete_frames
        assert (clip.tokens[:, :done] >= 0).all()
        if done < frames:
            assert (clip.tokens[:, done] < 0).any()
        if clip.window_done and not clip.done:
            memory = clip.next_window()
            assert memory.shape == (pattern.codebooks, clip.context_frames)
            assert clip.complete_frames == done
    assert (clip.tokens >= 0).all()
    assert taken == steps
    assert clip.steps_left == 0


def test_keys_differ_where_tokens_are_drawn() -> None:
    """Two windows overlap by the delay's tail; no codebook draws twice for one key."""
    clip = TokenSequence(MONO, 250, 100, special_token=-1)
    drawn: set[tuple[int, int]] = set()
    while not clip.done:
        key, before = clip.noise_step, clip.tokens.copy()
        clip.append([0] * 4)
        for codebook in np.nonzero((before != clip.tokens).any(axis=1))[0]:
            assert (key, int(codebook)) not in drawn
            drawn.add((key, int(codebook)))
        if clip.window_done and not clip.done:
            clip.next_window()
    assert len(drawn) == 250 * 4
