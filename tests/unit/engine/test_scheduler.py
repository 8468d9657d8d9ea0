"""The scheduler: bounded, fair between short and long requests, no starvation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from musicgen_bento.engine.scheduler import Scheduler


def admit(scheduler: Scheduler) -> list[str]:
    """Fill the free slots."""
    admitted = []
    while (request_id := scheduler.next()) is not None:
        scheduler.admit(request_id)
        admitted.append(request_id)
    return admitted


def test_short_request_overtakes_waiting_long_requests() -> None:
    scheduler = Scheduler(max_slots=1, max_queue=10)
    scheduler.submit("running", 3000)
    admit(scheduler)
    scheduler.submit("long", 3000)
    scheduler.submit("short", 100)
    assert scheduler.queue() == ["short", "long"]


def test_long_request_is_overtaken_only_by_requests_that_arrive_within_its_own_steps() -> None:
    """One short request arrives at each step: the long request runs before those that arrive too late."""
    scheduler = Scheduler(max_slots=1, max_queue=1000)
    scheduler.submit("long", 200)
    for step in range(300):
        scheduler.submit(f"short {step}", 10)
        scheduler.tick()
    order = scheduler.queue()
    assert order.index("long") == 190  # the requests of steps 0 to 189 are due earlier, that of 190 at the same step
    assert order[191] == "short 190"


def test_requests_of_equal_length_run_in_order_of_arrival() -> None:
    scheduler = Scheduler(max_slots=2, max_queue=10)
    for name in "abcde":
        scheduler.submit(name, 50)
    assert admit(scheduler) == ["a", "b"]
    assert scheduler.queue() == ["c", "d", "e"]


def test_free_slots_count_as_queue_positions() -> None:
    scheduler = Scheduler(max_slots=2, max_queue=0)
    scheduler.submit("a", 1)
    assert not scheduler.full
    scheduler.submit("b", 1)
    assert scheduler.full
    scheduler.remove("a")
    assert not scheduler.full


actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 1000)),
        st.tuples(st.just("remove"), st.integers(0, 60)),
        st.tuples(st.just("step"), st.integers(1, 50)),
    ),
    max_size=80,
)


@given(slots=st.integers(1, 4), queue=st.integers(0, 6), script=actions)
def test_invariants_hold_for_any_sequence_of_actions(slots: int, queue: int, script: list[tuple[str, int]]) -> None:
    scheduler = Scheduler(slots, queue)
    unfinished: set[str] = set()
    for number, (action, value) in enumerate(script):
        if action == "submit" and not scheduler.full:
            scheduler.submit(str(number), value)
            unfinished.add(str(number))
        elif action == "remove":
            scheduler.remove(str(value))
            unfinished.discard(str(value))
        elif action == "step":
            for _ in range(value):
                scheduler.tick()
            admitted = admit(scheduler)
            assert scheduler.running.issuperset(admitted)
            assert len(scheduler.running) == min(slots, len(unfinished))  # no slot is free while a request waits
        assert len(scheduler.running) <= slots
        assert len(scheduler) <= slots + queue
        assert scheduler.running | set(scheduler.queue()) == unfinished
        assert not scheduler.running & set(scheduler.queue())
