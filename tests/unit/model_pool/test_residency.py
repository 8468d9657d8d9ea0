"""Loading and eviction under a memory budget, with real checkpoints: memory, requests, and the device thread."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.loading import CheckpointFiles
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.config import Settings
from musicgen_bento.device import free_memory, memory_budget
from musicgen_bento.engine.types import AudioChunk, Failed, Finished, Queued
from musicgen_bento.errors import InvalidCheckpoint, ModelTooLarge
from musicgen_bento.lm.delay_pattern import DelayPattern
from musicgen_bento.lm.kv_cache.factory import request_kv_bytes
from musicgen_bento.lm.weights import LMShape
from musicgen_bento.model_catalog import CATALOG
from musicgen_bento.model_pool.device_thread import DeviceThread
from musicgen_bento.model_pool.loader import Loader
from musicgen_bento.model_pool.pool import ModelPool
from musicgen_bento.precision import FLOAT16_WEIGHTS, FLOAT32_NATIVE, INT8, Precision
from tests.support.tiny_models import MONO, STEREO, EventLog, folder, memory_with_one_request, params, submit
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[3]


def tiny_model_bytes(precision: Any = "auto") -> int:
    """Bytes of the tiny model with its largest request."""
    return memory_with_one_request(Source("tiny", folder(MONO)), precision)


class ThreeModels:
    """Three models of one size, and a pool with memory for one and a half of them."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.folders = {name: str(shutil.copytree(folder(MONO), home / name)) for name in "abc"}
        budget = settings.pop("memory_budget", None) or int(1.5 * tiny_model_bytes())
        pool_settings = Settings(device="cpu", preload=(), memory_budget=budget, **settings)
        self.loaded: list[str] = []
        self.evicted: list[str] = []
        self.request_ids: list[str] = []
        self.pool = ModelPool(
            pool_settings, allow_folders=True, on_loaded=self.loaded.append, on_evicted=self.evicted.append
        )

    def add_request(self, name: str, duration: float = 0.1) -> EventLog:
        log = EventLog()
        self.request_ids.append(submit(self.pool, self.folders[name], params(duration=duration), log))
        return log

    def run_request(self, name: str, duration: float = 0.1) -> None:
        log = self.add_request(name, duration)
        wait_until(lambda: log.end)
        assert isinstance(log.end, Finished), log.end

    def state(self, name: str) -> tuple[str, str | None, int | None]:
        for status in self.pool.statuses():
            if status.id == name:
                return status.state, status.progress and status.progress.step, status.progress and status.progress.ahead
        return "unknown", None, None


@pytest.fixture
def open_three(tmp_path: Path) -> Iterator[Callable[..., ThreeModels]]:
    opened: list[ThreeModels] = []

    def open_pool(**settings: Any) -> ThreeModels:
        opened.append(ThreeModels(tmp_path, **settings))
        return opened[-1]

    yield open_pool
    for models in opened:
        models.pool.close()


def has_audio(log: EventLog) -> bool:
    return any(isinstance(event, AudioChunk) for event in log.events)


