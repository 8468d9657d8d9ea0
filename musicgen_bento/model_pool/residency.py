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
from musicgen_bento.device import fit
from musicgen_bento.engine.engine import ModelEngine
from musicgen_bento.errors import MusicGenError
from musicgen_bento.model_pool.device_thread import DeviceThread
from musicgen_bento.model_pool.entry import Resident
from musicgen_bento.model_pool.loader import Loader, plain
from musicgen_bento.model_pool.memory_budget import Budget

_log = logging.getLogger("bentoml.musicgen")  # below BentoML's, which has a handler

NETWORK_SECONDS = 5.0  # how long those are waited for that may be waiting for the hub


class Owner(Protocol):
    """Whom the models are loaded for. Called with the lock held, `failed` without."""

    def came(self, resident: Resident) -> None:
        """It is in memory now."""

    def begin(self, resident: Resident) -> None:
        """It is there, and open: the clips that were coming with it can be made."""

    def failed(self, resident: Resident, error: MusicGenError) -> None:
        """It cannot be loaded, and is forgotten already."""

    def left(self, resident: Resident) -> None:
        """It is not in memory any more."""


class Memory:
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
        self._budget: Budget[Resident] = Budget(loader.budget)
        self._closed = False
        self._at_work: dict[threading.Thread, bool] = {}  # and whether it may be waiting for the hub
        self.residents: dict[object, Resident] = {}  # by the place of their files
        self._work(self._keep, "musicgen-keeper")

    def resident(self, source: Source, *, kept: bool) -> Resident:
        """The model's; where there is none, one whose files are looked for from now on. However many ask, once.

        Args:
            source: where its files are.
            kept: whether it is to be loaded though nobody waits for it.
        """
        found = self.residents.get(source.place)
        if found is None:
            found = self.residents[source.place] = Resident(source, kept)
            self._work(partial(self._find, found), f"find {source.name}", fetches=not source.here)
        return found

    def line(self) -> list[Resident]:
        """Who waits for memory, next first."""
        return self._budget.line()

    def closed(self, resident: Resident) -> bool:
        """Whether its new clips have to wait: it is not in memory, or must leave it for another that came first."""
        return self._budget.closed(resident)

    def want(self, resident: Resident) -> None:
        """Stand in line for memory; how much is known once the files are here.

        Raises:
            ModelTooLarge: it turned out larger than it was thought to be.
        """
        if resident.bytes:
            fit(resident.source.name, resident.bytes, self._loader.budget)
            self._budget.ask(resident, resident.bytes, resident.clip)
            self._changed.notify_all()

    def use(self, resident: Resident) -> None:
        """Its engine is given a clip: it stays until the clip is over."""
        self._budget.use(resident)

    def release(self, resident: Resident) -> None:
        """A clip of its engine is over."""
        self._budget.release(resident)
        self._changed.notify_all()

    def forget(self, resident: Resident) -> None:
        """One clip less may wait for it: without any it leaves the line, and is forgotten unless it is in memory."""
        if not resident.waiting and not resident.kept:
            self._budget.withdraw(resident)
            self._changed.notify_all()
        if resident.idle and self.residents.get(resident.source.place) is resident:
            del self.residents[resident.source.place]

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

    def _find(self, resident: Resident) -> None:
        """Have the files here, then stand in line."""
        try:
            files = self._loader.find(resident.source, resident.download)
            with self._lock:
                resident.files, resident.finding = files, False
                resident.bytes, resident.clip = self._loader.sizes(files)
                self._fit_together(resident)
                room = resident.bytes <= self._budget.free and not self._budget.line()
                if resident.unbegun or resident.kept or room:
                    self.want(resident)
                else:  # nobody waits any more, and others would have to go, or to wait
                    self.forget(resident)
        except Exception as error:
            self._failed(resident, plain(resident.source.name, error))

    def _fit_together(self, resident: Resident) -> None:
        """Whether what the operator wants from the start goes into the budget together.

        Raises:
            ModelTooLarge: it does not.
        """
        if resident.source in self._together and len(self._together) > 1:
            wanted = [each for each in self.residents.values() if each.source in self._together]
            names = ", ".join(each.source.name for each in wanted)
            fit(f"MUSICGEN_PRELOAD ({names})", sum(each.bytes for each in wanted), self._loader.budget)

    def _keep(self) -> None:
        """Do what the budget decides, whenever something has changed."""
        while True:
            with self._lock:
                if self._closed:
                    return
                decision = self._budget.decide()
                for resident in decision.enter:
                    self._enter(resident)
                if not decision.enter and not decision.leave:
                    self._changed.wait()
            for resident in decision.leave:
                self._leave(resident)

    def _enter(self, resident: Resident) -> None:
        """There is room for it; or it never left, and is open again."""
        resident.kept = False
        resident.coming, resident.waiting = resident.unbegun, []
        if resident.engine is not None:
            self._owner.begin(resident)
        elif not resident.building:
            resident.building = True
            fetches = not resident.source.here  # a file may have gone from the cache since
            self._work(partial(self._build, resident), f"load {resident.source.name}", fetches=fetches)

    def _build(self, resident: Resident) -> None:
        """Read a model into memory, and let it begin."""
        files, resident.files = resident.files, None
        engine: ModelEngine | None = None
        try:
            files = files or self._loader.find(resident.source, resident.download)
            engine = self._loader.make(files, wake=self._thread.wake, room=partial(self._room, resident))
        except Exception as error:
            failure = plain(resident.source.name, error)
        files = None
        if engine is None:
            self._loader.give_back()  # what was read of it
            with self._lock:
                self._budget.gone(resident)
            self._failed(resident, failure)
            return
        with self._lock:
            resident.bytes = engine.checkpoint.bytes + resident.clip
            self._budget.loaded(resident, resident.bytes, resident.clip)
            resident.engine, resident.building = engine, False
            self._thread.add(engine)
            self._owner.came(resident)
            self._owner.begin(resident)
            self._changed.notify_all()

    def _room(self, resident: Resident, clips: int) -> bool:
        """Whether the running clips of a model may take so many bytes together."""
        with self._lock:
            self._changed.notify_all()
            return self._budget.resize(resident, clips)

    def _failed(self, resident: Resident, error: MusicGenError) -> None:
        """The next who asks begins anew."""
        with self._lock:
            self._budget.withdraw(resident)
            if self.residents.get(resident.source.place) is resident:
                del self.residents[resident.source.place]
            self._changed.notify_all()
        self._owner.failed(resident, error)

    def _leave(self, resident: Resident) -> None:
        """Take a model that nobody uses out of memory."""
        with self._lock:
            engine, resident.engine = resident.engine, None
        if engine is not None:
            self._thread.remove(engine)
        del engine
        self._loader.give_back()
        with self._lock:
            self._budget.gone(resident)
            self._owner.left(resident)
            self.forget(resident)
        _log.info("%s has left memory for another", resident.source.name)
