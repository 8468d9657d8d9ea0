"""A recording: readers at their own pace, whole or an error."""

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
from musicgen_bento.server.audio_buffer import PIECE, PcmBuffer

STARTED = Started("demo", 32_000, 2, 100_000)
SOUND = np.random.default_rng(0).normal(0, 0.6, (2, STARTED.samples)).astype(np.float32)


def chunk(start: int, end: int) -> AudioChunk:
    return AudioChunk(SOUND[:, start:end], start)


async def joined(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


@given(st.lists(st.integers(0, STARTED.samples), max_size=8), st.sampled_from(["clip", "none"]))
def test_it_is_the_clip_however_it_comes_and_is_read(cuts: list[int], how: audio.StreamNormalize) -> None:
    async def test() -> None:
        recording = PcmBuffer(how)
        early = asyncio.create_task(joined(recording.pieces()))
        edges = [0, *sorted(cuts), STARTED.samples]
        for event in (STARTED, *(chunk(a, b) for a, b in pairwise(edges)), Finished()):
            recording.listen(event)
            await asyncio.sleep(0)
        sound = await early
        assert sound == await joined(recording.pieces()) == audio.pcm(audio.cut(SOUND, how))
        if how == "clip":
            whole = audio.encode_wav(audio.normalize(SOUND, 32_000, "clip"), 32_000)
            assert audio.wav_header(2, 32_000, STARTED.samples) + sound == whole

    asyncio.run(test())


def test_a_reader_gets_what_there_is_and_then_the_error() -> None:
    async def test() -> None:
        recording = PcmBuffer("clip")
        recording.listen(STARTED)
        recording.listen(chunk(0, 20_000))
        pieces = recording.pieces()
        assert [len(await anext(pieces)) for _ in range(2)] == [PIECE, 80_000 - PIECE]
        waiting = asyncio.ensure_future(anext(pieces))
        await asyncio.sleep(0)
        recording.fail(UnknownJob("gone"))
        recording.fail(GenerationFailed("later"))
        with pytest.raises(UnknownJob):
            await waiting

    asyncio.run(test())


@pytest.mark.parametrize(
    "story",
    [
        [STARTED, chunk(0, 5), Finished()],
        [STARTED, chunk(5, 10)],
        [STARTED, chunk(0, 5), chunk(4, 10)],
        [STARTED, AudioChunk(SOUND[:1, :5], 0)],
        [STARTED, AudioChunk(np.zeros((2, STARTED.samples + 1), np.float32), 0)],
        [chunk(0, 5)],
    ],
    ids=["ends early", "gap", "overlap", "channels", "too long", "not begun"],
)
def test_what_is_not_the_whole_clip_is_an_error(story: list[Event]) -> None:
    async def test() -> None:
        recording = PcmBuffer("clip")
        for event in story:
            recording.listen(event)
        with pytest.raises(GenerationFailed):
            await joined(recording.pieces())

    asyncio.run(test())


def test_without_a_beginning_there_is_only_the_error() -> None:
    async def test() -> None:
        recording = PcmBuffer("clip")
        waiting = asyncio.create_task(recording.begun())
        await asyncio.sleep(0)
        recording.fail(UnknownJob("gone"))
        with pytest.raises(UnknownJob):
            await waiting

    asyncio.run(test())


@pytest.mark.parametrize("channels", [1, 2])
def test_the_header_is_what_libsndfile_writes_and_the_samples_to_a_bit(channels: int) -> None:
    wav = audio.cut(SOUND[:channels], "none")
    file = io.BytesIO()
    soundfile.write(file, wav.T, 32_000, format="WAV", subtype="PCM_16")
    ours, theirs = audio.wav_header(channels, 32_000, wav.shape[1]) + audio.pcm(wav), file.getvalue()
    assert ours[:44] == theirs[:44]
    read = np.frombuffer(ours[44:], "<i2").astype(float)
    assert np.abs(read - np.frombuffer(theirs[44:], "<i2")).max() <= 1  # which rounds down
    assert np.abs(read / 32_768 - wav.T.ravel()).max() <= 1 / 32_768
