"""Who gets a slot, and when. Pure Python: no torch, no threads, no clock but the count of steps.

Fairness: a waiting clip's turn comes in the order of `arrived + steps`, the step it came at plus the steps it takes.
A short clip passes long ones that are waiting, and still no clip starves: one of n steps is passed only by clips
that came less than n steps after it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field


@dataclass(order=True, slots=True)
class _Waiting:
    due: int
    number: int
    ticket: str = field(compare=False)


class Scheduler:
    """A bounded queue in front of a fixed number of slots.

    Args:
        max_slots: clips that run at once.
        max_queue: clips that may wait.
    """

    def __init__(self, max_slots: int, max_queue: int) -> None:
        self.max_slots = max_slots
        self.max_queue = max_queue
        self.running: set[str] = set()
        self._waiting: list[_Waiting] = []
        self._clock = 0
        self._count = 0

    def __len__(self) -> int:
        """Clips that wait or run."""
        return len(self.running) + len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether one more clip has no place. The slots that are free count as places."""
        return len(self) >= self.max_slots + self.max_queue

    def submit(self, ticket: str, steps: int) -> None:
        """Put a clip into the queue. The caller has asked `full`."""
        self._count += 1
        heapq.heappush(self._waiting, _Waiting(self._clock + steps, self._count, ticket))

    def tick(self) -> None:
        """A step of the model has been made."""
        self._clock += 1

    def next(self) -> str | None:
        """The ticket that gets the next slot, if there is a free one."""
        return self._waiting[0].ticket if self._waiting and len(self.running) < self.max_slots else None

    def admit(self, ticket: str) -> None:
        """Give a waiting clip its slot."""
        self.remove(ticket)
        self.running.add(ticket)

    def remove(self, ticket: str) -> None:
        """Take a clip out, done or cancelled, running or waiting. An unknown ticket is no error."""
        self.running.discard(ticket)
        kept = [entry for entry in self._waiting if entry.ticket != ticket]
        if len(kept) != len(self._waiting):
            heapq.heapify(kept)
            self._waiting = kept

    def queue(self) -> list[str]:
        """The waiting tickets, next first."""
        return [entry.ticket for entry in sorted(self._waiting)]
