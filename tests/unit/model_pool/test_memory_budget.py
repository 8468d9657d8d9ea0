"""The memory budget: single cases, and invariants that hold for any sequence of requests."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from musicgen_bento.model_pool.memory_budget import Decision, MemoryBudget


def load(budget: MemoryBudget[str], key: str, base_bytes: int, request_bytes: int = 0) -> None:
    """Load a model that fits at once."""
    budget.enqueue(key, base_bytes, request_bytes)
    assert key in budget.decide().admit
    budget.set_loaded(key, base_bytes, request_bytes)


def use_and_release(budget: MemoryBudget[str], *keys: str) -> None:
    for key in keys:
        budget.acquire(key)
        budget.release(key)


def test_models_that_fit_are_admitted_at_once() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    budget.enqueue("a", 4, 1)
    budget.enqueue("b", 6, 1)
    assert budget.decide() == Decision(["a", "b"], [])
    assert budget.free == 0
    assert budget.decide() == Decision()


def test_model_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="11 bytes of 10"):
        MemoryBudget[str](10).enqueue("a", 11, 1)


def test_least_recently_used_model_is_evicted() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    for key in "abc":
        load(budget, key, 3)
    use_and_release(budget, "b", "a", "c")
    budget.enqueue("d", 4, 0)
    assert budget.decide() == Decision([], ["b"])
    assert budget.decide() == Decision()  # returned once
    budget.remove("b")
    assert budget.decide() == Decision(["d"], [])


def test_no_more_models_are_evicted_than_needed() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    load(budget, "small", 1)
    load(budget, "large", 9)
    budget.enqueue("new", 8, 0)
    assert budget.decide().evict == ["large"]


def test_busy_victim_drains_and_is_evicted_when_its_requests_end() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    load(budget, "a", 8)
    budget.acquire("a")
    budget.enqueue("b", 8, 0)
    assert budget.decide() == Decision()
    assert not budget.accepts_requests("a")
    budget.release("a")
    assert budget.decide() == Decision([], ["a"])
    assert not budget.accepts_requests("a")


def test_idle_model_is_evicted_before_a_less_recently_used_busy_one() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    load(budget, "busy", 5)
    load(budget, "idle", 5)
    budget.acquire("busy")
    use_and_release(budget, "idle")
    budget.enqueue("c", 5, 0)
    assert budget.decide().evict == ["idle"]
    assert budget.accepts_requests("busy")


def test_concurrent_loads_do_not_exceed_the_budget() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    budget.enqueue("a", 6, 0)
    budget.enqueue("b", 6, 0)
    assert budget.decide().admit == ["a"]
    assert budget.queue() == ["b"]
    assert not budget.accepts_requests("a")  # b is next, once the requests that a was loaded for have ended
    budget.remove("a")  # its load failed, so its bytes are free
    assert budget.decide().admit == ["b"]


def test_small_model_overtakes_the_head_if_that_does_not_delay_it() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    load(budget, "a", 8)
    budget.acquire("a")
    budget.enqueue("large", 9, 0)
    budget.enqueue("medium", 2, 0)
    budget.enqueue("small", 1, 0)
    assert budget.decide().admit == ["small"]  # the head leaves 10 - 9 = 1 byte over: enough for small, not for medium
    budget.release("a")
    assert budget.decide().evict == ["a"]
    budget.remove("a")
    assert budget.decide().admit == ["large"]


def test_draining_model_is_reopened_when_the_head_is_cancelled() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    load(budget, "a", 8)
    budget.acquire("a")
    budget.enqueue("b", 8, 0)
    budget.enqueue("a", 8, 0)  # a new request for the draining model
    assert budget.decide() == Decision()
    budget.cancel("b")
    assert budget.decide() == Decision(["a"], [])
    assert budget.accepts_requests("a")


def test_two_models_that_do_not_fit_together_alternate() -> None:
    """Both models always have new requests."""
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
        budget.enqueue(key, 8, 0)  # new requests for it
        assert budget.decide() == Decision()
        budget.release(key)
        assert budget.decide().evict == [key]
        budget.remove(key)
    assert order == ["a", "b"] * 3


def test_first_request_always_fits_and_further_requests_use_free_memory() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    load(budget, "a", 6, 2)
    budget.acquire("a")
    assert budget.resize("a", 2)
    assert budget.free == 4
    assert budget.resize("a", 6)
    assert not budget.resize("a", 7)
    assert budget.free == 0
    assert budget.resize("a", 1)
    assert budget.free == 4


def test_additional_request_evicts_an_idle_model_but_no_busy_one() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    load(budget, "a", 5, 2)
    load(budget, "b", 5, 1)
    budget.acquire("a")
    budget.acquire("b")
    assert not budget.resize("a", 4)
    assert budget.decide() == Decision()
    budget.release("b")
    assert budget.decide() == Decision([], ["b"])
    budget.remove("b")
    assert budget.resize("a", 4)


def test_ended_request_that_lacked_memory_evicts_no_model() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    load(budget, "a", 5, 2)
    load(budget, "b", 5, 1)
    budget.acquire("a")
    budget.acquire("b")
    assert not budget.resize("a", 4)
    budget.release("a")
    budget.release("b")
    assert budget.decide() == Decision()


def test_additional_requests_use_no_memory_that_the_head_waits_for() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    load(budget, "a", 5, 1)
    load(budget, "b", 4, 1)
    budget.acquire("b")
    budget.acquire("a")
    budget.enqueue("c", 5, 1)  # b, 4 bytes, is evicted for it; with the free byte that is just enough
    assert not budget.resize("a", 2)
    budget.cancel("c")
    assert budget.resize("a", 2)


def test_model_larger_than_its_estimate_evicts_idle_models() -> None:
    budget: MemoryBudget[str] = MemoryBudget(10)
    load(budget, "a", 4)
    budget.enqueue("b", 6, 0)
    budget.decide()
    budget.acquire("b")
    budget.set_loaded("b", 7, 0)
    assert budget.free == -1
    assert budget.decide().evict == ["a"]


class PoolMachine(RuleBasedStateMachine):
    """A pool with random requests, aborts, loads and failed loads."""

    TOTAL = 100
    SIZES = (10, 25, 40, 60, 95, 100)
    REQUEST_BYTES = 5

    def __init__(self) -> None:
        super().__init__()
        self.budget: MemoryBudget[int] = MemoryBudget(self.TOTAL)
        self.deferred = dict.fromkeys(range(len(self.SIZES)), 0)  # requests that wait in the memory queue, by model
        self.active = dict.fromkeys(self.deferred, 0)  # requests of loaded models
        self.loading: dict[int, int] = {}  # pending requests of models that are being loaded
        self.loaded: set[int] = set()
        self.evicting: set[int] = set()

    def add_request(self, key: int) -> None:
        if key in self.loaded and self.budget.accepts_requests(key):
            self.budget.acquire(key)
            self.active[key] += 1
        elif key in self.loading and self.budget.accepts_requests(key):
            self.loading[key] += 1
        else:
            self.deferred[key] += 1
            self.budget.enqueue(key, self.SIZES[key], self.REQUEST_BYTES)

    def settle(self) -> None:
        decision = self.budget.decide()
        for key in decision.admit:
            assert self.deferred[key], "a model is admitted without a request"
            deferred, self.deferred[key] = self.deferred[key], 0
            if key in self.loaded:
                for _ in range(deferred):
                    self.budget.acquire(key)
                    self.active[key] += 1
            else:
                self.loading[key] = self.loading.get(key, 0) + deferred
        for key in decision.evict:
            assert key in self.loaded - self.evicting
            assert not self.active[key], "a model in use is evicted"
            self.evicting.add(key)

    def end_load(self, key: int) -> None:
        pending = self.loading.pop(key)
        self.loaded.add(key)
        self.budget.set_loaded(key, self.SIZES[key], self.REQUEST_BYTES)
        for _ in range(pending):
            self.budget.acquire(key)
            self.active[key] += 1

    def end_request(self, key: int) -> None:
        self.active[key] -= 1
        self.budget.release(key)
        self.budget.resize(key, 0)

    def end_eviction(self, key: int) -> None:
        self.evicting.discard(key)
        self.loaded.discard(key)
        self.budget.remove(key)

    @rule(key=st.integers(0, len(SIZES) - 1))
    def request_arrives(self, key: int) -> None:
        self.add_request(key)
        self.settle()

    @precondition(lambda self: any(self.deferred.values()))
    @rule(data=st.data())
    def deferred_request_is_aborted(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([key for key, deferred in self.deferred.items() if deferred]))
        self.deferred[key] -= 1
        if not self.deferred[key]:
            self.budget.cancel(key)
        self.settle()

    @precondition(lambda self: any(self.active.values()))
    @rule(data=st.data(), num_bytes=st.integers(0, 40))
    def requests_grow(self, data: st.DataObject, num_bytes: int) -> None:
        key = data.draw(st.sampled_from([key for key, active in self.active.items() if active]))
        self.budget.resize(key, num_bytes)
        self.settle()

    @precondition(lambda self: any(self.active.values()))
    @rule(data=st.data())
    def request_ends(self, data: st.DataObject) -> None:
        self.end_request(data.draw(st.sampled_from([key for key, active in self.active.items() if active])))
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

    @precondition(lambda self: self.evicting)
    @rule(data=st.data())
    def eviction_ends(self, data: st.DataObject) -> None:
        self.end_eviction(data.draw(st.sampled_from(sorted(self.evicting))))
        self.settle()

    @invariant()
    def budget_is_not_exceeded(self) -> None:
        assert 0 <= self.budget.free <= self.TOTAL
        resident = self.loaded | set(self.loading)
        assert sum(self.SIZES[key] for key in resident) <= self.TOTAL - self.budget.free

    @invariant()
    def models_with_deferred_requests_are_queued(self) -> None:
        assert {key for key, deferred in self.deferred.items() if deferred} == set(self.budget.queue())

    def teardown(self) -> None:
        """Check that every queued model is admitted, even if loaded models get all requests that they accept."""
        waiting = self.budget.queue()
        for _ in range(60):
            if not waiting:
                return
            for key in self.loaded - self.evicting:
                if self.budget.accepts_requests(key):
                    self.add_request(key)  # so that it is never idle by itself
                while self.active[key] > self.budget.accepts_requests(key):
                    self.end_request(key)
            for key in list(self.loading):
                self.end_load(key)
            for key in list(self.evicting):
                self.end_eviction(key)
            self.settle()
            admitted = {key for key in self.loading if key in waiting} | {k for k in waiting if not self.deferred[k]}
            waiting = [key for key in waiting if key not in admitted]
        raise AssertionError(f"{waiting} were never admitted")


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
