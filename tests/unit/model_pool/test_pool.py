"""The pool: names, one load however many ask, what a failed load does, and the way out."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.config import Settings
from musicgen_bento.engine.text_conditioner import TextConditioner
from musicgen_bento.engine.types import AudioChunk, Failed, Finished, Queued
from musicgen_bento.errors import (
    InvalidCheckpoint,
    InvalidRequest,
    ModelUnavailable,
    MusicGenError,
    QueueFull,
    ShuttingDown,
    UnknownModel,
)
from musicgen_bento.model_catalog import CATALOG, DEMO_FOLDER
from musicgen_bento.model_pool import pool as pool_module
from musicgen_bento.model_pool import residency, self_test
from musicgen_bento.model_pool.pool import ModelPool
from tests.support import wait
from tests.support.tiny_models import MONO, EventLog, folder, params, submit

open_files = loading.open_files
until = partial(wait.wait_until, timeout_seconds=30)


class Loads:
    """Stands in front of the real loader: counts, and holds the loads until told."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.go = threading.Event()
        self.error: Exception | None = None

    def __call__(self, source: Source, *rest: Any) -> loading.CheckpointFiles:
        self.names.append(source.name)
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        return open_files(Source(source.name, DEMO_FOLDER if source.name == "demo" else folder(MONO)), *rest)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loads]:
    loads = Loads()
    monkeypatch.setattr(loading, "open_files", loads)
    yield loads
    loads.go.set()  # a pool waits for them


@pytest.fixture
def open_pool() -> Iterator[Callable[..., ModelPool]]:
    pools: list[ModelPool] = []

    def make(*, allow_any_model: bool = False, allow_folders: bool = False, **settings: Any) -> ModelPool:
        chosen = Settings(**{"preload": (), "device": "cpu", **settings})
        pools.append(ModelPool(chosen, allow_any_model=allow_any_model, allow_folders=allow_folders))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_a_clip_from_the_built_in_model(open_pool: Callable[..., ModelPool]) -> None:
    pool, story = open_pool(), EventLog()
    submit(pool, "demo", params(duration=0.4), story)
    until(lambda: story.end)
    assert isinstance(story.end, Finished)
    assert (story.started.model, story.started.sample_rate, story.audio.shape) == ("demo", 32_000, (1, 20 * 640))
    assert pool._tickets == {}


def test_every_spelling_is_one_model(open_pool: Callable[..., ModelPool], loads: Loads) -> None:
    pool = open_pool()
    for name in ("musicgen-small", "facebook/musicgen-small", "small", "Facebook/MusicGen-Small"):
        submit(pool, name, params(), EventLog())
    loads.go.set()
    until(lambda: not pool._tickets)
    assert loads.names == ["facebook/musicgen-small"]


def test_one_load_however_many_ask(open_pool: Callable[..., ModelPool], loads: Loads) -> None:
    pool = open_pool()
    stories = [EventLog() for _ in range(20)]
    threads = [threading.Thread(target=submit, args=(pool, "demo", params(duration=0.1), s)) for s in stories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status.id: status.state for status in pool.statuses()}["demo"] == "loading"
    assert sorted(story.events[0].queue_position for story in stories if isinstance(story.events[0], Queued)) == list(
        range(20)
    )
    assert all(story.events[0].loading for story in stories)  # type: ignore[union-attr]
    loads.go.set()
    until(lambda: all(story.end for story in stories))
    assert loads.names == ["demo"]
    assert all(isinstance(story.end, Finished) for story in stories)
    assert not any(event.loading for story in stories for event in story.events[1:] if isinstance(event, Queued))
    assert {status.id: status.state for status in pool.statuses()}["demo"] == "loaded"


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (InvalidCheckpoint("state_dict.bin is truncated."), "truncated"),
        (ModelUnavailable("no hub", retry_after=30), "no hub"),
        (RuntimeError("secret"), "RuntimeError at"),
        (torch.cuda.OutOfMemoryError("secret"), "does not fit"),
    ],
)
def test_a_failed_load_reaches_all_who_wait_and_the_next_tries_again(
    open_pool: Callable[..., ModelPool], loads: Loads, raised: Exception, says: str
) -> None:
    pool, stories, later = open_pool(), [EventLog(), EventLog()], EventLog()
    for story in stories:
        submit(pool, "demo", params(), story)
    loads.error = raised
    loads.go.set()
    until(lambda: all(story.end for story in stories))
    for story in stories:
        assert isinstance(story.end, Failed)
        assert says in str(story.end.error)
        assert "secret" not in str(story.end.error)
    loads.error = None
    submit(pool, "demo", params(duration=0.1), later)
    until(lambda: later.end)
    assert isinstance(later.end, Finished)


