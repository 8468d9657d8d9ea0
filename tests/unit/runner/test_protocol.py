"""Events survive encoding to frames and decoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from musicgen_bento.engine.types import AudioChunk, Event, Failed, Finished, Queued, Started
from musicgen_bento.errors import QueueFull
from musicgen_bento.runner.protocol import FrameDecoder, encode

sample_arrays = arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(0, 50)),
    elements=st.floats(-4, 4, width=32),
)
events = st.one_of(
    st.builds(Queued, st.integers(0, 10_000), st.booleans()),
    st.builds(Started, st.text(max_size=20), st.integers(8000, 48000), st.integers(1, 2), st.integers(0, 2**40)),
    st.builds(AudioChunk, sample_arrays, st.integers(0, 2**40)),
    st.just(Finished()),
)


def equal(first: Event, second: Event) -> bool:
    if isinstance(first, AudioChunk) and isinstance(second, AudioChunk):
        return first.start == second.start and first.samples.tobytes() == second.samples.tobytes()
    return first == second


@settings(deadline=None)
@given(st.lists(events, max_size=8), st.integers(1, 40))
def test_events_survive_a_stream_split_at_any_byte(sent: list[Event], part_bytes: int) -> None:
    stream = b"".join(encode(event) for event in sent)
    decoder = FrameDecoder()
    starts = range(0, len(stream), part_bytes)
    received = [event for start in starts for event in decoder.feed(stream[start : start + part_bytes])]
    assert len(received) == len(sent)
    assert all(equal(first, second) for first, second in zip(received, sent, strict=True))


def test_a_decoded_error_keeps_its_type_and_fields() -> None:
    [event] = FrameDecoder().feed(encode(Failed(QueueFull("full", hint="wait", retry_after=2.5))))
    assert isinstance(event, Failed)
    assert isinstance(event.error, QueueFull)
    assert event.error.to_dict() == QueueFull("full", hint="wait", retry_after=2.5).to_dict()


def test_samples_in_any_memory_layout_are_encoded_correctly() -> None:
    audio = np.arange(12, dtype=np.float32).reshape(6, 2).T
    [event] = FrameDecoder().feed(encode(AudioChunk(audio, 3)))
    assert isinstance(event, AudioChunk)
    np.testing.assert_array_equal(event.samples, audio)


def test_empty_data_gives_no_event_and_an_unknown_frame_kind_is_an_error() -> None:
    decoder = FrameDecoder()
    assert list(decoder.feed(b"")) == []
    with pytest.raises(ValueError, match="unknown frame kind"):
        list(decoder.feed(b"?\0\0\0\0"))