def test_two_models_alternate_if_only_one_fits(
    open_three: Callable[..., ThreeModels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors of an evicted model are freed before the next model is loaded."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    alive_at_load: list[int] = []
    build = loading.build

    def build_and_record(files: CheckpointFiles, *rest: Any) -> loading.Checkpoint:
        alive_at_load.append(len(alive))
        built = build(files, *rest)
        alive.update([built.weights.embeddings, built.text_encoder.shared.weight])
        return built

    monkeypatch.setattr(loading, "build", build_and_record)
    models = open_three()
    for name in "abaab":
        models.run_request(name)
    assert models.loaded == ["a", "b", "a", "b"]
    assert models.evicted == ["a", "b", "a"]
    assert alive_at_load == [0, 0, 0, 0]
    assert models.state("b") == ("loaded", None, None)
    assert models.state("a") == ("unknown", None, None)  # a folder is listed only while it is in memory


def test_both_models_stay_loaded_if_both_fit(open_three: Callable[..., ThreeModels]) -> None:
    models = open_three(memory_budget=2 * tiny_model_bytes())
    for name in "ababab":
        models.run_request(name)
    assert models.loaded == ["a", "b"]
    assert models.evicted == []


def test_least_recently_used_of_two_models_is_evicted_for_a_third(open_three: Callable[..., ThreeModels]) -> None:
    models = open_three(memory_budget=2 * tiny_model_bytes())
    for name in "abac":
        models.run_request(name)
    assert models.evicted == ["b"]


def test_model_in_use_stays_loaded_and_the_other_model_waits(open_three: Callable[..., ThreeModels]) -> None:
    models = open_three()
    long = models.add_request("a", duration=25)
    wait_until(lambda: has_audio(long))
    other = models.add_request("b")
    wait_until(lambda: models.state("b") == ("loading", "waiting", 0))
    assert models.state("a") == ("loaded", None, None)
    assert other.events == [Queued(0, loading=True)]
    assert models.pool.request_counts()["b"] == (0, 1)
    wait_until(lambda: long.end)
    assert isinstance(long.end, Finished)
    wait_until(lambda: other.end)
    assert isinstance(other.end, Finished)
    assert models.evicted == ["a"]


def test_requests_for_a_draining_model_wait_behind_the_queued_model(open_three: Callable[..., ThreeModels]) -> None:
    """Later requests for model a wait until model b, which was queued before them, has run."""
    models = open_three(max_slots=2)
    order: list[str] = []
    first = models.add_request("a", duration=12)
    wait_until(lambda: has_audio(first))
    logs = {"b": models.add_request("b")}
    wait_until(lambda: models.state("b")[1] == "waiting")
    logs |= {f"a{number}": models.add_request("a") for number in range(3)}
    unfinished = dict(logs)
    while unfinished:
        for name in [name for name, log in unfinished.items() if log.end]:
            order.append(name)
            del unfinished[name]
        time.sleep(0.002)
    assert order[0] == "b"
    assert all(isinstance(log.end, Finished) for log in (first, *logs.values()))
    assert models.loaded == ["a", "b", "a"]


def test_no_model_is_evicted_for_an_aborted_request(open_three: Callable[..., ThreeModels]) -> None:
    models = open_three()
    long = models.add_request("a", duration=25)
    wait_until(lambda: has_audio(long))
    models.add_request("b")
    wait_until(lambda: models.state("b")[1] == "waiting")
    deferred = models.add_request("a")
    assert not has_audio(deferred)
    models.pool.abort(models.request_ids[1])
    wait_until(lambda: deferred.end)
    assert isinstance(deferred.end, Finished)
    assert long.end is None  # the deferred request ran beside it, on the model that was to be evicted
    assert models.evicted == []
    assert models.state("b")[0] == "unknown"


def test_failed_load_frees_its_memory(open_three: Callable[..., ThreeModels], monkeypatch: pytest.MonkeyPatch) -> None:
    models = open_three()
    build, alive = loading.build, weakref.WeakSet[torch.Tensor]()

    def fail_after_build(files: CheckpointFiles, *rest: Any) -> loading.Checkpoint:
        built = build(files, *rest)
        alive.add(built.weights.embeddings)
        raise InvalidCheckpoint("The T5 files cannot be read.")

    with monkeypatch.context() as patch:
        patch.setattr(loading, "build", fail_after_build)
        log = models.add_request("a")
        wait_until(lambda: log.end)
    assert isinstance(log.end, Failed)
    wait_until(lambda: models.pool._residency._budget.free == models.pool._loader.budget)
    gc.collect()
    assert not alive  # the reported error holds no reference to the model
    models.run_request("b")
    models.run_request("a")


def test_two_models_that_do_not_fit_together_load_one_after_the_other(
    open_three: Callable[..., ThreeModels], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = open_three()
    build, proceed, loads = loading.build, threading.Event(), []

    def slow(files: CheckpointFiles, *rest: Any) -> loading.Checkpoint:
        loads.append(files.source.name)
        assert proceed.wait(30)
        return build(files, *rest)

    monkeypatch.setattr(loading, "build", slow)
    logs = [models.add_request("a"), models.add_request("b")]
    wait_until(lambda: loads)
    time.sleep(0.3)
    assert len(loads) == 1
    proceed.set()
    wait_until(lambda: all(log.end for log in logs))
    assert all(isinstance(log.end, Finished) for log in logs)
    assert sorted(loads) == ["a", "b"]


def test_many_requests_for_three_models_all_finish(open_three: Callable[..., ThreeModels]) -> None:
    models = open_three(max_slots=2)
    logs = [models.add_request(name, duration=0.1 + 0.1 * (number % 3)) for number, name in enumerate("abcabccba" * 3)]
    for number in range(0, len(logs), 5):
        models.pool.abort(models.request_ids[number])
    not_aborted = [log for number, log in enumerate(logs) if number % 5]
    wait_until(lambda: all(log.end for log in not_aborted))
    assert all(isinstance(log.end, Finished) for log in not_aborted)
    wait_until(lambda: models.pool.idle)
    assert models.pool._residency.queue() == []


def test_requests_that_do_not_fit_into_memory_together_run_one_after_the_other(
    open_three: Callable[..., ThreeModels],
) -> None:
    models = open_three(memory_budget=tiny_model_bytes("float32"), precision="float32", max_slots=8)
    logs = [models.add_request("a", duration=20) for _ in range(3)]
    wait_until(lambda: any(has_audio(log) for log in logs))
    running, waiting = models.pool.request_counts()["a"]
    assert (running, waiting) == (1, 2)
    for request_id in models.request_ids[1:]:
        models.pool.abort(request_id)
    short = [models.add_request("a") for _ in range(4)]
    models.pool.abort(models.request_ids[0])
    wait_until(lambda: all(log.end for log in short))


def test_model_larger_than_the_budget_is_refused_with_both_sizes(open_three: Callable[..., ThreeModels]) -> None:
    models = open_three(memory_budget=tiny_model_bytes() - 1)
    log = models.add_request("a")
    wait_until(lambda: log.end)
    assert isinstance(log.end, Failed)
    assert isinstance(log.end.error, ModelTooLarge)
    size = f"{tiny_model_bytes() / 1e6:.1f} MB"
    assert log.end.error.message.count(size) == 2, log.end.error.message
    assert "MUSICGEN_MEMORY_BUDGET" in log.end.error.hint


def test_catalogue_model_that_cannot_fit_is_not_fetched(open_three: Callable[..., ThreeModels]) -> None:
    models, log = open_three(memory_budget=10**9, precision="float32"), EventLog()
    submit(models.pool, "large", params(), log)
    wait_until(lambda: log.end)
    assert isinstance(log.end, Failed)
    assert "facebook/musicgen-large needs 16.5 GB of memory with one request; the memory budget is 1.0 GB." in str(
        log.end.error
    )


def test_ready_raises_if_the_preloads_do_not_fit_together(tmp_path: Path) -> None:
    folders = tuple(str(shutil.copytree(folder(MONO), tmp_path / name)) for name in "ab")
    pool = ModelPool(Settings(device="cpu", preload=folders, memory_budget=int(1.5 * tiny_model_bytes())))
    try:

        def raises() -> bool:
            try:
                pool.ready()
            except ModelTooLarge as error:
                return "MUSICGEN_PRELOAD" in error.message
            return False

        wait_until(raises)
    finally:
        pool.close()


def test_pool_stays_ready_when_a_preloaded_model_is_evicted(tmp_path: Path) -> None:
    a, b = (str(shutil.copytree(folder(MONO), tmp_path / name)) for name in "ab")
    evicted: list[str] = []
    settings = Settings(device="cpu", preload=(a,), memory_budget=int(1.5 * tiny_model_bytes()))
    pool = ModelPool(settings, allow_folders=True, on_evicted=evicted.append)
    try:
        wait_until(pool.ready)
        log = EventLog()
        submit(pool, b, params(duration=0.1), log)
        wait_until(lambda: log.end)
        assert evicted == ["a"]
        assert pool.ready()
        time.sleep(0.2)
        assert {status.id: status.state for status in pool.statuses()}["b"] == "loaded"  # a is not loaded again
    finally:
        pool.close()


def test_close_fails_the_requests_of_a_model_that_waits_for_memory(open_three: Callable[..., ThreeModels]) -> None:
    models = open_three()
    long = models.add_request("a", duration=300)
    wait_until(lambda: has_audio(long))
    other = models.add_request("b")
    wait_until(lambda: models.state("b")[1] == "waiting")
    models.pool.close()
    assert isinstance(long.end, Failed)
    assert isinstance(other.end, Failed)
    assert not models.pool._residency._threads


# ---- estimates of memory


@pytest.mark.parametrize("recipe", [MONO, STEREO])
@pytest.mark.parametrize("precision", [FLOAT32_NATIVE, FLOAT16_WEIGHTS, INT8])
def test_model_size_is_known_before_it_is_loaded(recipe: Any, precision: Precision) -> None:
    files = loading.open_files(Source("tiny", folder(recipe)))
    assert loading.build(files, torch.device("cpu"), precision).num_bytes == files.model_bytes(precision)


@pytest.mark.parametrize("precision", [FLOAT32_NATIVE, FLOAT16_WEIGHTS, INT8])
def test_estimate_is_exact_for_the_shape_of_the_released_models(precision: Precision) -> None:
    files = loading.open_files(Source("tiny", folder(MONO)))
    shape = files.shape
    assert precision.estimate_model_bytes(files.size.num_params, shape.layers, shape.dim) == precision.model_bytes(
        files.size
    )


def test_size_in_the_catalogue_equals_the_size_from_the_files() -> None:
    card, loader = CATALOG[0], Loader(Settings(device="cpu", precision="float32"))
    files = loading.open_files(Source(card.id, card.folder or ""))
    assert card.memory_bytes(FLOAT32_NATIVE, 300) == loader.memory_requirements(files)[0]
    assert (card.layers, card.dim) == (files.shape.layers, files.shape.dim)


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_catalogue_does_not_underestimate_the_largest_request(size: str) -> None:
    """The prompt is the one that needs the most memory. The estimate is too large by at most a tenth."""
    card = next(card for card in CATALOG if card.id == f"facebook/musicgen-{size}")
    shape = LMShape(
        card.dim, 4 * card.dim, card.dim // 64, card.layers, 2048, DelayPattern((0, 1, 2, 3)), 1500, "cross"
    )
    largest = max(request_kv_bytes(shape, INT8, 2, shape.pattern.last_position(1500), tokens) for tokens in range(513))
    model = INT8.estimate_model_bytes(card.parameters, card.layers, card.dim) + 4 * card.num_float32_params
    request_bytes = card.memory_bytes(INT8, 30) - model
    assert largest <= request_bytes <= 1.1 * largest


def test_files_are_not_mapped_after_a_load() -> None:
    """The test runs in a new process, because references that xformers keeps would keep the files mapped."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    program = f"""
import gc, torch
from pathlib import Path
from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.precision import FLOAT32_NATIVE
loading.load(Source("demo", Path({str(CATALOG[0].folder)!r})), torch.device("cpu"), FLOAT32_NATIVE)
gc.collect()
print(Path("/proc/self/maps").read_text().count("state_dict.bin"))
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.split() == ["0"], result.stderr


def test_free_memory_respects_the_limit_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    machine = free_memory(cpu)
    limit, current = tmp_path / "memory.max", tmp_path / "memory.current"
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    current.write_text("1000\n")
    monkeypatch.setattr("musicgen_bento.device.CGROUP_MEMORY_FILES", ((limit, current, "inactive_file"),))
    limit.write_text("max\n")
    assert free_memory(cpu) == pytest.approx(machine, rel=0.2)
    limit.write_text("5000\n")
    assert free_memory(cpu) == 4300
    assert memory_budget(cpu, Settings()) == 3440
    assert memory_budget(cpu, Settings(memory_budget="2kb")) == 2000  # type: ignore[arg-type]


# ---- the device thread


class FakeEngine:
    """An engine that logs its steps; each takes `seconds`, and there are `steps_left`."""

    def __init__(self, seconds: float, steps_left: int, log: list[str], name: str) -> None:
        self.seconds, self.steps_left, self.log, self.name = seconds, steps_left, log, name

    def step(self) -> bool:
        if not self.steps_left:
            return False
        time.sleep(self.seconds)
        self.steps_left -= 1
        self.log.append(self.name)
        return True


def test_engines_are_stepped_in_turn() -> None:
    log: list[str] = []
    thread = DeviceThread()
    large, small = FakeEngine(0.02, 10**9, log, "large"), FakeEngine(0.0, 30, log, "small")
    thread.add(large)
    wait_until(lambda: len(log) > 3)
    steps_before = len(log)
    thread.add(small)
    wait_until(lambda: not small.steps_left)
    thread.close()
    order = log[log.index("small") :][:60]
    assert order == ["small", "large"] * 30 or order[:59] == (["small", "large"] * 30)[:59]
    assert steps_before < log.index("small") <= steps_before + 2


def test_removed_engine_is_not_referenced_by_the_thread() -> None:
    log: list[str] = []
    thread = DeviceThread()
    busy, removed = FakeEngine(0.01, 10**9, log, "busy"), FakeEngine(0.0, 10**9, log, "removed")
    thread.add(busy)
    thread.add(removed)
    wait_until(lambda: "removed" in log)
    reference = weakref.ref(removed)
    thread.remove(removed)
    del removed
    assert reference() is None
    steps = log.count("removed")
    wait_until(lambda: len(log) > 20)
    assert log.count("removed") == steps
    thread.close()
    thread.remove(busy)  # returns also after close
