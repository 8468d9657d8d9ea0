"""Decides which models may be in memory, and which are evicted for others.

Pure Python: no torch, no threads, and no clock except the count of uses.

A model reserves memory for its weights and for the largest allowed request, so a loaded model can always run one
request. Memory for additional requests is reserved while they run.

A model that does not fit is queued. For the model at the head of the queue, least-recently-used models are evicted:
idle ones immediately, then, if that is not enough, busy ones. A busy victim drains: it accepts no new requests and is
evicted when its active requests finish. New requests for a draining model are queued behind the head. Two models that
do not fit together therefore alternate; neither starves, and no model in use is evicted. A smaller model may overtake
the head if that does not delay the head. Memory for an additional request may evict an idle model, never a busy one.

    memory   |---- A, busy: drains ----|---- B, idle: evicted ----|---- C: stays ----|-- free --|
             |<------------------ victims ----------------------->|
    queue    D (head), A (for its new requests), E (overtakes D if it fits into the memory that D does not need)

    D is admitted as soon as its size is free. The victims are as few models as free that much.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Model:
    """A model that is in memory, or is being loaded into memory that is reserved for it."""

    base_bytes: int  # the model with one request
    request_bytes: int  # the part of `base_bytes` for that request
    last_use: int  # value of the use counter
    extra_bytes: int = 0  # for requests beyond the first
    active_requests: int = 0
    loaded: bool = False
    evicting: bool = False

    @property
    def idle(self) -> bool:
        return self.loaded and not self.active_requests

    @property
    def num_bytes(self) -> int:
        return self.base_bytes + self.extra_bytes


@dataclass(frozen=True, slots=True)
class Decision(Generic[Key]):
    """The models to load or reopen now, and the models to evict now."""

    admit: list[Key] = field(default_factory=list)
    evict: list[Key] = field(default_factory=list)


class MemoryBudget(Generic[Key]):
    """Shares a number of bytes among models.

    Args:
        total: bytes that all models and requests may use together.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._models: dict[Key, _Model] = {}
        self._queue: dict[Key, tuple[int, int]] = {}  # base_bytes and request_bytes, in order of arrival
        self._shortfall: dict[Key, int] = {}  # bytes missing for a model's next request
        self._uses = 0

    @property
    def free(self) -> int:
        """Bytes that are not reserved. Negative if a model turned out larger than its estimate."""
        return self.total - sum(model.num_bytes for model in self._models.values())

    def queue(self) -> list[Key]:
        """The models that wait for memory, next first."""
        return list(self._queue)

    # ---- the life of a model

    def enqueue(self, key: Key, base_bytes: int, request_bytes: int) -> None:
        """Append a model to the queue, unless it is queued already. `decide` admits it later.

        A draining model is queued to be reopened for new requests, after the models that were queued before it.

        Args:
            key: the model.
            base_bytes: bytes of the model with one request, at most `total`.
            request_bytes: the part of `base_bytes` for that request.

        Raises:
            ValueError: the model is larger than the budget.
        """
        if base_bytes > self.total:
            raise ValueError(f"{base_bytes} bytes of {self.total}")
        self._queue.setdefault(key, (base_bytes, request_bytes))

    def cancel(self, key: Key) -> None:
        """Remove a model from the queue. A model that is not queued is ignored."""
        self._queue.pop(key, None)

    def set_loaded(self, key: Key, base_bytes: int, request_bytes: int) -> None:
        """Record that a model is in memory, with its measured size."""
        model = self._models[key]
        model.base_bytes, model.request_bytes, model.loaded = base_bytes, request_bytes, True

    def remove(self, key: Key) -> None:
        """Free the bytes of a model that has been evicted, or whose load has failed."""
        del self._models[key]
        self._shortfall.pop(key, None)

    def acquire(self, key: Key) -> None:
        """Record that a request has started to use a model."""
        self._uses += 1
        model = self._models[key]
        model.active_requests += 1
        model.last_use = self._uses

    def release(self, key: Key) -> None:
        """Record that a request has ended."""
        self._models[key].active_requests -= 1
        self._shortfall.pop(key, None)  # perhaps of the ended request; otherwise the next `resize` records it again

    def resize(self, key: Key, requests_bytes: int) -> bool:
        """Set the bytes of all running requests of a model together.

        Returns:
            Whether the bytes are granted. Fewer bytes than before are always granted.
        """
        model = self._models.get(key)
        if model is None:
            return True
        extra_bytes = max(0, requests_bytes - model.request_bytes)
        growth = extra_bytes - model.extra_bytes
        if growth > 0 and growth > self._spare():
            self._shortfall[key] = growth
            return False
        model.extra_bytes = extra_bytes
        self._shortfall.pop(key, None)
        return True

    # ---- decisions

    def accepts_requests(self, key: Key) -> bool:
        """Whether a new request may use the model. If not, the request waits until the queued model is admitted.

        False for a model that is not in memory, is queued, drains, or is being evicted.
        """
        model = self._models.get(key)
        return model is not None and not model.evicting and key not in self._queue and key not in self._victims()

    def decide(self) -> Decision[Key]:
        """Return what can be done now. Each admission and eviction is returned once.

        Memory of an admitted model is reserved from now on, and an evicted model accepts no more requests.
        """
        decision: Decision[Key] = Decision()
        while (key := self._next_admissible()) is not None:
            self._admit(key)
            decision.admit.append(key)
        for key in self._victims():
            if self._models[key].idle:
                self._models[key].evicting = True
                decision.evict.append(key)
        return decision

    def _next_admissible(self) -> Key | None:
        """The first queued model that may be admitted now."""
        return next((key for key in self._queue if self._is_admissible(key)), None)

    def _is_admissible(self, key: Key) -> bool:
        model = self._models.get(key)
        if model is not None:  # still in memory; it can be reopened
            return not model.evicting and key not in self._victims()
        base_bytes, _ = self._queue[key]
        is_head = next(iter(self._queue)) == key
        return base_bytes <= (self.free if is_head else self._spare())

    def _admit(self, key: Key) -> None:
        base_bytes, request_bytes = self._queue.pop(key)
        if key not in self._models:
            self._uses += 1
            self._models[key] = _Model(base_bytes, request_bytes, self._uses)

    def _spare(self) -> int:
        """Bytes that can be given away without a delay for the head of the queue."""
        return min(self.free, self.free + self._reclaimable(self._victims()) - self._head_demand())

    def _head_demand(self) -> int:
        """Bytes that the head of the queue needs; 0 if it is in memory and stays."""
        for key, (base_bytes, _) in self._queue.items():
            model = self._models.get(key)
            return base_bytes if model is None or model.evicting else 0
        return 0

    def _reclaimable(self, victims: Iterable[Key]) -> int:
        """Bytes that become free with the victims and with the models that are being evicted."""
        keys = set(victims)
        return sum(model.num_bytes for key, model in self._models.items() if model.evicting or key in keys)

    def _victims(self) -> list[Key]:
        """The models to evict next, besides those that are being evicted: least recently used, and no more than needed.

        Busy models are victims only for the head of the queue.
        """
        candidates = {key: model for key, model in self._models.items() if not model.evicting}
        idle_first = sorted(candidates, key=lambda key: (not candidates[key].idle, candidates[key].last_use))
        expected_free = self.free + self._reclaimable(())
        if head_demand := self._head_demand():
            sizes = {key: candidates[key].num_bytes for key in idle_first}
            return _smallest_prefix_covering(sizes, head_demand - expected_free)
        idle_sizes = {key: candidates[key].num_bytes for key in idle_first if candidates[key].idle}
        if expected_free < 0:
            return _smallest_prefix_covering(idle_sizes, -expected_free)
        # An additional request evicts idle models only, and only if these are enough: a model can run one in any case.
        shortfall = max(self._shortfall.values(), default=0) - expected_free
        return _smallest_prefix_covering(idle_sizes, shortfall) if sum(idle_sizes.values()) >= shortfall else []


def _smallest_prefix_covering(sizes: dict[Key, int], demand: int) -> list[Key]:
    """The first keys whose sizes sum up to at least `demand`, without keys that the sum does not need."""
    chosen: list[Key] = []
    total = 0
    for key, size in sizes.items():
        if total >= demand:
            break
        chosen.append(key)
        total += size
    for key in list(chosen):
        if total - sizes[key] >= demand:
            chosen.remove(key)
            total -= sizes[key]
    return chosen
