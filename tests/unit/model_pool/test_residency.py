"""Models in turn under a budget: real checkpoints, and what becomes of their memory and their clips."""

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
from tests.support.tiny_models import MONO, STEREO, EventLog, folder, params, submit, memory_with_one_request
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[3]


def one_takes(precision: Any = "auto") -> int:
    """Bytes of the tiny model with one clip."""
    return memory_with_one_request(Source("tiny", folder(MONO)), precision)


class Turns:
    """Three models of one size, and a pool for one and a half of them."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.folders = {name: str(shutil.copytree(folder(MONO), home / name)) for name in "abc"}
        budget = settings.pop("memory_budget", None) or int(1.5 * one_takes())
        chosen = Settings(device="cpu", preload=(), memory_budget=budget, **settings)
        self.came: list[str] = []
        self.left: list[str] = []
        self.pool = ModelPool(chosen, allow_folders=True, on_loaded=self.came.append, on_evicted=self.left.append)

    def ask(self, name: str, duration: float = 0.1) -> EventLog:
        story = EventLog()
        self.tickets = [
            *getattr(self, "tickets", []),
            submit(self.pool, self.folders[name], params(duration=duration), story),
        ]
        return story

    def make(self, name: str, duration: float = 0.1) -> None:
        story = self.ask(name, duration)
        wait_until(lambda: story.end)
        assert isinstance(story.end, Finished), story.end

    def state(self, name: str) -> tuple[str, str | None, int | None]:
        for status in self.pool.statuses():
            if status.id == name:
                return status.state, status.progress and status.progress.step, status.progress and status.progress.ahead
        return "unknown", None, None


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[Callable[..., Turns]]:
    made: list[Turns] = []

    def make(**settings: Any) -> Turns:
        made.append(Turns(tmp_path, **settings))
        return made[-1]

    yield make
    for each in made:
        each.pool.close()


def heard(story: EventLog) -> bool:
    return any(isinstance(event, AudioChunk) for event in story.events)


def test_two_in_turn_where_one_fits(turns: Callable[..., Turns], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every load finds the one before it gone: its tensors are freed, not just forgotten."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    beside: list[int] = []
    build = loading.build

    def watched(files: CheckpointFiles, *rest: Any) -> loading.Checkpoint:
        beside.append(len(alive))
        built = build(files, *rest)
        alive.update([built.weights.embeddings, built.text_encoder.shared.weight])
        return built

    monkeypatch.setattr(loading, "build", watched)
    two = turns()
    for name in "abaab":
        two.make(name)
    assert two.came == ["a", "b", "a", "b"]
    assert two.left == ["a", "b", "a"]
    assert beside == [0, 0, 0, 0]
    assert two.state("b") == ("loaded", None, None)
    assert two.state("a") == ("unknown", None, None)  # a folder is listed while it is in memory


def test_both_stay_where_both_fit(turns: Callable[..., Turns]) -> None:
    two = turns(memory_budget=2 * one_takes())
    for name in "ababab":
        two.make(name)
    assert two.came == ["a", "b"]
    assert two.left == []


def test_the_least_recently_used_of_two_makes_room_for_a_third(turns: Callable[..., Turns]) -> None:
    three = turns(memory_budget=2 * one_takes())
    for name in "abac":
        three.make(name)
    assert three.left == ["b"]


def test_a_clip_in_the_making_keeps_its_model_and_the_other_waits_in_line(turns: Callable[..., Turns]) -> None:
    two = turns()
    long = two.ask("a", duration=25)
    wait_until(lambda: heard(long))
    other = two.ask("b")
    wait_until(lambda: two.state("b") == ("loading", "waiting", 0))
    assert two.state("a") == ("loaded", None, None)
    assert other.events == [Queued(0, loading=True)]
    assert two.pool.request_counts()["b"] == (0, 1)
    wait_until(lambda: long.end)
    assert isinstance(long.end, Finished)
    wait_until(lambda: other.end)
    assert isinstance(other.end, Finished)
    assert two.left == ["a"]


def test_who_comes_after_waits_behind_who_waits_and_nobody_starves(turns: Callable[..., Turns]) -> None:
    """Clips for a come all the time; b has its turn when those that came before it are done."""
    two = turns(max_slots=2)
    order: list[str] = []
    first = two.ask("a", duration=12)
    wait_until(lambda: heard(first))
    stories = {"b": two.ask("b")}
    wait_until(lambda: two.state("b")[1] == "waiting")
    stories |= {f"a{number}": two.ask("a") for number in range(3)}
    watched = dict(stories)
    while watched:
        for name in [name for name, story in watched.items() if story.end]:
            order.append(name)
            del watched[name]
        time.sleep(0.002)
    assert order[0] == "b"
    assert all(isinstance(story.end, Finished) for story in (first, *stories.values()))
    assert two.came == ["a", "b", "a"]


def test_one_who_leaves_the_line_sends_nobody_away(turns: Callable[..., Turns]) -> None:
    two = turns()
    long = two.ask("a", duration=25)
    wait_until(lambda: heard(long))
    two.ask("b")
    wait_until(lambda: two.state("b")[1] == "waiting")
    held = two.ask("a")
    assert not heard(held)
    two.pool.abort(two.tickets[1])
    wait_until(lambda: held.end)
    assert isinstance(held.end, Finished)
    assert long.end is None  # made beside it, by the model that was to leave
    assert two.left == []
    assert two.state("b")[0] == "unknown"


def test_a_load_that_fails_gives_its_room_back(turns: Callable[..., Turns], monkeypatch: pytest.MonkeyPatch) -> None:
    two = turns()
    build, alive = loading.build, weakref.WeakSet[torch.Tensor]()

    def half(files: CheckpointFiles, *rest: Any) -> loading.Checkpoint:
        built = build(files, *rest)
        alive.add(built.weights.embeddings)
        raise InvalidCheckpoint("t5 of it cannot be read.")

    with monkeypatch.context() as patch:
        patch.setattr(loading, "build", half)
        story = two.ask("a")
        wait_until(lambda: story.end)
    assert isinstance(story.end, Failed)
    wait_until(lambda: two.pool._memory._budget.free == two.pool._loader.budget)
    gc.collect()
    assert not alive  # the error that was told holds on to nothing
    two.make("b")
    two.make("a")


def test_two_loads_at_once_take_turns(turns: Callable[..., Turns], monkeypatch: pytest.MonkeyPatch) -> None:
    two = turns()
    build, go, at_once = loading.build, threading.Event(), []

    def slow(files: CheckpointFiles, *rest: Any) -> loading.Checkpoint:
        at_once.append(files.source.name)
        assert go.wait(30)
        return build(files, *rest)

    monkeypatch.setattr(loading, "build", slow)
    stories = [two.ask("a"), two.ask("b")]
    wait_until(lambda: at_once)
    time.sleep(0.3)
    assert len(at_once) == 1
    go.set()
    wait_until(lambda: all(story.end for story in stories))
    assert all(isinstance(story.end, Finished) for story in stories)
    assert sorted(at_once) == ["a", "b"]


def test_many_clients_of_three_models_all_get_their_clips(turns: Callable[..., Turns]) -> None:
    three = turns(max_slots=2)
    stories = [three.ask(name, duration=0.1 + 0.1 * (number % 3)) for number, name in enumerate("abcabccba" * 3)]
    for number in range(0, len(stories), 5):
        three.pool.abort(three.tickets[number])
    kept = [story for number, story in enumerate(stories) if number % 5]
    wait_until(lambda: all(story.end for story in kept))
    assert all(isinstance(story.end, Finished) for story in kept)
    wait_until(lambda: not three.pool._tickets)
    assert three.pool._memory.queue() == []


def test_more_clips_than_there_is_room_for_are_made_one_after_the_other(turns: Callable[..., Turns]) -> None:
    one = turns(memory_budget=one_takes("float32"), precision="float32", max_slots=8)
    stories = [one.ask("a", duration=20) for _ in range(3)]
    wait_until(lambda: any(heard(story) for story in stories))
    running, waiting = one.pool.request_counts()["a"]
    assert (running, waiting) == (1, 2)
    for ticket in one.tickets[1:]:
        one.pool.abort(ticket)
    short = [one.ask("a") for _ in range(4)]
    one.pool.abort(one.tickets[0])
    wait_until(lambda: all(story.end for story in short))


def test_a_model_larger_than_the_budget_is_refused_with_the_numbers(turns: Callable[..., Turns]) -> None:
    one = turns(memory_budget=one_takes() - 1)
    story = one.ask("a")
    wait_until(lambda: story.end)
    assert isinstance(story.end, Failed)
    assert isinstance(story.end.error, ModelTooLarge)
    size = f"{one_takes() / 1e6:.1f} MB"
    assert story.end.error.message.count(size) == 2, story.end.error.message
    assert "MUSICGEN_MEMORY_BUDGET" in story.end.error.hint


def test_a_released_model_that_cannot_fit_is_not_fetched(turns: Callable[..., Turns]) -> None:
    one, story = turns(memory_budget=10**9, precision="float32"), EventLog()
    submit(one.pool, "large", params(), story)
    wait_until(lambda: story.end)
    assert isinstance(story.end, Failed)
    assert "facebook/musicgen-large needs 16.5 GB of memory with one clip; the memory budget is 1.0 GB." in str(
        story.end.error
    )


def test_preloads_that_do_not_fit_together_are_told_by_readiness(tmp_path: Path) -> None:
    folders = tuple(str(shutil.copytree(folder(MONO), tmp_path / name)) for name in "ab")
    pool = ModelPool(Settings(device="cpu", preload=folders, memory_budget=int(1.5 * one_takes())))
    try:

        def refuses() -> bool:
            try:
                pool.ready()
            except ModelTooLarge as error:
                return "MUSICGEN_PRELOAD" in error.message
            return False

        wait_until(refuses)
    finally:
        pool.close()


def test_a_preloaded_model_that_had_to_leave_is_no_unreadiness(tmp_path: Path) -> None:
    a, b = (str(shutil.copytree(folder(MONO), tmp_path / name)) for name in "ab")
    left: list[str] = []
    settings = Settings(device="cpu", preload=(a,), memory_budget=int(1.5 * one_takes()))
    pool = ModelPool(settings, allow_folders=True, on_evicted=left.append)
    try:
        wait_until(pool.ready)
        story = EventLog()
        submit(pool, b, params(duration=0.1), story)
        wait_until(lambda: story.end)
        assert left == ["a"]
        assert pool.ready()
        time.sleep(0.2)
        assert {status.id: status.state for status in pool.statuses()}["b"] == "loaded"  # a is not loaded again
    finally:
        pool.close()


def test_close_while_one_waits_in_line(turns: Callable[..., Turns]) -> None:
    two = turns()
    long = two.ask("a", duration=300)
    wait_until(lambda: heard(long))
    other = two.ask("b")
    wait_until(lambda: two.state("b")[1] == "waiting")
    two.pool.close()
    assert isinstance(long.end, Failed)
    assert isinstance(other.end, Failed)
    assert not two.pool._memory._threads


# ---- what is known before


@pytest.mark.parametrize("recipe", [MONO, STEREO])
@pytest.mark.parametrize("precision", [FLOAT32_NATIVE, FLOAT16_WEIGHTS, INT8])
def test_what_a_model_takes_is_known_before_it_is_read(recipe: Any, precision: Precision) -> None:
    files = loading.open_files(Source("tiny", folder(recipe)))
    assert loading.build(files, torch.device("cpu"), precision).num_bytes == files.model_bytes(precision)


@pytest.mark.parametrize("precision", [FLOAT32_NATIVE, FLOAT16_WEIGHTS, INT8])
def test_an_estimate_is_exact_for_the_shape_of_the_released_ones(precision: Precision) -> None:
    files = loading.open_files(Source("tiny", folder(MONO)))
    shape = files.shape
    assert precision.estimate_model_bytes(files.size.num_params, shape.layers, shape.dim) == precision.model_bytes(
        files.size
    )


def test_what_a_card_says_of_memory_is_what_the_files_say() -> None:
    card, loader = CATALOG[0], Loader(Settings(device="cpu", precision="float32"))
    files = loading.open_files(Source(card.id, card.folder or ""))
    assert card.memory_bytes(FLOAT32_NATIVE, 300) == loader.memory_requirements(files)[0]
    assert (card.layers, card.dim) == (files.shape.layers, files.shape.dim)


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_a_card_does_not_promise_too_small_a_clip(size: str) -> None:
    """With the prompt that takes most, for which the card counts in round numbers."""
    card = next(card for card in CATALOG if card.id == f"facebook/musicgen-{size}")
    shape = LMShape(
        card.dim, 4 * card.dim, card.dim // 64, card.layers, 2048, DelayPattern((0, 1, 2, 3)), 1500, "cross"
    )
    clip = max(request_kv_bytes(shape, INT8, 2, shape.pattern.last_position(1500), tokens) for tokens in range(513))
    model = INT8.estimate_model_bytes(card.parameters, card.layers, card.dim) + 4 * card.num_float32_params
    rest = card.memory_bytes(INT8, 30) - model
    assert clip <= rest <= 1.1 * clip


def test_a_file_is_not_kept_mapped_once_it_is_read() -> None:
    """In a process of its own: what xformers keeps of its own import would hold the first model's files for ever."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    program = f"""
