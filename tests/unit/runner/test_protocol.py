from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from musicgen_bento.engine.types import AudioChunk, Event, Failed, Finished, Queued, Started
from musicgen_bento.errors import QueueFull
from musicgen_bento.runner.protocol import FrameDecoder, encode

samples = arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(0, 50)),
    elements=st.floats(-4, 4, width=32),
)
events = st.one_of(
    st.builds(Queued, st.integers(0, 10_000), st.booleans()),
    st.builds(Started, st.text(max_size=20), st.integers(8000, 48000), st.integers(1, 2), st.integers(0, 2**40)),
    st.builds(AudioChunk, samples, st.integers(0, 2**40)),
    st.just(Finished()),
)


def same(one: Event, other: Event) -> bool:
    if isinstance(one, AudioChunk) and isinstance(other, AudioChunk):
        return one.start == other.start and one.samples.tobytes() == other.samples.tobytes()
    return one == other


@settings(deadline=None)
@given(st.lists(events, max_size=8), st.integers(1, 40))
def test_events_survive_being_cut_anywhere(story: list[Event], piece: int) -> None:
    stream = b"".join(encode(event) for event in story)
    decoder = FrameDecoder()
    got = [event for at in range(0, len(stream), piece) for event in decoder.feed(stream[at : at + piece])]
    assert len(got) == len(story)
    assert all(same(one, other) for one, other in zip(got, story, strict=True))


def test_an_error_arrives_as_what_it_was() -> None:
    [event] = FrameDecoder().feed(encode(Failed(QueueFull("full", hint="wait", retry_after=2.5))))
    assert isinstance(event, Failed)
    assert isinstance(event.error, QueueFull)
    assert event.error.to_dict() == QueueFull("full", hint="wait", retry_after=2.5).to_dict()


def test_samples_of_any_layout_are_sent_as_they_are() -> None:
    audio = np.arange(12, dtype=np.float32).reshape(6, 2).T
    [event] = FrameDecoder().feed(encode(AudioChunk(audio, 3)))
    assert isinstance(event, AudioChunk)
    np.testing.assert_array_equal(event.samples, audio)


def test_an_empty_piece_is_nothing_and_a_foreign_one_is_refused() -> None:
    decoder = FrameDecoder()
    assert list(decoder.feed(b"")) == []
    with pytest.raises(ValueError, match="no such kind"):
        list(decoder.feed(b"?\0\0\0\0"))
