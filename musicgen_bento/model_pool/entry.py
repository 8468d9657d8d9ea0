"""A model that somebody has asked for: on its way into memory, in line for it, or there; and who waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from musicgen_bento.checkpoint.download import DownloadProgress
from musicgen_bento.checkpoint.loading import CheckpointFiles
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import EventCallback, GenerationParams, LoadProgress, ModelStatus, Queued


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A clip that waits for its model; `place` is what it was told last."""

    request_id: str
    params: GenerationParams
    on_event: EventCallback
    queue_position: int = -1


@dataclass(slots=True, eq=False)
class ModelEntry:
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
    pinned: bool
    fetching: bool = True
    loading: bool = False
    download: DownloadProgress = field(default_factory=DownloadProgress)
    files: CheckpointFiles | None = None
    bytes: int = 0
    clip: int = 0
    engine: Engine | None = None
    deferred: list[PendingRequest] = field(default_factory=list)
    pending: list[PendingRequest] = field(default_factory=list)
    active: set[str] = field(default_factory=set)

    @property
    def queued(self) -> list[PendingRequest]:
        """Clips that its engine does not have yet."""
        return self.deferred + self.pending

    @property
    def idle(self) -> bool:
        """Nothing is done for it, nobody waits for it, and it is not in memory."""
        return not (self.fetching or self.loading or self.pinned or self.engine or self.queued)

    def remove(self, ticket: str) -> None:
        """Forget a clip that waits."""
        self.deferred = [request for request in self.deferred if request.request_id != ticket]
        self.pending = [request for request in self.pending if request.request_id != ticket]
        self.notify_queue_positions()

    def clear(self) -> list[PendingRequest]:
        """Forget all clips that wait, and say which."""
        unbegun, self.deferred, self.pending = self.queued, [], []
        return unbegun

    def notify_queue_positions(self) -> None:
        """Tell those who wait, where that has changed."""
        for place, request in enumerate(self.queued):
            if request.queue_position != place:
                request.queue_position = place
                request.on_event(Queued(place, loading=True))

    def status(self, line: list[ModelEntry], default: bool) -> ModelStatus:
        """As clients see it.

        Args:
            line: who waits for memory, next first.
            default: whether it is the model of a request that names none.
        """
        name, size = self.source.name, self.bytes or None
        if self.engine is not None:
            return ModelStatus(name, "loaded", default, size)
        if self in line:
            return ModelStatus(name, "loading", default, size, LoadProgress("waiting", ahead=line.index(self)))
        done, total = self.download.received_bytes, self.download.total_bytes
        if self.fetching and done < total:
            return ModelStatus(name, "loading", default, size, LoadProgress("downloading", done, total))
        return ModelStatus(name, "loading", default, size, LoadProgress("loading"))
