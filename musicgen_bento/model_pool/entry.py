"""A model that somebody has asked for: on its way into memory, in line for it, or there; and who waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from musicgen_bento.checkpoint.download import Download
from musicgen_bento.checkpoint.loading import Files
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.engine import ModelEngine
from musicgen_bento.engine.types import Arrival, GenerationParams, Listener, ModelStatus, Waiting


@dataclass(slots=True, eq=False)
class Request:
    """A clip that waits for its model; `place` is what it was told last."""

    ticket: str
    params: GenerationParams
    listener: Listener
    place: int = -1


@dataclass(slots=True, eq=False)
class Resident:
    """One model of the pool, which locks.

    Attributes:
        source: where its files are.
        kept: to be loaded though nobody waits for it.
        finding: its files are looked for, and fetched.
        building: it is being read into memory.
        download: how much has come.
        files: what was found, until it is read.
        bytes: what it takes in memory with one clip; 0 until that is known.
        clip: the part of it that is for the clip.
        engine: once it is in memory.
        coming: clips that are made when it is there.
        waiting: clips that are made after others had their turn.
        using: tickets of the clips that its engine has.
    """

    source: Source
    kept: bool
    finding: bool = True
    building: bool = False
    download: Download = field(default_factory=Download)
    files: Files | None = None
    bytes: int = 0
    clip: int = 0
    engine: ModelEngine | None = None
    coming: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    using: set[str] = field(default_factory=set)

    @property
    def unbegun(self) -> list[Request]:
        """Clips that its engine does not have yet."""
        return self.coming + self.waiting

    @property
    def idle(self) -> bool:
        """Nothing is done for it, nobody waits for it, and it is not in memory."""
        return not (self.finding or self.building or self.kept or self.engine or self.unbegun)

    def drop(self, ticket: str) -> None:
        """Forget a clip that waits."""
        self.coming = [request for request in self.coming if request.ticket != ticket]
        self.waiting = [request for request in self.waiting if request.ticket != ticket]
        self.tell_places()

    def clear(self) -> list[Request]:
        """Forget all clips that wait, and say which."""
        unbegun, self.coming, self.waiting = self.unbegun, [], []
        return unbegun

    def tell_places(self) -> None:
        """Tell those who wait, where that has changed."""
        for place, request in enumerate(self.unbegun):
            if request.place != place:
                request.place = place
                request.listener(Waiting(place, loading=True))

    def status(self, line: list[Resident], default: bool) -> ModelStatus:
        """As clients see it.

        Args:
            line: who waits for memory, next first.
            default: whether it is the model of a request that names none.
        """
        name, size = self.source.name, self.bytes or None
        if self.engine is not None:
            return ModelStatus(name, "loaded", default, size)
        if self in line:
            return ModelStatus(name, "loading", default, size, Arrival("waiting", ahead=line.index(self)))
        done, total = self.download.done, self.download.total
        if self.finding and done < total:
            return ModelStatus(name, "loading", default, size, Arrival("downloading", done, total))
        return ModelStatus(name, "loading", default, size, Arrival("loading"))
