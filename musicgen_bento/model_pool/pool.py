"""The models of one device by name: resolves names, passes requests to engines, and reports states."""

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
from musicgen_bento.model_pool.entry import ModelEntry, ModelState, PendingRequest
from musicgen_bento.model_pool.loader import Loader, as_load_error
from musicgen_bento.model_pool.residency import ModelResidencyManager

RETRY_AFTER_SECONDS = 30.0
MAX_CONCURRENT_FETCHES = 16  # models whose files are fetched at a time: each has a thread and a queue of requests


class ModelPool:
    """Runs requests on any model of one device, and loads models on demand. Preloading starts at once.

    Args:
        settings: the operator's settings.
        allow_any_model: whether names outside the catalogue mean repositories on the Hugging Face Hub.
        allow_folders: whether names may mean folders of this machine.
        on_loaded: called with the name of each model that has been loaded into memory.
        on_evicted: called with the name of each model that has been evicted from memory.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        allow_any_model: bool = False,
        allow_folders: bool = False,
        on_loaded: Callable[[str], None] = lambda name: None,
        on_evicted: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._settings = settings
        self._allow_any_model, self._allow_folders = allow_any_model, allow_folders
        self._report_loaded, self._report_evicted = on_loaded, on_evicted
        self._loader = Loader(settings)
        self.device = self._loader.device
        self._lock = threading.RLock()
        self._device_thread = DeviceThread()
        self._entries_by_request: dict[str, ModelEntry] = {}
        self._preload_failures: dict[Source, tuple[float, MusicGenError]] = {}  # with the time of the failure
        self._loaded_before: set[Source] = set()
        self._closing = False
        self._operator_models: dict[str, Source] = {}  # models of the settings, by the name there and by `Source.name`
        self._settings_error: MusicGenError | None = None
        for model in (settings.default_model, *settings.preload):
            try:
                source = resolve_model(model, any_model=True, folders=True)
            except MusicGenError as error:  # raised by `ready`; the other models are served
                self._settings_error = error
            else:
                self._operator_models[model] = self._operator_models[source.name] = source
        self._preloads = {self._operator_models[model] for model in settings.preload if model in self._operator_models}
        self._residency = ModelResidencyManager(self._loader, self._lock, self._device_thread, self, self._preloads)
        atexit.register(self.close)  # no thread may run in torch or the kernel when the interpreter shuts down
        with self._lock:
            for source in self._preloads:
                self._entry(source)

    def add_request(self, request_id: str, model: str, params: GenerationParams, on_event: EventCallback) -> None:
        """Accept or refuse a request; never blocks. See `RequestSink.add_request`."""
        source = self._operator_models.get(model)  # the operator's models may be any repository or folder
        if source is None:
            source = resolve_model(model, any_model=self._allow_any_model, folders=self._allow_folders)
        with self._lock:
            if self._closing:
                raise ShuttingDown()
            if request_id in self._entries_by_request:
                raise ValueError(f"request id {request_id} is in use")
            self._check_fetch_limit(source)
            entry = self._entry(source)
            self._entries_by_request[request_id] = entry
            try:
                callback = self._release_at_last_event(request_id, on_event)
                self._dispatch(entry, PendingRequest(request_id, params, callback))
            except BaseException:
                del self._entries_by_request[request_id]
                raise

    def abort(self, request_id: str) -> None:
        """End a request without a further event, whether it waits or runs. Unknown ids are ignored."""
        with self._lock:
            entry = self._entries_by_request.pop(request_id, None)
            if entry is None:
                return
            engine = entry.engine
            entry.remove_waiting(request_id)
            self._release(entry, request_id)
            self._residency.discard_if_unused(entry)
        if engine is not None:
            engine.abort(request_id)

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._entries_by_request

    def ready(self) -> bool:
        """Whether every preloaded model has been loaded. A failed preload is retried after the error's `retry_after`.

        Raises:
            MusicGenError: a model of the settings is unknown, or a preload has failed.
        """
        if self._settings_error is not None:
            raise self._settings_error
        with self._lock:
            if self._closing:
                return False
            for source in self._preloads - self._loaded_before:
                failed_at, error = self._preload_failures.get(source, (0.0, None))
                if error is not None and source.location not in self._residency.entries:
                    retry_after = error.retry_after or math.inf
                    if time.monotonic() - failed_at < retry_after:
                        raise error
                self._entry(source)
            return self._preloads <= self._loaded_before

    def statuses(self) -> list[ModelStatus]:
        """The state of every catalogue model, of the default model, and of other models in memory."""
        default = self._operator_models.get(self._settings.default_model)
        sources = [*([default] if default else []), *(Source(card.id, card.folder or card.id) for card in CATALOG)]
        statuses = {
            source.name: ModelStatus(source.name, source.state, source == default, self._estimate_bytes(source.name))
            for source in sources
        }
        with self._lock:
            memory_queue = self._residency.queue()
            for entry in self._residency.entries.values():
                if not entry.is_unused:
                    statuses[entry.source.name] = entry.status(memory_queue, entry.source == default)
        return list(statuses.values())

    def request_counts(self) -> dict[str, tuple[int, int]]:
        """Numbers of running and of waiting requests, by model."""
        with self._lock:
            snapshot = [
                (entry.source.name, entry.engine, len(entry.waiting)) for entry in self._residency.entries.values()
            ]
        counts = {}
        for name, engine, waiting_for_model in snapshot:
            running, waiting_for_slot = engine.num_requests if engine else (0, 0)
            counts[name] = running, waiting_for_slot + waiting_for_model
        return counts

    def close(self) -> None:
        """Refuse new requests, fail the unfinished ones, and stop the threads."""
        atexit.unregister(self.close)
        error = ShuttingDown("The server shut down before the request was finished.")
        with self._lock:
            self._closing = True
            self._residency.close()
            entries = list(self._residency.entries.values())
            waiting = [request for entry in entries for request in entry.take_waiting()]
            engines = [entry.engine for entry in entries if entry.engine is not None]
        for request in waiting:
            request.on_event(Failed(error))
        for engine in engines:
            engine.fail_all(error)
        self._device_thread.close()
        self._residency.join()

    # ---- models

    def _entry(self, source: Source) -> ModelEntry:
        pinned = source in self._preloads - self._loaded_before
        return self._residency.get_or_create(source, pinned=pinned)

    def _check_fetch_limit(self, source: Source) -> None:
        entries = self._residency.entries
        fetches = sum(entry.state is ModelState.FETCHING for entry in entries.values())
        if source.location not in entries and fetches >= MAX_CONCURRENT_FETCHES:
            raise QueueFull("Too many models are being fetched.", hint="Retry later.", retry_after=RETRY_AFTER_SECONDS)

    def _estimate_bytes(self, name: str) -> int | None:
        """Estimated bytes of a catalogue model in memory; None for other models."""
        card = find_model(name)
        if card is None:
            return None
        return card.memory_bytes(self._loader.precision, self._settings.max_duration)

    def on_loaded(self, entry: ModelEntry) -> None:
        """Record a loaded model; see `ResidencyCallbacks.on_loaded`."""
        self._loaded_before.add(entry.source)
        self._preload_failures.pop(entry.source, None)
        self._report_loaded(entry.source.name)

    def on_ready(self, entry: ModelEntry) -> None:
        """Start the pending requests of a model; see `ResidencyCallbacks.on_ready`."""
        for request in entry.take_pending():
            try:
                self._start(entry, request)
            except Exception as error:
                request.on_event(Failed(as_load_error(entry.source.name, error)))

    def on_load_failed(self, entry: ModelEntry, error: MusicGenError) -> None:
        """Fail the waiting requests of a model; see `ResidencyCallbacks.on_load_failed`."""
        logger.error("Loading %s failed: %s", entry.source.name, error.code)
        with self._lock:
            if entry.source in self._preloads:
                self._preload_failures[entry.source] = (time.monotonic(), error)
            waiting = entry.take_waiting()
        for request in waiting:
            request.on_event(Failed(error))

    def on_evicted(self, entry: ModelEntry) -> None:
        """Report an evicted model; see `ResidencyCallbacks.on_evicted`."""
        self._report_evicted(entry.source.name)

    # ---- requests

    def _dispatch(self, entry: ModelEntry, request: PendingRequest) -> None:
        """Pass a request to the model's engine, or to the requests that wait for the model."""
        accepts_requests = self._residency.accepts_requests(entry)
        if entry.engine is not None and accepts_requests:
            self._start(entry, request)
            return
        capacity = max_slots(self.device, self._settings) + self._settings.max_queue
        if len(entry.waiting) + len(entry.active) >= capacity:  # a draining model has active requests
            raise QueueFull(
                f"{entry.source.name} is still loading, and its queue is full.",
                hint="Retry later.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        if not accepts_requests:
            self._residency.enqueue(entry)
        entry.add_waiting(request, deferred=not accepts_requests)

    def _start(self, entry: ModelEntry, request: PendingRequest) -> None:
        """Pass a request to the engine of a loaded model."""
        assert entry.engine is not None
        self._residency.acquire(entry)
        entry.active.add(request.request_id)
        try:
            entry.engine.add_request(request.request_id, request.params, request.on_event)
        except BaseException:
            self._release(entry, request.request_id)
            raise

    def _release(self, entry: ModelEntry, request_id: str) -> None:
        """Release the model if its engine has the request."""
        if request_id in entry.active:
            entry.active.discard(request_id)
            self._residency.release(entry)

    def _release_at_last_event(self, request_id: str, on_event: EventCallback) -> EventCallback:
        """Wrap an event callback: remove the request from the pool before its last event is reported."""

        def forward(event: Event) -> None:
            if isinstance(event, Finished | Failed):
                with self._lock:
                    entry = self._entries_by_request.pop(request_id, None)
                    if entry is not None:
                        self._release(entry, request_id)
            on_event(event)

        return forward
