"""The queue in front of an engine's slots: which request gets the next free slot.

Pure Python: no torch, no threads, and no clock except the count of steps.

Fairness: waiting requests start in the order of `arrival + steps`, the step of their arrival plus the number of steps
they need. A short request overtakes long requests. No request starves: a request of n steps is overtaken only by
requests that arrive less than n steps after it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field


@dataclass(order=True, slots=True)
class _Waiting:
    """A waiting request, ordered by its due step and then by its arrival."""

    due_step: int
    arrival: int
    request_id: str = field(compare=False)


class Scheduler:
    """A bounded queue in front of a fixed number of slots.

    Args:
        max_slots: maximum number of running requests.
        max_queue: maximum number of waiting requests once all slots are in use.
    """

    def __init__(self, max_slots: int, max_queue: int) -> None:
        self.max_slots = max_slots
        self.max_queue = max_queue
        self.running: set[str] = set()
        self._waiting: list[_Waiting] = []  # a heap
        self._step = 0
        self._arrivals = 0

    def __len__(self) -> int:
        """Number of waiting and running requests."""
        return len(self.running) + len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether no further request can be submitted. Free slots count as free queue positions."""
        return len(self) >= self.max_slots + self.max_queue

    def submit(self, request_id: str, steps: int) -> None:
        """Append a request that needs `steps` steps to the queue. The caller has checked `full`."""
        self._arrivals += 1
        heapq.heappush(self._waiting, _Waiting(self._step + steps, self._arrivals, request_id))

    def tick(self) -> None:
        """Count one step of the engine."""
        self._step += 1

    def next(self) -> str | None:
        """The id of the request that gets the next slot; None if no slot is free or no request waits."""
        return self._waiting[0].request_id if self._waiting and len(self.running) < self.max_slots else None

    def admit(self, request_id: str) -> None:
        """Move a waiting request to a slot."""
        self.remove(request_id)
        self.running.add(request_id)

    def remove(self, request_id: str) -> None:
        """Remove a waiting or running request. Unknown ids are ignored."""
        self.running.discard(request_id)
        others = [waiting for waiting in self._waiting if waiting.request_id != request_id]
        if len(others) != len(self._waiting):
            heapq.heapify(others)
            self._waiting = others

    def queue(self) -> list[str]:
        """The ids of the waiting requests, next first."""
        return [waiting.request_id for waiting in sorted(self._waiting)]
