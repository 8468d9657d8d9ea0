"""Who may be in memory: cases by name, and laws that hold whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from musicgen_bento.model_pool.memory_budget import Decision, MemoryBudget


def enter(budget: MemoryBudget[str], key: str, size: int, clip: int = 0) -> None:
    """In memory, without waiting."""
    budget.enqueue(key, size, clip)
    assert key in budget.decide().admit
    budget.set_loaded(key, size, clip)


def use_and_release(budget: MemoryBudget[str], *keys: str) -> None:
    for key in keys:
        budget.acquire(key)
        budget.release(key)


def test_what_fits_comes_in_at_once() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    budget.enqueue("a", 4, 1)
    budget.enqueue("b", 6, 1)
    assert budget.decide() == Decision(["a", "b"], [])
    assert budget.free == 0
    assert budget.decide() == Decision()


def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="11 bytes of 10"):
        MemoryBudget[str](10).enqueue("a", 11, 1)


def test_the_least_recently_used_leaves() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    for key in "abc":
        enter(budget, key, 3)
    use_and_release(budget, "b", "a", "c")
    budget.enqueue("d", 4, 0)
    assert budget.decide() == Decision([], ["b"])
    assert budget.decide() == Decision()  # told once
    budget.remove("b")
    assert budget.decide() == Decision(["d"], [])


def test_no_more_leave_than_it_takes() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    enter(budget, "small", 1)
    enter(budget, "large", 9)
    budget.enqueue("new", 8, 0)
    assert budget.decide().evict == ["large"]


def test_one_in_use_stays_until_its_clips_are_over_and_takes_no_new_ones() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    enter(budget, "a", 8)
    budget.acquire("a")
    budget.enqueue("b", 8, 0)
    assert budget.decide() == Decision()
    assert not budget.accepts_requests("a")
    budget.release("a")
    assert budget.decide() == Decision([], ["a"])
    assert not budget.accepts_requests("a")


def test_an_idle_one_leaves_before_a_busy_one_that_was_used_earlier() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    enter(budget, "busy", 5)
    enter(budget, "idle", 5)
    budget.acquire("busy")
    use_and_release(budget, "idle")
    budget.enqueue("c", 5, 0)
    assert budget.decide().evict == ["idle"]
    assert budget.accepts_requests("busy")


def test_two_loads_never_take_more_than_there_is() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    budget.enqueue("a", 6, 0)
    budget.enqueue("b", 6, 0)
    assert budget.decide().admit == ["a"]
    assert budget.queue() == ["b"]
    assert not budget.accepts_requests("a")  # as soon as it has made what it was loaded for, b's turn comes
    budget.remove("a")  # its load failed: its room is free
    assert budget.decide().admit == ["b"]


def test_a_small_one_passes_where_the_first_does_not_wait_longer_for_it() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    enter(budget, "a", 8)
    budget.acquire("a")
    budget.enqueue("large", 9, 0)
    budget.enqueue("medium", 2, 0)
    budget.enqueue("small", 1, 0)
    assert budget.decide().admit == ["small"]  # 10 - 9 is over for it, not for medium
    budget.release("a")
    assert budget.decide().evict == ["a"]
    budget.remove("a")
    assert budget.decide().admit == ["large"]


def test_a_closed_one_opens_again_when_the_first_in_line_has_left() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    enter(budget, "a", 8)
    budget.acquire("a")
    budget.enqueue("b", 8, 0)
    budget.enqueue("a", 8, 0)  # a clip for the closed one
    assert budget.decide() == Decision()
    budget.cancel("b")
    assert budget.decide() == Decision(["a"], [])
    assert budget.accepts_requests("a")


def test_turns_are_taken() -> None:
    """Two that do not fit together, both asked for all the time."""
    budget: MemoryBudget[str] = MemoryBudget(10)
    order = []
    budget.enqueue("a", 8, 0)
    budget.enqueue("b", 8, 0)
    for _ in range(6):
        [key] = budget.decide().admit
        order.append(key)
        budget.set_loaded(key, 8, 0)
        budget.acquire(key)
        assert not budget.accepts_requests(key)
        budget.enqueue(key, 8, 0)  # more clips for it already
        assert budget.decide() == Decision()
        budget.release(key)
        assert budget.decide().evict == [key]
        budget.remove(key)
    assert order == ["a", "b"] * 3


def test_a_first_clip_always_has_room_and_more_take_what_is_free() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    enter(budget, "a", 6, 2)
    budget.acquire("a")
    assert budget.resize("a", 2)
    assert budget.free == 4
    assert budget.resize("a", 6)
    assert not budget.resize("a", 7)
    assert budget.free == 0
    assert budget.resize("a", 1)
    assert budget.free == 4


def test_a_clip_more_is_worth_an_idle_model_but_no_busy_one() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    enter(budget, "a", 5, 2)
    enter(budget, "b", 5, 1)
    budget.acquire("a")
    budget.acquire("b")
    assert not budget.resize("a", 4)
    assert budget.decide() == Decision()
    budget.release("b")
    assert budget.decide() == Decision([], ["b"])
    budget.remove("b")
    assert budget.resize("a", 4)


def test_a_clip_that_lacked_room_and_is_over_costs_nobody_its_place() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    enter(budget, "a", 5, 2)
    enter(budget, "b", 5, 1)
    budget.acquire("a")
    budget.acquire("b")
    assert not budget.resize("a", 4)
    budget.release("a")
    budget.release("b")
    assert budget.decide() == Decision()


def test_clips_take_nothing_that_the_first_in_line_waits_for() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    enter(budget, "a", 5, 1)
    enter(budget, "b", 4, 1)
    budget.acquire("b")
    budget.acquire("a")
    budget.enqueue("c", 5, 1)  # b, of 4, will leave for it; with the 1 that is free that is just enough
    assert not budget.resize("a", 2)
    budget.cancel("c")
    assert budget.resize("a", 2)


def test_one_that_is_larger_than_thought_costs_the_idle_theirs() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    enter(budget, "a", 4)
    budget.enqueue("b", 6, 0)
    budget.decide()
    budget.acquire("b")
    budget.set_loaded("b", 7, 0)
    assert budget.free == -1
    assert budget.decide().evict == ["a"]


class Life(RuleBasedStateMachine):
    """Clips come for models at random, end at random, loads end and fail at random, as a pool would have it."""

    TOTAL = 100
    SIZES = (10, 25, 40, 60, 95, 100)
    CLIP = 5

    def __init__(self) -> None:
        super().__init__()
        self.budget: MemoryBudget[int] = MemoryBudget(self.TOTAL)
        self.held = dict.fromkeys(range(len(self.SIZES)), 0)  # clips that stand in line
        self.clips = dict.fromkeys(self.held, 0)  # clips in memory
        self.loading: dict[int, int] = {}  # clips that come with it
        self.loaded: set[int] = set()
        self.leaving: set[int] = set()

    def take(self, key: int) -> None:
        if key in self.loaded and self.budget.accepts_requests(key):
            self.budget.acquire(key)
            self.clips[key] += 1
        elif key in self.loading and self.budget.accepts_requests(key):
            self.loading[key] += 1
        else:
            self.held[key] += 1
            self.budget.enqueue(key, self.SIZES[key], self.CLIP)

    def settle(self) -> None:
        decision = self.budget.decide()
        for key in decision.admit:
            assert self.held[key], "it comes in for nobody"
            held, self.held[key] = self.held[key], 0
            if key in self.loaded:
                for _ in range(held):
                    self.budget.acquire(key)
                    self.clips[key] += 1
            else:
                self.loading[key] = self.loading.get(key, 0) + held
        for key in decision.evict:
            assert key in self.loaded - self.leaving
            assert not self.clips[key], "one in use is taken away"
            self.leaving.add(key)

    def end_load(self, key: int) -> None:
        came = self.loading.pop(key)
        self.loaded.add(key)
        self.budget.set_loaded(key, self.SIZES[key], self.CLIP)
        for _ in range(came):
            self.budget.acquire(key)
            self.clips[key] += 1

    def end_clip(self, key: int) -> None:
        self.clips[key] -= 1
        self.budget.release(key)
        self.budget.resize(key, 0)

    def end_leaving(self, key: int) -> None:
        self.leaving.discard(key)
        self.loaded.discard(key)
        self.budget.remove(key)

    @rule(key=st.integers(0, len(SIZES) - 1))
    def clip_comes(self, key: int) -> None:
        self.take(key)
        self.settle()

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def clip_in_line_is_cancelled(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([key for key, held in self.held.items() if held]))
        self.held[key] -= 1
        if not self.held[key]:
            self.budget.cancel(key)
        self.settle()

    @precondition(lambda self: any(self.clips.values()))
    @rule(data=st.data(), more=st.integers(0, 40))
    def clips_take_room(self, data: st.DataObject, more: int) -> None:
        self.budget.resize(data.draw(st.sampled_from([key for key, clips in self.clips.items() if clips])), more)
        self.settle()

    @precondition(lambda self: any(self.clips.values()))
    @rule(data=st.data())
    def clip_ends(self, data: st.DataObject) -> None:
        self.end_clip(data.draw(st.sampled_from([key for key, clips in self.clips.items() if clips])))
        self.settle()

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), fails=st.booleans())
    def load_ends(self, data: st.DataObject, fails: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.loading)))
        if fails:
            del self.loading[key]
            self.budget.remove(key)
        else:
            self.end_load(key)
        self.settle()

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def model_is_out(self, data: st.DataObject) -> None:
        self.end_leaving(data.draw(st.sampled_from(sorted(self.leaving))))
        self.settle()

    @invariant()
    def nothing_beyond_the_budget(self) -> None:
        assert 0 <= self.budget.free <= self.TOTAL
        resident = self.loaded | set(self.loading)
        assert sum(self.SIZES[key] for key in resident) <= self.TOTAL - self.budget.free

    @invariant()
    def who_waits_is_in_line(self) -> None:
        assert {key for key, held in self.held.items() if held} == set(self.budget.queue())

    def teardown(self) -> None:
        """However it stands, all who wait get in, while those who are in get as many new clips as they can take."""
        waiting = self.budget.queue()
        for _ in range(60):
            if not waiting:
                return
            for key in self.loaded - self.leaving:
                if self.budget.accepts_requests(key):
                    self.take(key)  # never idle by itself
                while self.clips[key] > (self.budget.accepts_requests(key)):
                    self.end_clip(key)
            for key in list(self.loading):
                self.end_load(key)
            for key in list(self.leaving):
                self.end_leaving(key)
            self.settle()
            inside = {key for key in self.loading if key in waiting} | {k for k in waiting if not self.held[k]}
            waiting = [key for key in waiting if key not in inside]
        raise AssertionError(f"{waiting} never got in")


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
