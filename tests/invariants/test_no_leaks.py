"""Invariants: no request leaks memory or a slot, and no clip is truncated silently."""

from __future__ import annotations

import gc
import random
from typing import Any

import numpy as np
import pytest
import torch

from musicgen_bento.codec.decoder import CodecDecoder, CodecStream
from musicgen_bento.engine.audio_decoder import AudioDecodeState
from musicgen_bento.engine.request import RequestState
from musicgen_bento.engine.types import AudioChunk, Event, Failed, Finished, GenerationParams, Queued, Started
from musicgen_bento.errors import GenerationFailed, QueueFull
from musicgen_bento.lm.cpu_decoder import CpuDecoder
from musicgen_bento.lm.decoder import TokenColumns
from musicgen_bento.lm.kv_cache.dense import DenseKVCache
from musicgen_bento.lm.kv_cache.int8 import Int8KVCache
from musicgen_bento.lm.kv_cache.paged import PagedKVCache
from musicgen_bento.precision import FLOAT32, FLOAT32_NATIVE, INT8, Precision
from tests.support.tiny_models import MONO, EventLog, create_engine, params, run_request


def count_request_objects() -> dict[str, int]:
    """Number of live objects of each type that a request consists of."""
    gc.collect()
    types = (DenseKVCache, Int8KVCache, AudioDecodeState, CodecStream, RequestState, GenerationParams)
    return {kind.__name__: sum(type(thing) is kind for thing in gc.get_objects()) for kind in types}


@pytest.mark.parametrize("precision", [FLOAT32_NATIVE, INT8], ids=lambda precision: precision.name)
def test_no_object_is_left_after_a_thousand_mixed_requests(precision: Precision) -> None:
    chance = random.Random(1)
    engine = create_engine(max_slots=4, max_queue=8, precision=precision)
    before = count_request_objects()
    ends, refused, aborted = [], 0, 0
    open_requests: list[tuple[str, EventLog]] = []
    for number in range(1_000):
        log = EventLog()
        request = params(duration=chance.choice([0.1, 0.1, 0.2]), seed=number, cfg_coef=chance.choice([1.0, 3.0]))
        try:
            engine.add_request(str(number), request, log)
        except QueueFull:
            refused += 1
        else:
            open_requests.append((str(number), log))
        if chance.random() < 0.3 and open_requests:
            request_id, aborted_log = open_requests.pop(-chance.randint(1, min(12, len(open_requests))))
            aborted += aborted_log.end is None
            engine.abort(request_id)
        for _ in range(chance.randrange(4)):
            engine.step()
    while engine.step():
        pass
    ends = [log.end for _, log in open_requests]
    assert all(isinstance(end, Finished) for end in ends)
    assert min(len(ends), refused, aborted) > 50  # all three cases occur
    assert engine.idle
    del open_requests, ends, log, aborted_log, request
    assert count_request_objects() == before


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_aborted_request_frees_its_slot_within_a_step(steps: int) -> None:
    engine = create_engine(max_slots=1)
    first, second = EventLog(), EventLog()
    engine.add_request("first", params(duration=30), first)
    engine.add_request("second", params(), second)
    for _ in range(steps):
        engine.step()
    engine.abort("first")
    events_before = len(first.events)
    engine.step()
    assert second.started
    while engine.step():
        pass
    assert isinstance(second.end, Finished)
    assert len(first.events) == events_before
    assert engine.idle


def test_aborted_waiting_request_frees_its_queue_position() -> None:
    engine = create_engine(max_slots=1, max_queue=1)
    engine.add_request("runs", params(), EventLog())
    engine.add_request("waits", params(), EventLog())
    with pytest.raises(QueueFull) as refused:
        engine.add_request("refused", params(), EventLog())
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1
    engine.abort("waits")
    engine.add_request("waits too", params(), EventLog())


def test_aborting_unknown_or_finished_requests_is_no_error() -> None:
    engine = create_engine()
    engine.abort("unknown")
    log = EventLog()
    engine.add_request("finished", params(duration=0.1), log)
    while engine.step():
        pass
    engine.abort("finished")
    assert isinstance(log.end, Finished)


@pytest.mark.parametrize("duration", [0.1, 0.11, 0.33, 1.0, 2.3])
def test_finished_request_has_every_announced_sample(duration: float) -> None:
    log = run_request(create_engine(), params(duration=duration)).events
    assert log.audio.shape == (1, log.started.samples)
    assert log.started.samples == {0.1: 5, 0.11: 5, 0.33: 16, 1.0: 50, 2.3: 115}[duration] * 640
    start = 0
    for event in log.events[2:-1]:
        assert event.start == start  # type: ignore[union-attr]
        start += event.samples.shape[1]  # type: ignore[union-attr]


