"""The model pool: names, one load per model, failed loads, and shutdown."""

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
wait_until = partial(wait.wait_until, timeout_seconds=30)


class FakeOpenFiles:
    """Replaces `loading.open_files`: records the names, and blocks until `proceed` is set."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.proceed = threading.Event()
        self.error: Exception | None = None

    def __call__(self, source: Source, *rest: Any) -> loading.CheckpointFiles:
        self.names.append(source.name)
        assert self.proceed.wait(30)
        if self.error is not None:
            raise self.error
        return open_files(Source(source.name, DEMO_FOLDER if source.name == "demo" else folder(MONO)), *rest)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenFiles]:
    folder(MONO)  # written here, not in concurrent loads: AudioCraft loads its T5 without TRANSFORMERS_LOCK
    loads = FakeOpenFiles()
    monkeypatch.setattr(loading, "open_files", loads)
    yield loads
    loads.proceed.set()  # because closing a pool waits for its loads


@pytest.fixture
def open_pool() -> Iterator[Callable[..., ModelPool]]:
    pools: list[ModelPool] = []

    def create(*, allow_any_model: bool = False, allow_folders: bool = False, **settings: Any) -> ModelPool:
        pool_settings = Settings(**{"preload": (), "device": "cpu", **settings})
        pools.append(ModelPool(pool_settings, allow_any_model=allow_any_model, allow_folders=allow_folders))
        return pools[-1]

    yield create
    for pool in pools:
        pool.close()


def test_built_in_model_runs_a_request(open_pool: Callable[..., ModelPool]) -> None:
    pool, log = open_pool(), EventLog()
    submit(pool, "demo", params(duration=0.4), log)
    wait_until(lambda: log.end)
    assert isinstance(log.end, Finished)
    assert (log.started.model, log.started.sample_rate, log.audio.shape) == ("demo", 32_000, (1, 20 * 640))
    assert pool.idle


def test_all_names_of_a_model_share_one_entry(open_pool: Callable[..., ModelPool], loads: FakeOpenFiles) -> None:
    pool = open_pool()
    for name in ("musicgen-small", "facebook/musicgen-small", "small", "Facebook/MusicGen-Small"):
        submit(pool, name, params(), EventLog())
    loads.proceed.set()
    wait_until(lambda: pool.idle)
    assert loads.names == ["facebook/musicgen-small"]


def test_concurrent_requests_load_a_model_once(open_pool: Callable[..., ModelPool], loads: FakeOpenFiles) -> None:
    pool = open_pool()
    logs = [EventLog() for _ in range(20)]
    threads = [threading.Thread(target=submit, args=(pool, "demo", params(duration=0.1), log)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status.id: status.state for status in pool.statuses()}["demo"] == "loading"
    assert sorted(log.events[0].queue_position for log in logs if isinstance(log.events[0], Queued)) == list(range(20))
    assert all(log.events[0].loading for log in logs)  # type: ignore[union-attr]
    loads.proceed.set()
    wait_until(lambda: all(log.end for log in logs))
    assert loads.names == ["demo"]
    assert all(isinstance(log.end, Finished) for log in logs)
    assert not any(event.loading for log in logs for event in log.events[1:] if isinstance(event, Queued))
    assert {status.id: status.state for status in pool.statuses()}["demo"] == "loaded"


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (InvalidCheckpoint("state_dict.bin is truncated."), "truncated"),
        (ModelUnavailable("no hub", retry_after=30), "no hub"),
        (RuntimeError("secret"), "RuntimeError at"),
        (torch.cuda.OutOfMemoryError("secret"), "does not fit"),
    ],
)
def test_failed_load_fails_all_waiting_requests_and_the_next_request_retries(
    open_pool: Callable[..., ModelPool], loads: FakeOpenFiles, raised: Exception, message: str
) -> None:
    pool, logs, later = open_pool(), [EventLog(), EventLog()], EventLog()
    for log in logs:
        submit(pool, "demo", params(), log)
    loads.error = raised
    loads.proceed.set()
    wait_until(lambda: all(log.end for log in logs))
    for log in logs:
        assert isinstance(log.end, Failed)
        assert message in str(log.end.error)
        assert "secret" not in str(log.end.error)
    loads.error = None
    submit(pool, "demo", params(duration=0.1), later)
    wait_until(lambda: later.end)
    assert isinstance(later.end, Finished)


def test_failed_load_does_not_affect_other_models(open_pool: Callable[..., ModelPool], loads: FakeOpenFiles) -> None:
    loads.proceed.set()
    pool, long, failing = open_pool(), EventLog(), EventLog()
    submit(pool, "demo", params(duration=3), long)
    wait_until(lambda: any(isinstance(event, AudioChunk) for event in long.events))
    loads.error = InvalidCheckpoint("no")
    submit(pool, "small", params(), failing)
    wait_until(lambda: long.end and failing.end)
    assert isinstance(long.end, Finished)
    assert isinstance(failing.end, Failed)


def test_request_can_be_aborted_while_its_model_loads(
    open_pool: Callable[..., ModelPool], loads: FakeOpenFiles
) -> None:
    pool, log = open_pool(), EventLog()
    request_id = submit(pool, "demo", params(), log)
    pool.abort(request_id)
    pool.abort(request_id)
    loads.proceed.set()
    wait_until(lambda: {status.id: status.state for status in pool.statuses()}["demo"] == "loaded")
    assert [type(event) for event in log.events] == [Queued]
    assert pool.idle


def test_request_id_in_use_is_refused(open_pool: Callable[..., ModelPool], loads: FakeOpenFiles) -> None:
    pool, log = open_pool(), EventLog()
    pool.add_request("id", "demo", params(duration=0.1), log)
    with pytest.raises(ValueError, match="in use"):
        pool.add_request("id", "demo", params(), EventLog())
    loads.proceed.set()
    wait_until(lambda: log.end)
    assert isinstance(log.end, Finished)


def test_too_long_prompt_fails_also_while_the_model_loads(
    open_pool: Callable[..., ModelPool], loads: FakeOpenFiles
) -> None:
    pool, log = open_pool(), EventLog()
    submit(pool, "demo", params("zq " * 600), log)
    loads.proceed.set()
    wait_until(lambda: log.end)
    assert isinstance(log.end, Failed)
    assert (log.end.error.status, log.end.error.field) == (400, "prompt")
    with pytest.raises(InvalidRequest, match="tokens long"):
        submit(pool, "demo", params("zq " * 600), EventLog())


def test_number_of_waiting_requests_is_bounded_while_a_model_loads(
    open_pool: Callable[..., ModelPool], loads: FakeOpenFiles
) -> None:
    pool = open_pool(max_slots=2, max_queue=1)
    for _ in range(3):
        submit(pool, "demo", params(duration=0.1), EventLog())
    with pytest.raises(QueueFull, match="still loading") as refused:
        submit(pool, "demo", params(), EventLog())
    assert refused.value.retry_after
    loads.proceed.set()
    wait_until(lambda: pool.idle)


def test_number_of_concurrent_fetches_is_bounded(
    open_pool: Callable[..., ModelPool], loads: FakeOpenFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MAX_CONCURRENT_FETCHES", 2)
    pool = open_pool(allow_any_model=True)
    for name in ("someone/one", "someone/two", "someone/one"):
        submit(pool, name, params(), EventLog())
    with pytest.raises(QueueFull):
        submit(pool, "someone/three", params(), EventLog())


def test_pool_is_ready_when_the_preloads_are_loaded(open_pool: Callable[..., ModelPool], loads: FakeOpenFiles) -> None:
    pool = open_pool(preload=("demo",))
    assert pool.ready() is False
    loads.proceed.set()
    wait_until(pool.ready)
    assert loads.names == ["demo"]


def test_ready_raises_the_error_of_a_failed_preload_and_retries_later(
    open_pool: Callable[..., ModelPool], loads: FakeOpenFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads.error = ModelUnavailable("no hub", retry_after=30)
    loads.proceed.set()
    pool = open_pool(preload=("demo",))

    def has_failed() -> bool:
        try:
            return pool.ready()
        except ModelUnavailable:
            return True

    wait_until(has_failed)
    with pytest.raises(ModelUnavailable, match="no hub"):
        pool.ready()
    loads.error = None
    later = time.monotonic() + 31
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert pool.ready() is False  # loading again
    monkeypatch.undo()
    wait_until(pool.ready)


# ---- names


@pytest.mark.parametrize("name", ["nope", "facebook/other", "/etc/passwd", "https://x/y", ""])
def test_unknown_names_are_refused(open_pool: Callable[..., ModelPool], name: str) -> None:
    with pytest.raises(UnknownModel) as error:
        submit(open_pool(), name, params(), EventLog())
    assert (error.value.status, error.value.field) == (400, "model")
    assert "facebook/musicgen-small" in error.value.hint


@pytest.mark.parametrize("name", ["../demo", "demo/../demo", "./demo", "a/b/c", "/tmp/x", ".hidden/x", "a/.."])
def test_path_is_not_a_repository_name(open_pool: Callable[..., ModelPool], name: str) -> None:
    with pytest.raises(UnknownModel):
        submit(open_pool(allow_any_model=True), name, params(), EventLog())


def test_relative_folder_is_never_loaded_for_a_client(open_pool: Callable[..., ModelPool]) -> None:
    """`musicgen_bento/demo` exists in the working directory; for a client it is an unknown repository."""
    log = EventLog()
    submit(open_pool(allow_any_model=True), "musicgen_bento/demo", params(), log)
    wait_until(lambda: log.end)
    assert isinstance(log.end, Failed)
    assert isinstance(log.end.error, ModelUnavailable)


def test_folders_are_loaded_only_if_allowed(open_pool: Callable[..., ModelPool]) -> None:
    for refusing in (open_pool(), open_pool(allow_any_model=True)):
        with pytest.raises(UnknownModel):
            submit(refusing, str(folder(MONO)), params(), EventLog())
    for pool in (open_pool(allow_folders=True), open_pool(default_model=str(folder(MONO)))):
        log = EventLog()
        submit(pool, str(folder(MONO)), params(duration=0.1), log)
        wait_until(lambda log=log: log.end)
        assert isinstance(log.end, Finished)


def test_any_hub_model_is_loaded_if_allowed(open_pool: Callable[..., ModelPool], loads: FakeOpenFiles) -> None:
    loads.proceed.set()
    log = EventLog()
    submit(open_pool(allow_any_model=True), "someone/musicgen-mine", params(), log)
    wait_until(lambda: log.end)
    assert loads.names == ["someone/musicgen-mine"]


def test_melody_models_are_refused_with_the_reason(open_pool: Callable[..., ModelPool]) -> None:
    melody = [card.id for card in CATALOG if "melody" in card.conditioning]
    assert len(melody) == 4
    for name in melody:
        with pytest.raises(InvalidRequest, match="melody"):
            submit(open_pool(), name, params(), EventLog())


def test_folder_of_the_operator_is_listed_and_found_by_its_last_name(
    open_pool: Callable[..., ModelPool],
) -> None:
    pool, log = open_pool(default_model=str(folder(MONO))), EventLog()
    name = folder(MONO).name
    assert [status.id for status in pool.statuses() if status.default] == [name]
    submit(pool, name, params(duration=0.1), log)
    wait_until(lambda: log.end)
    assert log.started.model == name


# ---- settings that cannot work


@pytest.mark.parametrize("settings", [{"preload": ("facebook/musicgen-melody",)}, {"default_model": "nope"}])
def test_ready_raises_for_an_invalid_model_setting_and_other_models_run(
    open_pool: Callable[..., ModelPool], settings: dict[str, Any]
) -> None:
    pool, log = open_pool(**settings), EventLog()
    with pytest.raises(InvalidRequest):
        pool.ready()
    submit(pool, "demo", params(duration=0.1), log)
    wait_until(lambda: log.end)
    assert isinstance(log.end, Finished)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_fails_the_load_with_a_hint(open_pool: Callable[..., ModelPool]) -> None:
    log = EventLog()
    submit(open_pool(device="cuda"), "demo", params(), log)
    wait_until(lambda: log.end)
    assert isinstance(log.end, Failed)
    assert "MUSICGEN_DEVICE" in log.end.error.hint


def test_exception_in_the_tokenizer_fails_every_waiting_request(
    open_pool: Callable[..., ModelPool], loads: FakeOpenFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "run_self_test", lambda engine: None)  # because the self-test would fail first
    monkeypatch.setattr(TextConditioner, "tokenize", lambda *_: 1 / 0)
    pool, logs = open_pool(), [EventLog(), EventLog()]
    for log in logs:
        submit(pool, "demo", params(), log)
    loads.proceed.set()
    wait_until(lambda: all(isinstance(log.end, Failed) for log in logs))
    with pytest.raises(ZeroDivisionError):
        submit(pool, "demo", params(), EventLog())
    assert pool.idle


def test_large_model_uses_all_cores_after_a_small_model_used_one(
    open_pool: Callable[..., ModelPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        pool, log = open_pool(allow_folders=True), EventLog()
        submit(pool, "demo", params(duration=0.1), log)
        wait_until(lambda: log.end)
        monkeypatch.setattr("musicgen_bento.lm.weights.ONE_THREAD_HEAD_PARAMS", 1)
        log = EventLog()
        submit(pool, str(folder(MONO)), params(duration=0.1), log)
        wait_until(lambda: log.end)
        assert sorted(entry.engine._threads for entry in pool._residency.entries.values() if entry.engine) == [1, 2]
    finally:
        torch.set_num_threads(cores)


def test_no_request_is_left_after_concurrent_adds_and_aborts(open_pool: Callable[..., ModelPool]) -> None:
    pool = open_pool(preload=("demo",), max_slots=3, max_queue=6)
    wait_until(pool.ready)

    def client(number: int) -> list[EventLog]:
        chance, logs = random.Random(number), []
        for _ in range(12):
            log = EventLog()
            try:
                request_id = submit(pool, "demo", params(duration=chance.choice([0.1, 0.3]), seed=number), log)
            except QueueFull:
                time.sleep(0.05)
                continue
            if chance.random() < 0.4:
                time.sleep(chance.random() * 0.05)
                pool.abort(request_id)
            else:
                logs.append(log)
        return logs

    with ThreadPoolExecutor(8) as clients:
        logs = [log for client_logs in clients.map(client, range(8)) for log in client_logs]
    wait_until(lambda: all(log.end for log in logs))
    assert len(logs) > 10
    assert all(isinstance(log.end, Finished) for log in logs)
    assert pool.idle


# ---- shutdown


def test_finished_request_stays_finished_and_a_closed_pool_refuses_requests(
    open_pool: Callable[..., ModelPool],
) -> None:
    pool, log = open_pool(), EventLog()
    submit(pool, "demo", params(duration=2), log)
    wait_until(lambda: pool.idle, timeout_seconds=60)
    pool.close()
    assert isinstance(log.end, Finished)
    with pytest.raises(ShuttingDown):
        submit(pool, "demo", params(), EventLog())


def test_close_fails_running_and_waiting_requests(open_pool: Callable[..., ModelPool], loads: FakeOpenFiles) -> None:
    loads.proceed.set()
    pool, running, loading = open_pool(), EventLog(), EventLog()
    submit(pool, "demo", params(duration=300), running)
    wait_until(lambda: any(isinstance(event, AudioChunk) for event in running.events))
    loads.proceed.clear()
    submit(pool, "small", params(), loading)
    threading.Timer(0.5, loads.proceed.set).start()
    time.sleep(0.1)
    assert not pool.idle
    pool.close()
    assert not pool._residency._threads
    for log in (running, loading):
        assert isinstance(log.end, Failed)
        assert isinstance(log.end.error, ShuttingDown)


def test_close_waits_for_a_running_load(
    open_pool: Callable[..., ModelPool], loads: FakeOpenFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "NETWORK_TIMEOUT_SECONDS", 0.1)
    pool, log = open_pool(), EventLog()
    submit(pool, "demo", params(), log)
    wait_until(lambda: loads.names)
    closing = threading.Thread(target=pool.close)
    closing.start()
    wait_until(lambda: log.end)  # before close returns
    closing.join(timeout=1)
    assert closing.is_alive()
    loads.proceed.set()
    closing.join(timeout=30)
    assert not closing.is_alive()


def test_close_does_not_wait_for_the_hub(
    open_pool: Callable[..., ModelPool], loads: FakeOpenFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "NETWORK_TIMEOUT_SECONDS", 0.1)
    pool = open_pool()
    submit(pool, "facebook/musicgen-medium", params(), EventLog())  # no test has it in a cache
    wait_until(lambda: loads.names)
    closing = threading.Thread(target=pool.close)
    closing.start()
    closing.join(timeout=20)
    assert not closing.is_alive()


def test_model_error_survives_serialization() -> None:
    """Errors of the pool have a code, and cross the process boundary unchanged."""
    error = InvalidCheckpoint("no", hint="do this", field="model")
    assert MusicGenError.from_dict(error.to_dict()).to_dict() == error.to_dict()


def test_built_in_model_is_complete() -> None:
    names = {path.name for path in Path(str(CATALOG[0].folder)).iterdir()}
    assert {"state_dict.bin", "compression_state_dict.bin", "t5", "README.md"} <= names
    weights = torch.load(Path(str(CATALOG[0].folder), "state_dict.bin"), weights_only=True)["best_state"]
    assert sum(tensor.numel() for tensor in weights.values()) == CATALOG[0].parameters