def test_a_load_that_fails_leaves_the_others_alone(open_pool: Callable[..., ModelPool], loads: Loads) -> None:
    loads.go.set()
    pool, long, failing = open_pool(), EventLog(), EventLog()
    submit(pool, "demo", params(duration=3), long)
    until(lambda: any(isinstance(event, AudioChunk) for event in long.events))
    loads.error = InvalidCheckpoint("no")
    submit(pool, "small", params(), failing)
    until(lambda: long.end and failing.end)
    assert isinstance(long.end, Finished)
    assert isinstance(failing.end, Failed)


def test_cancel_while_it_loads(open_pool: Callable[..., ModelPool], loads: Loads) -> None:
    pool, story = open_pool(), EventLog()
    ticket = submit(pool, "demo", params(), story)
    pool.abort(ticket)
    pool.abort(ticket)
    loads.go.set()
    until(lambda: {s.id: s.state for s in pool.statuses()}["demo"] == "loaded")
    assert [type(event) for event in story.events] == [Queued]
    assert pool._tickets == {}


def test_a_prompt_too_long_for_t5_is_refused_even_if_the_model_was_loading(
    open_pool: Callable[..., ModelPool], loads: Loads
) -> None:
    pool, story = open_pool(), EventLog()
    submit(pool, "demo", params("zq " * 600), story)
    loads.go.set()
    until(lambda: story.end)
    assert isinstance(story.end, Failed)
    assert (story.end.error.status, story.end.error.field) == (400, "prompt")
    with pytest.raises(InvalidRequest, match="tokens long"):
        submit(pool, "demo", params("zq " * 600), EventLog())


def test_the_waiting_room_is_bounded(open_pool: Callable[..., ModelPool], loads: Loads) -> None:
    pool = open_pool(max_slots=2, max_queue=1)
    for _ in range(3):
        submit(pool, "demo", params(duration=0.1), EventLog())
    with pytest.raises(QueueFull, match="still loading") as refused:
        submit(pool, "demo", params(), EventLog())
    assert refused.value.retry_after
    loads.go.set()
    until(lambda: not pool._tickets)


