"""The PCM buffer: each client gets the whole clip at its own pace, or an error."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from musicgen_bento import audio
from musicgen_bento.engine.types import AudioChunk, Event, Finished, Started
from musicgen_bento.errors import GenerationFailed, UnknownJob
from musicgen_bento.schemas import StreamNormalize
from musicgen_bento.server.audio_buffer import CHUNK_BYTES, PcmBuffer

STARTED = Started("demo", 32_000, 2, 100_000)
WAVEFORM = np.random.default_rng(0).normal(0, 0.6, (2, STARTED.samples)).astype(np.float32)


def chunk(start: int, end: int) -> AudioChunk:
    return AudioChunk(WAVEFORM[:, start:end], start)


async def join(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


@given(st.lists(st.integers(0, STARTED.samples), max_size=8), st.sampled_from(["clip", "none"]))
def test_pcm_does_not_depend_on_chunk_sizes_or_client_timing(cuts: list[int], strategy: StreamNormalize) -> None:
    async def test() -> None:
        buffer = PcmBuffer(strategy)
        early_reader = asyncio.create_task(join(buffer.iter_chunks()))
        edges = [0, *sorted(cuts), STARTED.samples]
        for event in (STARTED, *(chunk(a, b) for a, b in pairwise(edges)), Finished()):
            buffer.on_event(event)
            await asyncio.sleep(0)
        pcm = await early_reader
        assert pcm == await join(buffer.iter_chunks()) == audio.encode_pcm(audio.clip_peaks(WAVEFORM, strategy))
        if strategy == "clip":
            whole = audio.encode_wav(audio.normalize(WAVEFORM, 32_000, "clip"), 32_000)
            assert audio.wav_header(2, 32_000, STARTED.samples) + pcm == whole

    asyncio.run(test())


def test_client_gets_the_available_audio_and_then_the_first_error() -> None:
    async def test() -> None:
        buffer = PcmBuffer("clip")
        buffer.on_event(STARTED)
        buffer.on_event(chunk(0, 20_000))
        chunks = buffer.iter_chunks()
        assert [len(await anext(chunks)) for _ in range(2)] == [CHUNK_BYTES, 80_000 - CHUNK_BYTES]
        waiting = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        buffer.fail(UnknownJob("first"))
        buffer.fail(GenerationFailed("second"))
        with pytest.raises(UnknownJob):
            await waiting

    asyncio.run(test())


@pytest.mark.parametrize(
    "events",
    [
        [STARTED, chunk(0, 5), Finished()],
        [STARTED, chunk(5, 10)],
        [STARTED, chunk(0, 5), chunk(4, 10)],
        [STARTED, AudioChunk(WAVEFORM[:1, :5], 0)],
        [STARTED, AudioChunk(np.zeros((2, STARTED.samples + 1), np.float32), 0)],
        [chunk(0, 5)],
    ],
    ids=["ends early", "gap", "overlap", "channels", "too long", "not started"],
)
def test_incomplete_or_inconsistent_events_are_an_error(events: list[Event]) -> None:
    async def test() -> None:
        buffer = PcmBuffer("clip")
        for event in events:
            buffer.on_event(event)
        with pytest.raises(GenerationFailed):
            await join(buffer.iter_chunks())

    asyncio.run(test())


def test_failure_before_the_start_raises_in_wait_started() -> None:
    async def test() -> None:
        buffer = PcmBuffer("clip")
        waiting = asyncio.create_task(buffer.wait_started())
        await asyncio.sleep(0)
        buffer.fail(UnknownJob("cancelled"))
        with pytest.raises(UnknownJob):
            await waiting

    asyncio.run(test())


@pytest.mark.parametrize("channels", [1, 2])
def test_header_equals_that_of_libsndfile_and_samples_differ_by_at_most_one(channels: int) -> None:
    wav = audio.clip_peaks(WAVEFORM[:channels], "none")
    file = io.BytesIO()
    soundfile.write(file, wav.T, 32_000, format="WAV", subtype="PCM_16")
    actual, expected = audio.wav_header(channels, 32_000, wav.shape[1]) + audio.encode_pcm(wav), file.getvalue()
    assert actual[:44] == expected[:44]
    samples = np.frombuffer(actual[44:], "<i2").astype(float)
    assert np.abs(samples - np.frombuffer(expected[44:], "<i2")).max() <= 1  # libsndfile rounds down
    assert np.abs(samples / 32_768 - wav.T.ravel()).max() <= 1 / 32_768
