"""The scheduler's promises: bounded, fair between short and long, nobody starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from musicgen_bento.engine.scheduler import Scheduler


def admit(scheduler: Scheduler) -> list[str]:
    """Fill the free slots."""
    admitted = []
    while (ticket := scheduler.next()) is not None:
        scheduler.admit(ticket)
        admitted.append(ticket)
    return admitted


def test_a_short_clip_passes_long_ones_that_wait() -> None:
    scheduler = Scheduler(max_slots=1, max_queue=10)
    scheduler.submit("running", 3000)
    admit(scheduler)
    scheduler.submit("long", 3000)
    scheduler.submit("short", 100)
    assert scheduler.queue() == ["short", "long"]


def test_a_long_clip_is_passed_only_for_as_long_as_it_takes() -> None:
    """A stream of short clips, one a step, into one slot: the long one runs before those that come too late."""
    scheduler = Scheduler(max_slots=1, max_queue=1000)
    scheduler.submit("long", 200)
    for step in range(300):
        scheduler.submit(f"short {step}", 10)
        scheduler.tick()
    order = scheduler.queue()
    assert order.index("long") == 190  # the shorts of steps 0 to 189 are due before it, that of 190 with it
    assert order[191] == "short 190"


def test_first_come_first_served_among_equals() -> None:
    scheduler = Scheduler(max_slots=2, max_queue=10)
    for name in "abcde":
        scheduler.submit(name, 50)
    assert admit(scheduler) == ["a", "b"]
    assert scheduler.queue() == ["c", "d", "e"]


def test_free_slots_count_as_places() -> None:
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
def test_whatever_happens(slots: int, queue: int, script: list[tuple[str, int]]) -> None:
    scheduler = Scheduler(slots, queue)
    alive: set[str] = set()
    for number, (action, value) in enumerate(script):
        if action == "submit" and not scheduler.full:
            scheduler.submit(str(number), value)
            alive.add(str(number))
        elif action == "remove":
            scheduler.remove(str(value))
            alive.discard(str(value))
        elif action == "step":
            for _ in range(value):
                scheduler.tick()
            admitted = admit(scheduler)
            assert scheduler.running.issuperset(admitted)
            assert len(scheduler.running) == min(slots, len(alive))  # no slot stays free while one waits
        assert len(scheduler.running) <= slots
        assert len(scheduler) <= slots + queue
        assert scheduler.running | set(scheduler.queue()) == alive
        assert not scheduler.running & set(scheduler.queue())
