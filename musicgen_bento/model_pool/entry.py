"""One model of the pool: its state, its files or engine, and its requests.

    FETCHING --> QUEUED --> LOADING --> LOADED --> EVICTING
                    ^                                  |
                    '---------- requests wait ---------'

An entry is REMOVED from each state but LOADED:

    FETCHING    its files could not be fetched, or all its requests were aborted
    QUEUED      all its requests were aborted
    LOADING     the load failed
    EVICTING    no request waits for it

Whether a LOADING or LOADED model drains is not part of the state: `MemoryBudget.accepts_requests` decides it for each
request, because the set of victims changes with every request and every eviction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from musicgen_bento.checkpoint.download import DownloadProgress
from musicgen_bento.checkpoint.loading import CheckpointFiles
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import EventCallback, GenerationParams, LoadProgress, ModelStatus, Queued


class ModelState(Enum):
    """The state of a model in the pool."""

    FETCHING = auto()  # its files are downloaded and opened
    QUEUED = auto()  # it waits for memory
    LOADING = auto()  # memory is reserved; the files are read into it
    LOADED = auto()  # its engine runs
    EVICTING = auto()  # its engine is removed from memory
    REMOVED = auto()  # the pool has dropped the entry; the next request creates another


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request that waits for its model. `queue_position` is the position that was last reported."""

    request_id: str
    params: GenerationParams
    on_event: EventCallback
    queue_position: int = -1


@dataclass(slots=True, eq=False)
class ModelEntry:
    """One model of the pool. The pool's lock guards all fields.

    Attributes:
        source: location of the files.
        pinned: whether the model is loaded even if no request waits for it; reset when memory is reserved for it.
        state: see the diagram above.
        download: progress of the download.
        files: the opened files, until they are loaded.
        memory_bytes: bytes of the model with one request; 0 until the files are fetched.
        request_bytes: the part of `memory_bytes` for that request.
        engine: the engine, while LOADED.
        pending: requests that start as soon as the model is loaded.
        deferred: requests that start after the memory queue admits the model: it is not admitted yet, or drains.
        active: ids of the requests that the engine has.
    """

    source: Source
    pinned: bool
    state: ModelState = ModelState.FETCHING
    download: DownloadProgress = field(default_factory=DownloadProgress)
    files: CheckpointFiles | None = None
    memory_bytes: int = 0
    request_bytes: int = 0
    engine: Engine | None = None
    pending: list[PendingRequest] = field(default_factory=list)
    deferred: list[PendingRequest] = field(default_factory=list)
    active: set[str] = field(default_factory=set)

    # ---- transitions

    def set_fetched(self, files: CheckpointFiles, memory_bytes: int, request_bytes: int) -> None:
        """FETCHING to QUEUED."""
        self.state, self.files = ModelState.QUEUED, files
        self.memory_bytes, self.request_bytes = memory_bytes, request_bytes

    def set_loading(self) -> None:
        """QUEUED to LOADING."""
        self.state = ModelState.LOADING

    def set_loaded(self, engine: Engine) -> None:
        """LOADING to LOADED. The size of the model is now measured instead of estimated."""
        self.state, self.engine = ModelState.LOADED, engine
        self.memory_bytes = engine.checkpoint.num_bytes + self.request_bytes

    def set_evicting(self) -> Engine | None:
        """LOADED to EVICTING; return the engine and drop the reference to it."""
        engine, self.engine = self.engine, None
        self.state = ModelState.EVICTING
        return engine

    def set_evicted(self) -> None:
        """EVICTING to QUEUED. The residency manager removes the entry if no request waits for it."""
        self.state = ModelState.QUEUED

    def set_removed(self) -> None:
        """Any state to REMOVED."""
        self.state = ModelState.REMOVED

    def take_files(self) -> CheckpointFiles | None:
        """Return the opened files and drop the reference to them. None if they must be fetched again."""
        files, self.files = self.files, None
        return files

    # ---- requests

    @property
    def waiting(self) -> list[PendingRequest]:
        """The requests that the engine does not have yet, next first."""
        return self.pending + self.deferred

    @property
    def is_unused(self) -> bool:
        """Whether no request waits for the model, and it is neither loaded nor being fetched or loaded."""
        busy = self.state in (ModelState.FETCHING, ModelState.LOADING, ModelState.LOADED)
        return not (busy or self.pinned or self.waiting)

    def add_waiting(self, request: PendingRequest, *, deferred: bool) -> None:
        """Append a request to the deferred or the pending requests, and report the queue positions."""
        (self.deferred if deferred else self.pending).append(request)
        self.notify_queue_positions()

    def remove_waiting(self, request_id: str) -> None:
        """Remove a waiting request, and report the queue positions. Unknown ids are ignored."""
        self.pending = [request for request in self.pending if request.request_id != request_id]
        self.deferred = [request for request in self.deferred if request.request_id != request_id]
        self.notify_queue_positions()

    def promote_deferred(self) -> None:
        """Make the deferred requests pending, because the memory queue has admitted the model."""
        self.pinned = False
        self.pending, self.deferred = self.waiting, []

    def take_pending(self) -> list[PendingRequest]:
        """Remove and return the pending requests, because the engine can run them now."""
        requests, self.pending = self.pending, []
        return requests

    def take_waiting(self) -> list[PendingRequest]:
        """Remove and return all waiting requests."""
        requests, self.pending, self.deferred = self.waiting, [], []
        return requests

    def notify_queue_positions(self) -> None:
        """Report the queue positions that have changed."""
        for queue_position, request in enumerate(self.waiting):
            if request.queue_position != queue_position:
                request.queue_position = queue_position
                request.on_event(Queued(queue_position, loading=True))

    def status(self, memory_queue: list[ModelEntry], default: bool) -> ModelStatus:
        """The state as clients see it.

        Args:
            memory_queue: the models that wait for memory, next first.
            default: whether requests that do not name a model use this one.
        """
        name, num_bytes = self.source.name, self.memory_bytes or None
        if self.engine is not None:
            return ModelStatus(name, "loaded", default, num_bytes)
        downloaded, total = self.download.received_bytes, self.download.total_bytes
        if self in memory_queue:
            progress = LoadProgress("waiting", ahead=memory_queue.index(self))
        elif self.state is ModelState.FETCHING and downloaded < total:
            progress = LoadProgress("downloading", downloaded, total)
        else:
            progress = LoadProgress("loading")
        return ModelStatus(name, "loading", default, num_bytes, progress)
