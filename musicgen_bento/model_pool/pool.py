"""The models of one device by name: who asks for which, what they are told, and what becomes of their clips."""

from __future__ import annotations

import atexit
import math
import threading
import time
from collections.abc import Callable

from musicgen_bento.checkpoint.resolve import resolve_model
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.config import Settings
from musicgen_bento.device import max_slots
from musicgen_bento.engine.types import Event, EventCallback, Failed, Finished, GenerationParams, ModelStatus
from musicgen_bento.errors import MusicGenError, QueueFull, ShuttingDown
from musicgen_bento.log import logger
from musicgen_bento.model_catalog import CATALOG, find_model
from musicgen_bento.model_pool.device_thread import DeviceThread
from musicgen_bento.model_pool.entry import ModelEntry, PendingRequest
from musicgen_bento.model_pool.loader import Loader, as_load_error
from musicgen_bento.model_pool.residency import ModelResidencyManager

RETRY_AFTER = 30.0
MOST_SOUGHT = 16  # models whose files are looked for at a time: each has a thread, and a queue


class ModelPool:
    """See `types.Pool`. Begins to load the preloaded models at once.

    Args:
        settings: the operator's.
        allow_any_model: whether names outside the catalogue mean repositories on the hub.
        allow_folders: whether they may mean folders of this machine.
        loaded: told the name of every model that is in memory now.
        evicted: told the name of every model that had to leave it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        allow_any_model: bool = False,
        allow_folders: bool = False,
        loaded: Callable[[str], None] = lambda name: None,
        evicted: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._settings = settings
        self._allow_any_model, self._allow_folders = allow_any_model, allow_folders
        self._loaded, self._evicted = loaded, evicted
        self._loader = Loader(settings)
        self.device = self._loader.device
        self._lock = threading.RLock()
        self._thread = DeviceThread()
        self._tickets: dict[str, ModelEntry] = {}
        self._failures: dict[Source, tuple[float, MusicGenError]] = {}  # of preloaded ones
        self._were_ready: set[Source] = set()
        self._closing = False
        self._own: dict[str, Source] = {}  # what the operator has set, by either name
        self._misconfigured: MusicGenError | None = None
        for model in (settings.default_model, *settings.preload):
            try:
                source = resolve_model(model, any_model=True, folders=True)
            except MusicGenError as error:  # told by `ready`; the models that can be had are served
                self._misconfigured = error
            else:
                self._own[model] = self._own[source.name] = source
        self._preloaded = {self._own[model] for model in settings.preload if model in self._own}
        self._memory = ModelResidencyManager(self._loader, self._lock, self._thread, self, self._preloaded)
        atexit.register(self.close)  # before the interpreter goes, nobody may be at work
        with self._lock:
            for source in self._preloaded:
                self._resident(source)

    def add_request(self, request_id: str, model: str, params: GenerationParams, on_event: EventCallback) -> None:
        """See `Pool.submit`."""
        source = self._own.get(model)  # what the operator has set may be anything
        if source is None:
            source = resolve_model(model, any_model=self._allow_any_model, folders=self._allow_folders)
        with self._lock:
            if request_id in self._tickets:
                raise ValueError(f"request id {request_id} is in use")
            if self._closing:
                raise ShuttingDown("The server is shutting down.", hint="Ask again in a moment.", retry_after=5.0)
            sought = sum(each.fetching for each in self._memory.residents.values())
            if source.location not in self._memory.residents and sought >= MOST_SOUGHT:
                raise QueueFull(
                    "Too many models are being fetched already.", hint="Ask again later.", retry_after=RETRY_AFTER
                )
            resident = self._resident(source)
            self._tickets[request_id] = resident
            try:
                self._take(resident, PendingRequest(request_id, params, self._forgetting(request_id, on_event)))
            except BaseException:
                del self._tickets[request_id]
                raise

    def abort(self, ticket: str) -> None:
        """See `Pool.cancel`."""
        with self._lock:
            resident = self._tickets.pop(ticket, None)
            if resident is None:
                return
            engine = resident.engine
            resident.remove(ticket)
            self._release(resident, ticket)
            self._memory.forget(resident)
        if engine is not None:
            engine.abort(ticket)

    def ready(self) -> bool:
        """See `Pool.ready`. A preload that failed for a passing reason is tried again, now and then."""
        if self._misconfigured is not None:
            raise self._misconfigured
        with self._lock:
            if self._closing:
                return False
            for source in self._preloaded - self._were_ready:
                failed_at, error = self._failures.get(source, (0.0, None))
                lasting = error is not None and (error.retry_after or math.inf) > time.monotonic() - failed_at
                if source.location not in self._memory.residents and error is not None and lasting:
                    raise error
                self._resident(source)
            return self._preloaded <= self._were_ready

    def statuses(self) -> list[ModelStatus]:
        """See `Pool.statuses`."""
        default = self._own.get(self._settings.default_model)
        listed = [*([default] if default else []), *(Source(card.id, card.folder or card.id) for card in CATALOG)]
        found = {
            source.name: ModelStatus(source.name, source.state, source == default, self._estimate(source.name))
            for source in listed
        }
        with self._lock:
            line = self._memory.line()
            for each in self._memory.residents.values():
                if not each.idle:
                    found[each.source.name] = each.status(line, each.source == default)
        return list(found.values())

    def request_counts(self) -> dict[str, tuple[int, int]]:
        """Clips running and clips waiting, by model."""
        with self._lock:
            asked = [(each.source.name, each.engine, len(each.queued)) for each in self._memory.residents.values()]
        found = {}
        for name, engine, unbegun in asked:
            running, waiting = engine.num_requests if engine else (0, 0)
            found[name] = running, waiting + unbegun
        return found

    def close(self, drain_seconds: float = 0.0) -> None:
        """See `Pool.close`."""
        atexit.unregister(self.close)
        deadline = time.monotonic() + drain_seconds
        with self._lock:
            self._closing = True
        while self._tickets and time.monotonic() < deadline:
            time.sleep(0.02)
        error = ShuttingDown("The server shut down before the clip was done.", hint="Ask again.", retry_after=5.0)
        with self._lock:
            self._memory.close()
            residents = list(self._memory.residents.values())
            unbegun = [request for each in residents for request in each.clear()]
            engines = [each.engine for each in residents if each.engine is not None]
        for request in unbegun:
            request.on_event(Failed(error))
        for engine in engines:
            engine.fail_all(error)
        self._thread.close()
        self._memory.join()

    # ---- models

    def _resident(self, source: Source) -> ModelEntry:
        return self._memory.resident(source, kept=source in self._preloaded - self._were_ready)

    def _estimate(self, name: str) -> int | None:
        """About what a model takes in memory."""
        card = find_model(name)
        if card is None:
            return None
        return card.memory_bytes(self._loader.precision, self._settings.max_duration)

    def begin(self, resident: ModelEntry) -> None:
        """See `memory.Owner.begin`."""
        requests, resident.deferred = resident.deferred, []
        for request in requests:
            try:
                self._hand_over(resident, request)
            except Exception as error:
                request.on_event(Failed(as_load_error(resident.source.name, error)))

    def came(self, resident: ModelEntry) -> None:
        """See `memory.Owner.came`."""
        self._were_ready.add(resident.source)
        self._failures.pop(resident.source, None)
        self._loaded(resident.source.name)

    def left(self, resident: ModelEntry) -> None:
        """See `memory.Owner.left`."""
        self._evicted(resident.source.name)

    def failed(self, resident: ModelEntry, error: MusicGenError) -> None:
        """See `memory.Owner.failed`."""
        logger.error("loading %s failed: %s", resident.source.name, error.code)
        with self._lock:
            if resident.source in self._preloaded:
                self._failures[resident.source] = (time.monotonic(), error)
            unbegun = resident.clear()
        for request in unbegun:
            request.on_event(Failed(error))

    # ---- clips

    def _take(self, resident: ModelEntry, request: PendingRequest) -> None:
        """To the engine; while it is not in memory, or others come first, to those who wait for it."""
        closed = self._memory.closed(resident)
        if resident.engine is not None and not closed:
            self._hand_over(resident, request)
            return
        places = max_slots(self.device, self._settings) + self._settings.max_queue
        if len(resident.queued) + len(resident.active) >= places:  # a closed one may still be at those that it has
            raise QueueFull(
                f"{resident.source.name} is still loading and its queue is full.",
                hint="Ask again later.",
                retry_after=RETRY_AFTER,
            )
        if closed:
            self._memory.want(resident)
            resident.pending.append(request)
        else:
            resident.deferred.append(request)
        resident.notify_queue_positions()

    def _hand_over(self, resident: ModelEntry, request: PendingRequest) -> None:
        assert resident.engine is not None
        self._memory.use(resident)
        resident.active.add(request.request_id)
        try:
            resident.engine.add_request(request.request_id, request.params, request.on_event)
        except BaseException:
            self._release(resident, request.request_id)
            raise

    def _release(self, resident: ModelEntry, ticket: str) -> None:
        """A clip is over; if the engine had it, that has one less."""
        if ticket in resident.active:
            resident.active.discard(ticket)
            self._memory.release(resident)

    def _forgetting(self, ticket: str, listener: EventCallback) -> Callable[[Event], None]:
        """The listener, and after the last event no memory of the ticket."""

        def listen(event: Event) -> None:
            if isinstance(event, Finished | Failed):
                with self._lock:
                    resident = self._tickets.pop(ticket, None)
                    if resident is not None:
                        self._release(resident, ticket)
            listener(event)

        return listen
