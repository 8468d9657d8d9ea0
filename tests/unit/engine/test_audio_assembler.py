"""The audio of one request from its events."""

from __future__ import annotations

import numpy as np

from musicgen_bento.engine.audio_assembler import AudioAssembler
from musicgen_bento.engine.types import AudioChunk, Finished, Queued, Started


def test_chunks_are_copied_to_their_positions_and_missing_samples_are_zero() -> None:
    assembler = AudioAssembler()
    for event in (Queued(0), AudioChunk(np.ones((2, 1), np.float32), 0)):
        assembler.on_event(event)
    assert assembler.started is None
    assert assembler.samples is None
    started = Started("demo", 32_000, 2, 4)
    assembler.on_event(started)
    assembler.on_event(AudioChunk(np.array([[1, 2], [3, 4]], np.float32), 1))
    assembler.on_event(Finished())
    assert assembler.started is started
    assert assembler.samples is not None
    assert assembler.samples.dtype == np.float32
    assert assembler.samples.tolist() == [[0, 1, 2, 0], [0, 3, 4, 0]]
