"""Laws 5 and 6. Nothing leaks, and nothing is cut short silently."""

from __future__ import annotations

import gc
import random
from typing import Any

import numpy as np
import pytest
import torch

from musicgen_bento.codec.decoder import CodecDecoder, CodecStream
from musicgen_bento.engine.audio_decoder import AudioDecodeState
from musicgen_bento.engine.engine import Engine, RequestState
from musicgen_bento.engine.types import AudioChunk, Event, Failed, Finished, GenerationParams, Queued, Started
from musicgen_bento.errors import GenerationFailed, QueueFull
from musicgen_bento.lm.cpu_decoder import CpuDecoder
from musicgen_bento.lm.decoder import TokenColumns
from musicgen_bento.lm.kv_cache.dense import DenseKVCache
from musicgen_bento.lm.kv_cache.int8 import Int8KVCache
from musicgen_bento.lm.kv_cache.paged import PagedKVCache
from musicgen_bento.precision import FLOAT32, FLOAT32_NATIVE, INT8, Precision
from tests.support.tiny_models import MONO, EventLog, engine, make_one, params


def alive() -> dict[str, int]:
    """How many of the things a clip is made of exist, over what the process began with."""
    gc.collect()
    kinds = (DenseKVCache, Int8KVCache, AudioDecodeState, CodecStream, RequestState, GenerationParams)
    return {kind.__name__: sum(type(thing) is kind for thing in gc.get_objects()) for kind in kinds}


def idle(model: Engine) -> bool:
    return model.num_requests == (0, 0) and not model._running and not model._requests


@pytest.mark.parametrize("how", [FLOAT32_NATIVE, INT8], ids=lambda how: how.name)
def test_nothing_is_left_after_a_thousand_mixed_requests(how: Precision) -> None:
    chance = random.Random(1)
    model = engine(slots=4, queue=8, how=how)
    before = alive()
    ends, refused, cancelled = [], 0, 0
    open_tickets: list[tuple[str, EventLog]] = []
    for number in range(1_000):
        story = EventLog()
        request = params(duration=chance.choice([0.1, 0.1, 0.2]), seed=number, cfg_coef=chance.choice([1.0, 3.0]))
        try:
            model.add_request(str(number), request, story)
        except QueueFull:
            refused += 1
        else:
            open_tickets.append((str(number), story))
        if chance.random() < 0.3 and open_tickets:
            ticket, left = open_tickets.pop(-chance.randint(1, min(12, len(open_tickets))))
            cancelled += left.end is None
            model.abort(ticket)
        for _ in range(chance.randrange(4)):
            model.step()
    while model.step():
        pass
    ends = [story.end for _, story in open_tickets]
    assert all(isinstance(end, Finished) for end in ends)
    assert min(len(ends), refused, cancelled) > 50  # the mix was one
    assert idle(model)
    del open_tickets, ends, story, left, request
    assert alive() == before


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_cancelled_clip_frees_its_slot_within_a_step(steps: int) -> None:
    model = engine(slots=1)
    first, second = EventLog(), EventLog()
    model.add_request("first", params(duration=30), first)
    model.add_request("second", params(), second)
    for _ in range(steps):
        model.step()
    model.abort("first")
    heard = len(first.events)
    model.step()
    assert second.started
    while model.step():
        pass
    assert isinstance(second.end, Finished)
    assert len(first.events) == heard  # and no word after the cancel
    assert idle(model)


def test_a_waiting_clip_that_is_cancelled_frees_its_place() -> None:
    model = engine(slots=1, queue=1)
    model.add_request("runs", params(), EventLog())
    model.add_request("waits", params(), EventLog())
    with pytest.raises(QueueFull) as refused:
        model.add_request("refused", params(), EventLog())
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1
    model.abort("waits")
    model.add_request("waits now", params(), EventLog())


def test_cancelling_what_is_unknown_or_over_is_no_error() -> None:
    model = engine()
    model.abort("never was")
    story = EventLog()
    model.add_request("done", params(duration=0.1), story)
    while model.step():
        pass
    model.abort("done")
    assert isinstance(story.end, Finished)


@pytest.mark.parametrize("duration", [0.1, 0.11, 0.33, 1.0, 2.3])
def test_a_finished_clip_has_every_sample_it_announced(duration: float) -> None:
    story = make_one(engine(), params(duration=duration)).story
    assert story.audio.shape == (1, story.started.samples)
    assert story.started.samples == {0.1: 5, 0.11: 5, 0.33: 16, 1.0: 50, 2.3: 115}[duration] * 640
    position = 0
    for event in story.events[2:-1]:
        assert event.start == position  # type: ignore[union-attr]
        position += event.samples.shape[1]  # type: ignore[union-attr]