import gc, torch
from pathlib import Path
from musicgen_bento.engine import checkpoint
from musicgen_bento.engine.hub import Source
from musicgen_bento.precision import FLOAT32_PACKED
loading.load(Source("demo", Path({str(CATALOG[0].folder)!r})), torch.device("cpu"), FLOAT32_PACKED)
gc.collect()
print(Path("/proc/self/maps").read_text().count("state_dict.bin"))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["0"], done.stderr


def test_free_memory_is_what_the_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


# ---- the device's thread


class Fake:
    """An engine that counts its steps, and does one in so many seconds."""

    def __init__(self, seconds: float, left: int, log: list[str], name: str) -> None:
        self.seconds, self.left, self.log, self.name = seconds, left, log, name

    def step(self) -> bool:
        if not self.left:
            return False
        time.sleep(self.seconds)
        self.left -= 1
        self.log.append(self.name)
        return True


def test_a_large_model_and_a_small_one_step_in_turn() -> None:
    log: list[str] = []
    thread = DeviceThread()
    large, small = Fake(0.02, 10**9, log, "large"), Fake(0.0, 30, log, "small")
    thread.add(large)
    wait_until(lambda: len(log) > 3)
    began = len(log)
    thread.add(small)
    wait_until(lambda: not small.left)
    thread.close()
    turns = log[log.index("small") :][:60]
    assert turns == ["small", "large"] * 30 or turns[:59] == (["small", "large"] * 30)[:59]
    assert began < log.index("small") <= began + 2


def test_the_thread_has_let_go_of_what_was_removed() -> None:
    log: list[str] = []
    thread = DeviceThread()
    busy, gone = Fake(0.01, 10**9, log, "busy"), Fake(0.0, 10**9, log, "gone")
    thread.add(busy)
    thread.add(gone)
    wait_until(lambda: "gone" in log)
    reference = weakref.ref(gone)
    thread.remove(gone)
    del gone
    assert reference() is None
    steps = log.count("gone")
    wait_until(lambda: len(log) > 20)
    assert log.count("gone") == steps
    thread.close()
    thread.remove(busy)  # on the way out nobody waits for it