def test_models_that_are_looked_for_are_bounded(
    open_pool: Callable[..., ModelPool], loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MOST_SOUGHT", 2)
    pool = open_pool(allow_any_model=True)
    for name in ("someone/one", "someone/two", "someone/one"):
        submit(pool, name, params(), EventLog())
    with pytest.raises(QueueFull):
        submit(pool, "someone/three", params(), EventLog())


def test_readiness(open_pool: Callable[..., ModelPool], loads: Loads) -> None:
    pool = open_pool(preload=("demo",))
    assert pool.ready() is False
    loads.go.set()
    until(pool.ready)
    assert loads.names == ["demo"]


def test_readiness_says_what_kept_a_model_out_and_tries_again_later(
    open_pool: Callable[..., ModelPool], loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads.error = ModelUnavailable("no hub", retry_after=30)
    loads.go.set()
    pool = open_pool(preload=("demo",))

    def refuses() -> bool:
        try:
            return pool.ready()
        except ModelUnavailable:
            return True

    until(refuses)
    with pytest.raises(ModelUnavailable, match="no hub"):
        pool.ready()
    loads.error = None
    later = time.monotonic() + 31
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert pool.ready() is False  # loading again
    monkeypatch.undo()
    until(pool.ready)


# ---- names


@pytest.mark.parametrize("name", ["nope", "facebook/other", "/etc/passwd", "https://x/y", ""])
def test_unknown_names(open_pool: Callable[..., ModelPool], name: str) -> None:
    with pytest.raises(UnknownModel) as error:
        submit(open_pool(), name, params(), EventLog())
    assert (error.value.status, error.value.field) == (400, "model")
    assert "facebook/musicgen-small" in error.value.hint


@pytest.mark.parametrize("name", ["../demo", "demo/../demo", "./demo", "a/b/c", "/tmp/x", ".hidden/x", "a/.."])
def test_a_path_is_no_name_on_the_hub(open_pool: Callable[..., ModelPool], name: str) -> None:
    with pytest.raises(UnknownModel):
        submit(open_pool(allow_any_model=True), name, params(), EventLog())


def test_a_relative_folder_is_never_loaded_for_a_client(open_pool: Callable[..., ModelPool]) -> None:
    """`musicgen_bento/demo` exists from where the tests run; to a client it is a repository nobody has."""
    story = EventLog()
    submit(open_pool(allow_any_model=True), "musicgen_bento/demo", params(), story)
    until(lambda: story.end)
    assert isinstance(story.end, Failed)
    assert isinstance(story.end.error, ModelUnavailable)


def test_a_folder_only_where_it_is_allowed(open_pool: Callable[..., ModelPool]) -> None:
    for refusing in (open_pool(), open_pool(allow_any_model=True)):
        with pytest.raises(UnknownModel):
            submit(refusing, str(folder(MONO)), params(), EventLog())
    for pool in (open_pool(allow_folders=True), open_pool(default_model=str(folder(MONO)))):
        story = EventLog()
        submit(pool, str(folder(MONO)), params(duration=0.1), story)
        until(lambda story=story: story.end)
        assert isinstance(story.end, Finished)


def test_any_model_of_the_hub_where_it_is_allowed(open_pool: Callable[..., ModelPool], loads: Loads) -> None:
    loads.go.set()
    story = EventLog()
    submit(open_pool(allow_any_model=True), "somebody/musicgen-mine", params(), story)
    until(lambda: story.end)
    assert loads.names == ["somebody/musicgen-mine"]


def test_melody_models_are_refused_with_a_word_why(open_pool: Callable[..., ModelPool]) -> None:
    melody = [card.id for card in CATALOG if "melody" in card.conditioning]
    assert len(melody) == 4
    for name in melody:
        with pytest.raises(InvalidRequest, match="melody"):
            submit(open_pool(), name, params(), EventLog())


def test_the_operators_own_model_is_listed_by_its_last_name_and_answers_to_it(
    open_pool: Callable[..., ModelPool],
) -> None:
    pool, story = open_pool(default_model=str(folder(MONO))), EventLog()
    name = folder(MONO).name
    assert [status.id for status in pool.statuses() if status.default] == [name]
    submit(pool, name, params(duration=0.1), story)
    until(lambda: story.end)
    assert story.started.model == name


# ---- settings that cannot work


@pytest.mark.parametrize("settings", [{"preload": ("facebook/musicgen-melody",)}, {"default_model": "nope"}])
def test_a_model_that_cannot_be_had_is_told_by_readiness(
    open_pool: Callable[..., ModelPool], settings: dict[str, Any]
) -> None:
    pool, story = open_pool(**settings), EventLog()
    with pytest.raises(InvalidRequest):
        pool.ready()
    submit(pool, "demo", params(duration=0.1), story)
    until(lambda: story.end)
    assert isinstance(story.end, Finished)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(open_pool: Callable[..., ModelPool]) -> None:
    story = EventLog()
    submit(open_pool(device="cuda"), "demo", params(), story)
    until(lambda: story.end)
    assert isinstance(story.end, Failed)
    assert "MUSICGEN_DEVICE" in story.end.error.hint


def test_a_tokenizer_that_crashes_ends_every_clip_that_waits(
    open_pool: Callable[..., ModelPool], loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "run_self_test", lambda engine: None)  # which would find it before
    monkeypatch.setattr(TextConditioner, "tokenize", lambda *_: 1 / 0)
    pool, stories = open_pool(), [EventLog(), EventLog()]
    for story in stories:
        submit(pool, "demo", params(), story)
    loads.go.set()
    until(lambda: all(isinstance(story.end, Failed) for story in stories))
    with pytest.raises(ZeroDivisionError):
        submit(pool, "demo", params(), EventLog())
    assert pool._tickets == {}


def test_a_large_model_gets_all_cores_after_a_small_one(
    open_pool: Callable[..., ModelPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        pool, story = open_pool(allow_folders=True), EventLog()
        submit(pool, "demo", params(duration=0.1), story)
        until(lambda: story.end)
        monkeypatch.setattr("musicgen_bento.lm.weights.ONE_THREAD_HEAD_PARAMS", 1)
        story = EventLog()
        submit(pool, str(folder(MONO)), params(duration=0.1), story)
        until(lambda: story.end)
        assert sorted(entry.engine._threads for entry in pool._memory.entries.values() if entry.engine) == [1, 2]
    finally:
        torch.set_num_threads(cores)


def test_many_threads_at_once_leave_nothing(open_pool: Callable[..., ModelPool]) -> None:
    pool = open_pool(preload=("demo",), max_slots=3, max_queue=6)
    until(pool.ready)

    def client(number: int) -> list[EventLog]:
        chance, stories = random.Random(number), []
        for _ in range(12):
            story = EventLog()
            try:
                ticket = submit(pool, "demo", params(duration=chance.choice([0.1, 0.3]), seed=number), story)
            except QueueFull:
                time.sleep(0.05)
                continue
            if chance.random() < 0.4:
                time.sleep(chance.random() * 0.05)
                pool.abort(ticket)
            else:
                stories.append(story)
        return stories

    with ThreadPoolExecutor(8) as clients:
        stories = [story for some in clients.map(client, range(8)) for story in some]
    until(lambda: all(story.end for story in stories))
    assert len(stories) > 10
    assert all(isinstance(story.end, Finished) for story in stories)
    assert pool._tickets == {}


# ---- the way out


def test_close_lets_what_runs_finish(open_pool: Callable[..., ModelPool]) -> None:
    pool, story = open_pool(), EventLog()
    submit(pool, "demo", params(duration=2), story)
    pool.close(drain_seconds=60)
    assert isinstance(story.end, Finished)
    with pytest.raises(ShuttingDown):
        submit(pool, "demo", params(), EventLog())


def test_close_fails_what_is_not_done_in_time(open_pool: Callable[..., ModelPool], loads: Loads) -> None:
    loads.go.set()
    pool, running, loading = open_pool(), EventLog(), EventLog()
    submit(pool, "demo", params(duration=300), running)
    until(lambda: any(isinstance(event, AudioChunk) for event in running.events))
    loads.go.clear()
    submit(pool, "small", params(), loading)
    threading.Timer(0.5, loads.go.set).start()
    pool.close(drain_seconds=0.1)
    assert not pool._memory._threads
    for story in (running, loading):
        assert isinstance(story.end, Failed)
        assert isinstance(story.end.error, ShuttingDown)


def test_close_waits_for_a_load_that_has_begun(
    open_pool: Callable[..., ModelPool], loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "NETWORK_SECONDS", 0.1)
    pool, story = open_pool(), EventLog()
    submit(pool, "demo", params(), story)
    until(lambda: loads.names)
    closing = threading.Thread(target=pool.close)
    closing.start()
    until(lambda: story.end)  # nobody else has to wait for it
    closing.join(timeout=1)
    assert closing.is_alive()
    loads.go.set()
    closing.join(timeout=30)
    assert not closing.is_alive()


def test_close_does_not_wait_for_the_hub(
    open_pool: Callable[..., ModelPool], loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "NETWORK_SECONDS", 0.1)
    pool = open_pool()
    submit(pool, "facebook/musicgen-medium", params(), EventLog())  # no test has it in a cache
    until(lambda: loads.names)
    closing = threading.Thread(target=pool.close)
    closing.start()
    closing.join(timeout=20)
    assert not closing.is_alive()


def test_a_model_error_is_a_musicgen_error() -> None:
    """What the pool passes on has a code and survives the wire."""
    error = InvalidCheckpoint("no", hint="way out", field="model")
    assert MusicGenError.from_dict(error.to_dict()).to_dict() == error.to_dict()


def test_models_folder_of_the_package_is_whole() -> None:
    names = {path.name for path in Path(str(CATALOG[0].folder)).iterdir()}
    assert {"state_dict.bin", "compression_state_dict.bin", "t5", "README.md"} <= names
    weights = torch.load(Path(str(CATALOG[0].folder), "state_dict.bin"), weights_only=True)["best_state"]
    assert sum(tensor.numel() for tensor in weights.values()) == CATALOG[0].parameters