def test_a_model_that_gives_nan_fails_that_clip_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine(slots=2)
    stories = [EventLog(), EventLog()]
    for number, story in enumerate(stories):
        model.add_request(str(number), params(duration=0.5, cfg_coef=1.0), story)
    draw = CpuDecoder.step_and_sample

    def poisoned(self: CpuDecoder, sequences: list[object], *rest: object) -> TokenColumns:
        """What the first clip remembers is not a number any more; the kernel sees it in its logits."""
        if len(sequences) == 2 and model._requests["0"].tokens.position == 9:
            sequence = model._requests["0"].sequence
            assert sequence
            assert isinstance(sequence.cache, PagedKVCache)
            sequence.cache._blocks._pages.tensor[sequence.cache._taken[-1]] = 255
        return draw(self, sequences, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(CpuDecoder, "step_and_sample", poisoned)
    while model.step():
        pass
    assert isinstance(stories[0].end, Failed)
    assert isinstance(stories[0].end.error, GenerationFailed)
    assert isinstance(stories[1].end, Finished)
    assert idle(model)


@pytest.mark.parametrize("broken", ["draw", "open"])
def test_a_crash_in_the_model_fails_whom_it_hits_and_the_next_is_served(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    model = engine()
    story = EventLog()
    with monkeypatch.context() as patch:
        patch.setattr(CpuDecoder, broken, lambda *_: 1 / 0)
        model.add_request("hit", params("secret prompt"), story)
        while model.step():
            pass
    assert isinstance(story.end, Failed)
    assert "ZeroDivisionError" in str(story.end.error)
    assert "secret" not in str(story.end.error)
    assert idle(model)
    assert isinstance(make_one(model, params()).story.end, Finished)


def test_a_crash_in_the_codec_fails_that_clip_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine(slots=2)
    stories = {"short": EventLog(), "long": EventLog()}
    model.add_request("long", params(duration=1), stories["long"])
    for _ in range(20):
        model.step()
    push = CodecDecoder.push
    victims: list[CodecStream] = []

    def crash_for_the_new(
        self: CodecDecoder, streams: list[CodecStream], codes: list[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        short = model._requests.get("short")
        if short and short.audio and short.audio.stream in streams:
            victims.extend(streams)
            raise RuntimeError("no")
        return push(self, streams, codes)

    monkeypatch.setattr(CodecDecoder, "push", crash_for_the_new)
    model.add_request("short", params(duration=0.2), stories["short"])
    while model.step():
        pass
    assert victims
    assert isinstance(stories["short"].end, Failed)
    assert isinstance(stories["long"].end, Finished)
    assert idle(model)


def two_together(monkeypatch: pytest.MonkeyPatch, push: Any) -> tuple[EventLog, EventLog]:
    """Two clips of one age, whose sound is decoded together by `push(plain, decoder, streams, codes)`."""
    plain, model, stories = CodecDecoder.push, engine(slots=2), (EventLog(), EventLog())
    for name, story in zip("ab", stories, strict=True):
        model.add_request(name, params(duration=1, seed=ord(name)), story)
    monkeypatch.setattr(CodecDecoder, "push", lambda *args: push(plain, *args))
    while model.step():
        pass
    assert idle(model)
    return stories


def test_what_cannot_be_decoded_together_is_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[int] = []

    def push(plain: Any, decoder: CodecDecoder, streams: list[CodecStream], codes: list[torch.Tensor]) -> Any:
        if len(streams) > 1:
            failed.append(len(streams))
            raise MemoryError
        return plain(decoder, streams, codes)

    stories = two_together(monkeypatch, push)
    assert failed
    for name, story in zip("ab", stories, strict=True):
        assert isinstance(story.end, Finished)
        expected = make_one(engine(), params(duration=1, seed=ord(name))).story.audio
        np.testing.assert_allclose(story.audio, expected, atol=1e-5)


def test_sound_that_is_not_finite_fails_one_clip_of_a_company(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[int] = []

    def push(plain: Any, decoder: CodecDecoder, streams: list[CodecStream], codes: list[torch.Tensor]) -> Any:
        found = plain(decoder, streams, codes)
        shared.append(len(streams))
        return [found[0] if found[0] is None else found[0] * torch.nan, *found[1:]] if len(streams) > 1 else found

    first, second = two_together(monkeypatch, push)
    assert 2 in shared
    assert isinstance(first.end, Failed)
    assert "FloatingPointError" in str(first.end.error)
    assert isinstance(second.end, Finished)
    assert second.audio.shape == (1, 32_000)


def test_a_listener_that_cancels_hears_nothing_more() -> None:
    model, other = engine(slots=2), EventLog()
    heard: list[Event] = []

    def leave(event: Event) -> None:
        heard.append(event)
        if isinstance(event, AudioChunk):
            model.abort("leaves")

    model.add_request("leaves", params(duration=1), leave)
    model.add_request("stays", params(duration=1), other)
    while model.step():
        pass
    assert [type(event) for event in heard if not isinstance(event, Queued)] == [Started, AudioChunk]
    assert isinstance(other.end, Finished)
    assert idle(model)


def test_one_clip_s_samples_do_not_keep_those_of_others() -> None:
    model, stories = engine(slots=2), (EventLog(), EventLog())
    for name, story in zip("ab", stories, strict=True):
        model.add_request(name, params(duration=1), story)
    while model.step():
        pass
    for event in stories[0].events:
        if isinstance(event, AudioChunk):
            whole = event.samples if event.samples.base is None else event.samples.base
            assert whole.nbytes == event.samples.nbytes


def test_memory_is_allocated_on_use() -> None:
    """By torch the cache is as long as the clip, and its rows as many as it needs."""
    model = engine(how=FLOAT32)
    for duration, coef in ((0.5, 1.0), (2.0, 3.0)):
        model.add_request(str(duration), params(duration=duration, cfg_coef=coef), EventLog())
    model.step()
    shapes = {slot.request_id: slot.sequence.cache.kv.shape for slot in model._running if slot.sequence}
    assert shapes["0.5"][2:5:2] == (1, 25 + 3)
    assert shapes["2.0"][2:5:2] == (2, 100 + 3)
    assert MONO.layers == shapes["0.5"][0]
