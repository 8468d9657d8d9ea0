"""Who may be in memory, and who leaves for whom. Pure Python: no torch, no threads, no clock but the count of uses.

A model takes its weights and the largest clip it may be asked for, so that one that is in memory can always make one
clip; further clips take their room while they run. Who does not fit stands in line. For the first in line the least
recently used leave, idle ones at once, and where that is not enough busy ones too: they are closed to new clips, and
leave when those they have are done. So nobody waits for ever, and nothing in use is taken away.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Model:
    """In memory, or being loaded into room that is its own already."""

    size: int  # one clip included
    clip: int
    used: int  # when, in uses
    more: int = 0  # clips beyond the one
    users: int = 0
    loaded: bool = False
    leaving: bool = False

    @property
    def idle(self) -> bool:
        return self.loaded and not self.users

    @property
    def bytes(self) -> int:
        return self.size + self.more


@dataclass(frozen=True, slots=True)
class Decision(Generic[Key]):
    """What is to be done now: who comes in, and who is to be taken out of memory."""

    admit: list[Key] = field(default_factory=list)
    evict: list[Key] = field(default_factory=list)


class MemoryBudget(Generic[Key]):
    """Bytes, and the models that share them.

    Args:
        total: bytes for all of them.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._models: dict[Key, _Model] = {}
        self._line: dict[Key, tuple[int, int]] = {}  # size and clip, first come first
        self._short: dict[Key, int] = {}  # bytes that a model's next clip lacked
        self._uses = 0

    @property
    def free(self) -> int:
        """Bytes that nobody has. Below zero where a model turned out larger than it was thought to be."""
        return self.total - sum(model.bytes for model in self._models.values())

    def queue(self) -> list[Key]:
        """Who waits to come in, next first."""
        return list(self._line)

    # ---- a model's way

    def request(self, key: Key, size: int, clip: int) -> None:
        """Get in line; `decide` says when it may come in. Who stands there keeps the place.

        One that is in memory, but closed, asks to be open again: after those who came before it.

        Args:
            key: the model.
            size: what it takes with one clip, at most `total`.
            clip: the part of it that is for the clip.

        Raises:
            ValueError: it can never come in.
        """
        if size > self.total:
            raise ValueError(f"{size} bytes of {self.total}")
        self._line.setdefault(key, (size, clip))

    def cancel_request(self, key: Key) -> None:
        """Leave the line. One that is not there is no error."""
        self._line.pop(key, None)

    def loaded(self, key: Key, size: int, clip: int) -> None:
        """It is in memory, and this is what it takes, measured."""
        model = self._models[key]
        model.size, model.clip, model.loaded = size, clip, True

    def remove(self, key: Key) -> None:
        """It is not in memory any more, or could not be loaded: its bytes are free."""
        del self._models[key]
        self._short.pop(key, None)

    def acquire(self, key: Key) -> None:
        """A clip was given to it."""
        self._uses += 1
        model = self._models[key]
        model.users, model.used = model.users + 1, self._uses

    def release(self, key: Key) -> None:
        """A clip of its is over."""
        self._models[key].users -= 1
        self._short.pop(key, None)  # it may have been that clip which lacked them; if not, it says so again

    def resize(self, key: Key, clips: int) -> bool:
        """Let the running clips of a model take so many bytes together; whether they may. Less is always granted."""
        model = self._models.get(key)
        if model is None:
            return True
        more = max(0, clips - model.clip)
        if more > model.more and more - model.more > self._spare():
            self._short[key] = more - model.more
            return False
        model.more = more
        self._short.pop(key, None)
        return True

    # ---- who comes, who goes

    def is_draining(self, key: Key) -> bool:
        """Whether its new clips have to wait in line, since it must leave for who is there."""
        model = self._models.get(key)
        return key in self._line or model is None or model.leaving or key in self._victims()

    def decide(self) -> Decision[Key]:
        """What can be done now. Each is told once: who enters has its room, who leaves takes no more clips."""
        decision: Decision[Key] = Decision()
        while entering := [key for key in self._line if self._may_enter(key)][:1]:
            self._enter(*entering)
            decision.admit.extend(entering)
        for key in self._victims():
            if self._models[key].idle:
                self._models[key].leaving = True
                decision.evict.append(key)
        return decision

    def _may_enter(self, key: Key) -> bool:
        model = self._models.get(key)
        if model is not None:  # it never left
            return not model.leaving and key not in self._victims()
        size = self._line[key][0]
        first = next(iter(self._line)) == key
        # Who stands behind may pass, where the first does not have to wait longer for it.
        return size <= (self.free if first else self._spare())

    def _enter(self, key: Key) -> None:
        size, clip = self._line.pop(key)
        if key not in self._models:
            self._uses += 1
            self._models[key] = _Model(size, clip, self._uses)

    def _spare(self) -> int:
        """Bytes that can be given away without delay for the first in line."""
        return min(self.free, self.free + self._coming(self._victims()) - self._wanted())

    def _wanted(self) -> int:
        """Bytes that the first in line needs; none where it is in memory and stays."""
        for key, (size, _) in self._line.items():
            model = self._models.get(key)
            return size if model is None or model.leaving else 0
        return 0

    def _coming(self, victims: Iterable[Key]) -> int:
        """Bytes that come free with these and with those who are on their way out."""
        return sum(model.bytes for key, model in self._models.items() if model.leaving or key in set(victims))

    def _victims(self) -> list[Key]:
        """Who has to leave, beside those on their way: the least recently used, and no more than it takes."""
        staying = {key: model for key, model in self._models.items() if not model.leaving}
        idle_first = sorted(staying, key=lambda key: (not staying[key].idle, staying[key].used))
        coming = self.free + self._coming(())
        if wanted := self._wanted():
            return _enough({key: staying[key].bytes for key in idle_first}, wanted - coming)
        idle = {key: staying[key].bytes for key in idle_first if staying[key].idle}
        if coming < 0:
            return _enough(idle, -coming)
        # A clip more is worth an idle model, if that is what it takes; busy ones make one clip in any case.
        short = max(self._short.values(), default=0) - coming
        return _enough(idle, short) if sum(idle.values()) >= short else []


def _enough(sizes: dict[Key, int], wanted: int) -> list[Key]:
    """The first of these that have so many bytes together, less those that are not needed for it."""
    taken: list[Key] = []
    have = 0
    for key, size in sizes.items():
        if have >= wanted:
            break
        taken.append(key)
        have += size
    for key in list(taken):
        if have - sizes[key] >= wanted:
            taken.remove(key)
            have -= sizes[key]
    return taken
