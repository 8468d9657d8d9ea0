"""Moves models into and out of a device's memory: fetches files, queues for memory, loads, evicts.

The files of each model are fetched on a thread of their own. Then the model waits in the queue for memory, and is read
into memory on another thread. `memory_budget.py` decides which models are loaded and evicted; the residency thread
carries that out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol

from musicgen_bento.checkpoint.source import Source
from musicgen_bento.device import check_fits_budget
from musicgen_bento.engine.engine import Engine
from musicgen_bento.errors import MusicGenError
from musicgen_bento.log import logger
from musicgen_bento.model_pool.device_thread import DeviceThread
from musicgen_bento.model_pool.entry import ModelEntry, ModelState
from musicgen_bento.model_pool.loader import Loader, as_load_error
from musicgen_bento.model_pool.memory_budget import MemoryBudget

NETWORK_TIMEOUT_SECONDS = 5.0  # at shutdown, for all threads together that may wait for the hub


class ResidencyCallbacks(Protocol):
    """Notifications about models. Called with the lock held, except `on_load_failed`."""

    def on_loaded(self, entry: ModelEntry) -> None:
        """Handle that a model has been loaded into memory."""

    def on_ready(self, entry: ModelEntry) -> None:
        """Handle that a model accepts requests: it has been loaded, or has stopped draining."""

    def on_load_failed(self, entry: ModelEntry, error: MusicGenError) -> None:
        """Handle that a model could not be fetched or loaded; its entry is removed already. Called without the lock."""

    def on_evicted(self, entry: ModelEntry) -> None:
        """Handle that a model has been evicted from memory."""


class ModelResidencyManager:
    """Loads and evicts the models of one device within the memory budget.

    The caller of a public method holds the lock, unless the method says otherwise.

    Attributes:
        entries: the models of the pool by the location of their files.

    Args:
        loader: loader of the device.
        lock: guards the entries; the pool holds it too.
        device_thread: steps the engines of the loaded models.
        callbacks: notified about models.
        preloads: the models to load at start.
    """

    def __init__(
        self,
        loader: Loader,
        lock: threading.RLock,
        device_thread: DeviceThread,
        callbacks: ResidencyCallbacks,
        preloads: Collection[Source],
    ) -> None:
        self._loader, self._lock, self._device_thread, self._callbacks = loader, lock, device_thread, callbacks
        self._preloads = preloads
        self._changed = threading.Condition(lock)
        self._budget: MemoryBudget[ModelEntry] = MemoryBudget(loader.budget)
        self._closed = False
        self._threads: dict[threading.Thread, bool] = {}  # value: whether the thread may wait for the hub
        self.entries: dict[object, ModelEntry] = {}
        self._start_thread(self._residency_loop, "musicgen-residency")

    def get_or_create(self, source: Source, *, pinned: bool) -> ModelEntry:
        """Return the entry of a model. Create it if there is none, and start to fetch its files.

        Args:
            source: location of the files.
            pinned: whether a new entry is loaded even if no request waits for it.
        """
        entry = self.entries.get(source.location)
        if entry is None:
            entry = self.entries[source.location] = ModelEntry(source, pinned)
            self._start_thread(partial(self._fetch, entry), f"fetch {source.name}", uses_network=not source.is_local)
        return entry

    def queue(self) -> list[ModelEntry]:
        """The models that wait for memory, next first."""
        return self._budget.queue()

    def accepts_requests(self, entry: ModelEntry) -> bool:
        """Whether a new request may use the model; see `MemoryBudget.accepts_requests`."""
        return self._budget.accepts_requests(entry)

    def enqueue(self, entry: ModelEntry) -> None:
        """Append a model to the queue for memory. While FETCHING it does nothing: the size is unknown until then.

        Raises:
            ModelTooLarge: the model is larger than the budget; its measured size may exceed the estimate.
        """
        if entry.memory_bytes:
            check_fits_budget(entry.source.name, entry.memory_bytes, self._loader.budget)
            self._budget.enqueue(entry, entry.memory_bytes, entry.request_bytes)
            self._changed.notify_all()

    def acquire(self, entry: ModelEntry) -> None:
        """Keep a model in memory for a request, until `release`."""
        self._budget.acquire(entry)

    def release(self, entry: ModelEntry) -> None:
        """Record that a request of the model has ended."""
        self._budget.release(entry)
        self._changed.notify_all()

    def discard_if_unused(self, entry: ModelEntry) -> None:
        """Take a model without deferred requests out of the memory queue, and remove it from the pool if unused."""
        if not entry.deferred and not entry.pinned:
            self._budget.cancel(entry)
            self._changed.notify_all()
        if entry.is_unused:
            self._remove(entry)

    def close(self) -> None:
        """Start no further load or eviction."""
        self._closed = True
        self._changed.notify_all()

    def join(self) -> None:
        """Wait for the threads, which cannot be stopped. Called without the lock.

        A load is waited for without a limit: the process crashes if the interpreter shuts down while torch or the
        kernel runs.
        """
        deadline = time.monotonic() + NETWORK_TIMEOUT_SECONDS
        for thread, uses_network in list(self._threads.items()):
            thread.join(max(0.0, deadline - time.monotonic()) if uses_network else None)

    # ---- the threads; their methods are called without the lock, except `_admit` and `_check_preloads_fit`

    def _start_thread(self, target: Callable[[], None], name: str, *, uses_network: bool = False) -> None:
        def run() -> None:
            try:
                target()
            finally:
                del self._threads[threading.current_thread()]

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads[thread] = uses_network
        thread.start()

    def _fetch(self, entry: ModelEntry) -> None:
        """Fetch the files of a model, then queue it for memory."""
        try:
            files = self._loader.fetch(entry.source, entry.download)
            with self._lock:
                entry.set_fetched(files, *self._loader.memory_requirements(files))
                self._check_preloads_fit(entry)
                fits_now = entry.memory_bytes <= self._budget.free and not self._budget.queue()
                if entry.waiting or entry.pinned or fits_now:
                    self.enqueue(entry)
                else:  # all its requests were aborted, and loading it would evict or delay other models
                    self.discard_if_unused(entry)
        except Exception as error:
            self._fail(entry, as_load_error(entry.source.name, error))

    def _check_preloads_fit(self, entry: ModelEntry) -> None:
        """Check that the preloaded models fit into the budget together.

        Raises:
            ModelTooLarge: they do not fit.
        """
        if entry.source in self._preloads and len(self._preloads) > 1:
            preloaded = [other for other in self.entries.values() if other.source in self._preloads]
            names = ", ".join(other.source.name for other in preloaded)
            num_bytes = sum(other.memory_bytes for other in preloaded)
            check_fits_budget(f"MUSICGEN_PRELOAD ({names})", num_bytes, self._loader.budget)

    def _residency_loop(self) -> None:
        """Carry out the decisions of the memory budget whenever something has changed."""
        while True:
            with self._lock:
                if self._closed:
                    return
                decision = self._budget.decide()
                for entry in decision.admit:
                    self._admit(entry)
                if not decision.admit and not decision.evict:
                    self._changed.wait()
            for entry in decision.evict:
                self._evict(entry)

    def _admit(self, entry: ModelEntry) -> None:
        """Load a model for which memory is reserved now, or reopen one that is still in memory."""
        entry.promote_deferred()
        if entry.state is ModelState.LOADED:
            self._callbacks.on_ready(entry)
        elif entry.state is ModelState.QUEUED:
            entry.set_loading()
            uses_network = not entry.source.is_local  # files may have been deleted from the cache since
            self._start_thread(partial(self._load, entry), f"load {entry.source.name}", uses_network=uses_network)

    def _load(self, entry: ModelEntry) -> None:
        """Read a model into memory, and start its pending requests."""
        files = entry.take_files()
        engine: Engine | None = None
        try:
            files = files or self._loader.fetch(entry.source, entry.download)
            reserve_memory = partial(self._reserve_memory, entry)
            engine = self._loader.build(files, wake=self._device_thread.wake, reserve_memory=reserve_memory)
        except Exception as error:
            failure = as_load_error(entry.source.name, error)
        files = None
        if engine is None:
            self._loader.release_cached_memory()  # of the part that was read
            with self._lock:
                self._budget.remove(entry)
            self._fail(entry, failure)
            return
        with self._lock:
            entry.set_loaded(engine)
            self._budget.set_loaded(entry, entry.memory_bytes, entry.request_bytes)
            self._device_thread.add(engine)
            self._callbacks.on_loaded(entry)
            self._callbacks.on_ready(entry)
            self._changed.notify_all()

    def _reserve_memory(self, entry: ModelEntry, requests_bytes: int) -> bool:
        """Set the bytes of all running requests of a model together; return whether they are granted."""
        with self._lock:
            self._changed.notify_all()
            return self._budget.resize(entry, requests_bytes)

    def _fail(self, entry: ModelEntry, error: MusicGenError) -> None:
        """Remove a model whose files or load failed. The next request for it starts over."""
        with self._lock:
            self._budget.cancel(entry)
            self._remove(entry)
            self._changed.notify_all()
        self._callbacks.on_load_failed(entry, error)

    def _evict(self, entry: ModelEntry) -> None:
        """Remove an idle model from memory."""
        with self._lock:
            engine = entry.set_evicting()
        if engine is not None:
            self._device_thread.remove(engine)
        del engine
        self._loader.release_cached_memory()
        with self._lock:
            self._budget.remove(entry)
            self._callbacks.on_evicted(entry)
            entry.set_evicted()
            self.discard_if_unused(entry)
        logger.info("%s was evicted to free memory for another model", entry.source.name)

    def _remove(self, entry: ModelEntry) -> None:
        """Remove an entry from the pool, if it has not been replaced by a newer entry."""
        entry.set_removed()
        if self.entries.get(entry.source.location) is entry:
            del self.entries[entry.source.location]
