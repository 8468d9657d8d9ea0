"""Models into the device's memory and out of it: files, a place in line, the load, and the way out for others.

A model's files are looked for, and fetched, on a thread of its own. Then it stands in line for memory, and is read into
it, on a thread again. `budget.py` decides who comes and who goes; the keeper, one more thread, does it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol

from musicgen_bento.checkpoint.source import Source
from musicgen_bento.device import check_fits_budget
from musicgen_bento.engine.engine import Engine
from musicgen_bento.errors import MusicGenError
from musicgen_bento.model_pool.device_thread import DeviceThread
from musicgen_bento.model_pool.entry import ModelEntry
from musicgen_bento.model_pool.loader import Loader, as_load_error
from musicgen_bento.model_pool.memory_budget import MemoryBudget

_log = logging.getLogger("bentoml.musicgen")  # below BentoML's, which has a handler

NETWORK_SECONDS = 5.0  # how long those are waited for that may be waiting for the hub


class Owner(Protocol):
    """Whom the models are loaded for. Called with the lock held, `failed` without."""

    def came(self, resident: ModelEntry) -> None:
        """It is in memory now."""

    def begin(self, resident: ModelEntry) -> None:
        """It is there, and open: the clips that were coming with it can be made."""

    def failed(self, resident: ModelEntry, error: MusicGenError) -> None:
        """It cannot be loaded, and is forgotten already."""

    def left(self, resident: ModelEntry) -> None:
        """It is not in memory any more."""


class ModelResidencyManager:
    """The models of one device, within the budget. Methods without a word on the lock want it held.

    Args:
        loader: of the device.
        lock: guards the models and who waits for them.
        thread: serves those that are in memory.
        owner: told what becomes of them.
        together: what the operator wants in memory from the start.
    """

    def __init__(
        self, loader: Loader, lock: threading.RLock, thread: DeviceThread, owner: Owner, together: Collection[Source]
    ) -> None:
        self._loader, self._lock, self._thread, self._owner = loader, lock, thread, owner
        self._together = together
        self._changed = threading.Condition(lock)
        self._budget: MemoryBudget[ModelEntry] = MemoryBudget(loader.budget)
        self._closed = False
        self._at_work: dict[threading.Thread, bool] = {}  # and whether it may be waiting for the hub
        self.residents: dict[object, ModelEntry] = {}  # by the place of their files
        self._work(self._keep, "musicgen-keeper")

    def resident(self, source: Source, *, kept: bool) -> ModelEntry:
        """The model's; where there is none, one whose files are looked for from now on. However many ask, once.

        Args:
            source: where its files are.
            kept: whether it is to be loaded though nobody waits for it.
        """
        found = self.residents.get(source.location)
        if found is None:
            found = self.residents[source.location] = ModelEntry(source, kept)
            self._work(partial(self._find, found), f"find {source.name}", fetches=not source.is_local)
        return found

    def line(self) -> list[ModelEntry]:
        """Who waits for memory, next first."""
        return self._budget.queue()

    def closed(self, resident: ModelEntry) -> bool:
        """Whether its new clips have to wait: it is not in memory, or must leave it for another that came first."""
        return self._budget.is_draining(resident)

    def want(self, resident: ModelEntry) -> None:
        """Stand in line for memory; how much is known once the files are here.

        Raises:
            ModelTooLarge: it turned out larger than it was thought to be.
        """
        if resident.bytes:
            check_fits_budget(resident.source.name, resident.bytes, self._loader.budget)
            self._budget.request(resident, resident.bytes, resident.clip)
            self._changed.notify_all()

    def use(self, resident: ModelEntry) -> None:
        """Its engine is given a clip: it stays until the clip is over."""
        self._budget.acquire(resident)

    def release(self, resident: ModelEntry) -> None:
        """A clip of its engine is over."""
        self._budget.release(resident)
        self._changed.notify_all()

    def forget(self, resident: ModelEntry) -> None:
        """One clip less may wait for it: without any it leaves the line, and is forgotten unless it is in memory."""
        if not resident.pending and not resident.pinned:
            self._budget.cancel_request(resident)
            self._changed.notify_all()
        if resident.idle and self.residents.get(resident.source.location) is resident:
            del self.residents[resident.source.location]

    def close(self) -> None:
        """Load nothing more."""
        self._closed = True
        self._changed.notify_all()

    def join(self) -> None:
        """Wait for what cannot be stopped, without the lock.

        A load is waited for to its end: an interpreter that goes while torch or the kernel is at work crashes.
        """
        deadline = time.monotonic() + NETWORK_SECONDS
        for thread, fetches in list(self._at_work.items()):
            thread.join(max(0.0, deadline - time.monotonic()) if fetches else None)

    # ---- the threads, without the lock

    def _work(self, what: Callable[[], None], name: str, *, fetches: bool = False) -> None:
        def work() -> None:
            try:
                what()
            finally:
                del self._at_work[threading.current_thread()]

        thread = threading.Thread(target=work, name=name, daemon=True)
        self._at_work[thread] = fetches
        thread.start()

    def _find(self, resident: ModelEntry) -> None:
        """Have the files here, then stand in line."""
        try:
            files = self._loader.fetch(resident.source, resident.download)
            with self._lock:
                resident.files, resident.fetching = files, False
                resident.bytes, resident.clip = self._loader.sizes(files)
                self._fit_together(resident)
                room = resident.bytes <= self._budget.free and not self._budget.queue()
                if resident.queued or resident.pinned or room:
                    self.want(resident)
                else:  # nobody waits any more, and others would have to go, or to wait
                    self.forget(resident)
        except Exception as error:
            self._failed(resident, as_load_error(resident.source.name, error))

    def _fit_together(self, resident: ModelEntry) -> None:
        """Whether what the operator wants from the start goes into the budget together.

        Raises:
            ModelTooLarge: it does not.
        """
        if resident.source in self._together and len(self._together) > 1:
            wanted = [each for each in self.residents.values() if each.source in self._together]
            names = ", ".join(each.source.name for each in wanted)
            check_fits_budget(f"MUSICGEN_PRELOAD ({names})", sum(each.bytes for each in wanted), self._loader.budget)

    def _keep(self) -> None:
        """Do what the budget decides, whenever something has changed."""
        while True:
            with self._lock:
                if self._closed:
                    return
                decision = self._budget.decide()
                for resident in decision.admit:
                    self._enter(resident)
                if not decision.admit and not decision.evict:
                    self._changed.wait()
            for resident in decision.evict:
                self._leave(resident)

    def _enter(self, resident: ModelEntry) -> None:
        """There is room for it; or it never left, and is open again."""
        resident.pinned = False
        resident.deferred, resident.pending = resident.queued, []
        if resident.engine is not None:
            self._owner.begin(resident)
        elif not resident.loading:
            resident.loading = True
            fetches = not resident.source.is_local  # a file may have gone from the cache since
            self._work(partial(self._build, resident), f"load {resident.source.name}", fetches=fetches)

    def _build(self, resident: ModelEntry) -> None:
        """Read a model into memory, and let it begin."""
        files, resident.files = resident.files, None
        engine: Engine | None = None
        try:
            files = files or self._loader.fetch(resident.source, resident.download)
            engine = self._loader.build(files, wake=self._thread.wake, room=partial(self._room, resident))
        except Exception as error:
            failure = as_load_error(resident.source.name, error)
        files = None
        if engine is None:
            self._loader.release_cached_memory()  # what was read of it
            with self._lock:
                self._budget.remove(resident)
            self._failed(resident, failure)
            return
        with self._lock:
            resident.bytes = engine.checkpoint.num_bytes + resident.clip
            self._budget.loaded(resident, resident.bytes, resident.clip)
            resident.engine, resident.loading = engine, False
            self._thread.add(engine)
            self._owner.came(resident)
            self._owner.begin(resident)
            self._changed.notify_all()

    def _room(self, resident: ModelEntry, clips: int) -> bool:
        """Whether the running clips of a model may take so many bytes together."""
        with self._lock:
            self._changed.notify_all()
            return self._budget.resize(resident, clips)

    def _failed(self, resident: ModelEntry, error: MusicGenError) -> None:
        """The next who asks begins anew."""
        with self._lock:
            self._budget.cancel_request(resident)
            if self.residents.get(resident.source.location) is resident:
                del self.residents[resident.source.location]
            self._changed.notify_all()
        self._owner.failed(resident, error)

    def _leave(self, resident: ModelEntry) -> None:
        """Take a model that nobody uses out of memory."""
        with self._lock:
            engine, resident.engine = resident.engine, None
        if engine is not None:
            self._thread.remove(engine)
        del engine
        self._loader.release_cached_memory()
        with self._lock:
            self._budget.remove(resident)
            self._owner.left(resident)
            self.forget(resident)
        _log.info("%s has left memory for another", resident.source.name)