def test_nan_logits_fail_only_their_request(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine(max_slots=2)
    logs = [EventLog(), EventLog()]
    for number, log in enumerate(logs):
        engine.add_request(str(number), params(duration=0.5, cfg_coef=1.0), log)
    step_and_sample = CpuDecoder.step_and_sample

    def step_with_nan(self: CpuDecoder, sequences: list[object], *rest: object) -> TokenColumns:
        """Overwrite the KV cache of the first request with NaN, which the kernel finds in the logits."""
        first = engine.request_state("0")
        if len(sequences) == 2 and first and first.token_sequence.position == 9:
            sequence = first.sequence_state
            assert sequence
            assert isinstance(sequence.kv_cache, PagedKVCache)
            sequence.kv_cache._pool._pages.tensor[sequence.kv_cache._allocated[-1]] = 255
        return step_and_sample(self, sequences, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(CpuDecoder, "step_and_sample", step_with_nan)
    while engine.step():
        pass
    assert isinstance(logs[0].end, Failed)
    assert isinstance(logs[0].end.error, GenerationFailed)
    assert isinstance(logs[1].end, Finished)
    assert engine.idle


@pytest.mark.parametrize("method", ["step_and_sample", "open_sequence"])
def test_exception_in_the_decoder_fails_running_requests_and_later_ones_run(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    engine = create_engine()
    log = EventLog()
    with monkeypatch.context() as patch:
        patch.setattr(CpuDecoder, method, lambda *_: 1 / 0)
        engine.add_request("hit", params("secret prompt"), log)
        while engine.step():
            pass
    assert isinstance(log.end, Failed)
    assert "ZeroDivisionError" in str(log.end.error)
    assert "secret" not in str(log.end.error)
    assert engine.idle
    assert isinstance(run_request(engine, params()).events.end, Finished)


def test_exception_in_the_codec_fails_only_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine(max_slots=2)
    logs = {"short": EventLog(), "long": EventLog()}
    engine.add_request("long", params(duration=1), logs["long"])
    for _ in range(20):
        engine.step()
    push = CodecDecoder.push
    failed_streams: list[CodecStream] = []

    def fail_for_short(
        self: CodecDecoder, streams: list[CodecStream], codes: list[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        short = engine.request_state("short")
        if short and short.audio_state and short.audio_state.stream in streams:
            failed_streams.extend(streams)
            raise RuntimeError("no")
        return push(self, streams, codes)

    monkeypatch.setattr(CodecDecoder, "push", fail_for_short)
    engine.add_request("short", params(duration=0.2), logs["short"])
    while engine.step():
        pass
    assert failed_streams
    assert isinstance(logs["short"].end, Failed)
    assert isinstance(logs["long"].end, Finished)
    assert engine.idle


def run_two_with_push(monkeypatch: pytest.MonkeyPatch, push: Any) -> tuple[EventLog, EventLog]:
    """Run two requests that start together; `push(original, decoder, streams, codes)` decodes their audio."""
    original, engine, logs = CodecDecoder.push, create_engine(max_slots=2), (EventLog(), EventLog())
    for name, log in zip("ab", logs, strict=True):
        engine.add_request(name, params(duration=1, seed=ord(name)), log)
    monkeypatch.setattr(CodecDecoder, "push", lambda *args: push(original, *args))
    while engine.step():
        pass
    assert engine.idle
    return logs


def test_failed_batch_is_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    failed_batches: list[int] = []

    def push(original: Any, decoder: CodecDecoder, streams: list[CodecStream], codes: list[torch.Tensor]) -> Any:
        if len(streams) > 1:
            failed_batches.append(len(streams))
            raise MemoryError
        return original(decoder, streams, codes)

    logs = run_two_with_push(monkeypatch, push)
    assert failed_batches
    for name, log in zip("ab", logs, strict=True):
        assert isinstance(log.end, Finished)
        expected = run_request(create_engine(), params(duration=1, seed=ord(name))).events.audio
        np.testing.assert_allclose(log.audio, expected, atol=1e-5)


def test_non_finite_audio_fails_only_its_request_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batch_sizes: list[int] = []

    def push(original: Any, decoder: CodecDecoder, streams: list[CodecStream], codes: list[torch.Tensor]) -> Any:
        wavs = original(decoder, streams, codes)
        batch_sizes.append(len(streams))
        if len(streams) == 1 or wavs[0] is None:
            return wavs
        return [wavs[0] * torch.nan, *wavs[1:]]

    first, second = run_two_with_push(monkeypatch, push)
    assert 2 in batch_sizes
    assert isinstance(first.end, Failed)
    assert "FloatingPointError" in str(first.end.error)
    assert isinstance(second.end, Finished)
    assert second.audio.shape == (1, 32_000)


def test_no_event_follows_an_abort_in_the_event_callback() -> None:
    engine, other = create_engine(max_slots=2), EventLog()
    events: list[Event] = []

    def abort_at_first_chunk(event: Event) -> None:
        events.append(event)
        if isinstance(event, AudioChunk):
            engine.abort("aborted")

    engine.add_request("aborted", params(duration=1), abort_at_first_chunk)
    engine.add_request("other", params(duration=1), other)
    while engine.step():
        pass
    assert [type(event) for event in events if not isinstance(event, Queued)] == [Started, AudioChunk]
    assert isinstance(other.end, Finished)
    assert engine.idle


def test_samples_of_a_request_hold_no_reference_to_those_of_others() -> None:
    engine, logs = create_engine(max_slots=2), (EventLog(), EventLog())
    for name, log in zip("ab", logs, strict=True):
        engine.add_request(name, params(duration=1), log)
    while engine.step():
        pass
    for event in logs[0].events:
        if isinstance(event, AudioChunk):
            base = event.samples if event.samples.base is None else event.samples.base
            assert base.nbytes == event.samples.nbytes


def test_kv_cache_size_depends_on_the_request() -> None:
    """With torch the KV cache is as long as the request, and has one row or two."""
    engine = create_engine(precision=FLOAT32)
    for duration, coef in ((0.5, 1.0), (2.0, 3.0)):
        engine.add_request(str(duration), params(duration=duration, cfg_coef=coef), EventLog())
    engine.step()
    shapes = {
        request.request_id: request.sequence_state.kv_cache.kv.shape
        for request in engine._running
        if request.sequence_state
    }
    assert shapes["0.5"][2:5:2] == (1, 25 + 3)
    assert shapes["2.0"][2:5:2] == (2, 100 + 3)
    assert MONO.layers == shapes["0.5"][0]
