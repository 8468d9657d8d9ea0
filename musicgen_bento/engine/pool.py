"""The models of one device: found by name, loaded once, on a thread of their own, when they are first asked for."""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from musicgen_bento.catalogue import CATALOGUE
from musicgen_bento.config import Settings
from musicgen_bento.engine import checkpoint
from musicgen_bento.engine.device import DeviceThread
from musicgen_bento.engine.engine import ModelEngine
from musicgen_bento.engine.hub import Source, is_cached
from musicgen_bento.engine.names import resolve
from musicgen_bento.engine.types import (
    Event,
    Failed,
    Finished,
    GenerationParams,
    Listener,
    ModelStatus,
    Waiting,
)
from musicgen_bento.errors import (
    LoadFailed,
    MusicGenError,
    QueueFull,
    ShuttingDown,
)
from musicgen_bento.machine import max_slots, precision
from musicgen_bento.quiet import briefly, where

_log = logging.getLogger("bentoml.musicgen")  # below BentoML's, which has a handler

RETRY_AFTER = 30.0
UNFINISHED_SECONDS = 5.0  # a load cannot be stopped, and an interpreter that goes while torch is at work crashes


@dataclass(slots=True)
class _Request:
    ticket: str
    params: GenerationParams
    listener: Listener


@dataclass(slots=True)
class _Entry:
    """A model that is in memory, or on its way there."""

    source: Source
    engine: ModelEngine | None = None
    waiting: list[_Request] = field(default_factory=list)


class EnginePool:
    """See `types.Pool`. Begins to load the preloaded models at once.

    Args:
        settings: the operator's.
        allow_any_model: whether names outside the catalogue mean repositories on the hub.
        allow_folders: whether they may mean folders of this machine.
        loaded: told the name of every model that is in memory now.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        allow_any_model: bool = False,
        allow_folders: bool = False,
        loaded: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._settings = settings
        self._allow_any_model, self._allow_folders = allow_any_model, allow_folders
        self.device = _device(settings.device)
        self._loaded = loaded
        self._threads = torch.get_num_threads()
        self._lock = threading.RLock()
        self._thread = DeviceThread()
        self._loading: set[threading.Thread] = set()
        self._entries: dict[Path | str, _Entry] = {}
        self._tickets: dict[str, _Entry] = {}
        self._failures: dict[Path | str, tuple[float, MusicGenError]] = {}
        self._closing = False
        atexit.register(self.close)  # torch's threads must not be at work when the interpreter goes
        self._own: dict[str, Source] = {}  # what the operator has set, by either name
        self._misconfigured: MusicGenError | None = None
        for model in (settings.default_model, *settings.preload):
            try:
                source = resolve(model, any_model=True, folders=True)
            except MusicGenError as error:  # told by `ready`; the models that can be had are served
                self._misconfigured = error
            else:
                self._own[model] = self._own[source.name] = source
        for source in self._preloaded():
            self._entry(source)

    def submit(self, model: str, params: GenerationParams, listener: Listener) -> str:
        """See `Pool.submit`."""
        source = self._resolve(model)
        ticket = uuid.uuid4().hex
        with self._lock:
            if self._closing:
                raise ShuttingDown("The server is shutting down.", hint="Ask again in a moment.", retry_after=5.0)
            entry = self._entry(source)
            request = _Request(ticket, params, self._forgetting(ticket, listener))
            self._tickets[ticket] = entry
            try:
                self._hand_over(entry, request)
            except BaseException:
                del self._tickets[ticket]
                raise
        return ticket

    def cancel(self, ticket: str) -> None:
        """See `Pool.cancel`."""
        with self._lock:
            entry = self._tickets.pop(ticket, None)
            if entry is None:
                return
            entry.waiting = [request for request in entry.waiting if request.ticket != ticket]
            engine = entry.engine
        if engine is not None:
            engine.cancel(ticket)

    def ready(self) -> bool:
        """See `Pool.ready`. A preload that failed for a passing reason is tried again, now and then."""
        if self._misconfigured is not None:
            raise self._misconfigured
        ready = True
        for source in self._preloaded():
            with self._lock:
                failed_at, error = self._failures.get(source.place, (0.0, None))
                lasting = error is not None and (error.retry_after or math.inf) > time.monotonic() - failed_at
                if source.place not in self._entries and error is not None and lasting:
                    raise error
                ready = self._entry(source).engine is not None and ready
        return ready

    def statuses(self) -> list[ModelStatus]:
        """See `Pool.statuses`."""
        with self._lock:
            entries = list(self._entries.values())
        known = {entry.source.name: "loaded" if entry.engine else "loading" for entry in entries}
        listed = {
            card.id: "cached" if card.folder or is_cached(card.id, "state_dict.bin") else "downloadable"
            for card in CATALOGUE
        }
        default = self._own.get(self._settings.default_model)
        states = {**({default.name: "downloadable"} if default else {}), **listed, **known}
        return [
            ModelStatus(name, state, default is not None and name == default.name) for name, state in states.items()
        ]

    def loads(self) -> dict[str, tuple[int, int]]:
        """Clips running and clips waiting, by model."""
        with self._lock:
            entries = [(entry.source.name, entry.engine, len(entry.waiting)) for entry in self._entries.values()]
        return {name: engine.load if engine else (0, waiting) for name, engine, waiting in entries}

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
            entries = list(self._entries.values())
            unbegun = [request for entry in entries for request in entry.waiting]
            for entry in entries:
                entry.waiting = []
        for request in unbegun:
            request.listener(Failed(error))
        for entry in entries:
            if entry.engine is not None:
                entry.engine.fail_all(error)
        self._thread.close()
        for thread in list(self._loading):
            thread.join(timeout=UNFINISHED_SECONDS)

    # ---- names

    def _resolve(self, model: str) -> Source:
        """A model's source. What the operator has set may be anything."""
        return self._own.get(model) or resolve(model, any_model=self._allow_any_model, folders=self._allow_folders)

    def _preloaded(self) -> list[Source]:
        return [self._own[model] for model in self._settings.preload if model in self._own]

    # ---- loading

    def _entry(self, source: Source) -> _Entry:
        """The model's entry; where there is none, one whose load begins now. However many ask, it loads once."""
        with self._lock:
            if source.place not in self._entries:
                self._entries[source.place] = entry = _Entry(source)
                thread = threading.Thread(target=self._load, args=(entry,), name=f"load {source.name}", daemon=True)
                self._loading.add(thread)
                thread.start()
            return self._entries[source.place]

    def _load(self, entry: _Entry) -> None:
        try:
            self._load_or_say(entry)
        finally:
            self._loading.discard(threading.current_thread())

    def _load_or_say(self, entry: _Entry) -> None:
        try:
            engine = self._make(entry)
        except Exception as error:
            self._load_failed(entry, error if isinstance(error, MusicGenError) else _unforeseen(entry, error))
            return
        with self._lock:
            self._thread.add(engine)
            entry.engine = engine
            self._loaded(entry.source.name)
            self._failures.pop(entry.source.place, None)
            waiting, entry.waiting = entry.waiting, []
            for request in waiting:
                try:
                    self._hand_over(entry, request)
                except Exception as error:
                    foreseen = isinstance(error, MusicGenError)
                    request.listener(Failed(error if foreseen else _unforeseen(entry, error)))  # type: ignore[arg-type]

    def _load_failed(self, entry: _Entry, error: MusicGenError) -> None:
        _log.error("loading %s failed: %s", entry.source.name, error.code)
        with self._lock:
            del self._entries[entry.source.place]
            self._failures[entry.source.place] = (time.monotonic(), error)
            waiting, entry.waiting = entry.waiting, []
        for request in waiting:
            request.listener(Failed(error))

    def _make(self, entry: _Entry) -> ModelEngine:
        settings = self._settings
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise LoadFailed(
                f"There is no {self.device} for {entry.source.name}.", hint="Set MUSICGEN_DEVICE to auto or cpu."
            )
        dtype = getattr(torch, precision(self.device, settings))
        return ModelEngine(
            checkpoint.load(entry.source, self.device, dtype),
            max_slots=max_slots(self.device, settings),
            max_queue=settings.max_queue,
            deterministic=settings.deterministic,
            threads=self._threads,
            wake=self._thread.wake,
        )

    def _hand_over(self, entry: _Entry, request: _Request) -> None:
        """To the engine; while that is loading, to its waiting room."""
        if entry.engine is not None:
            entry.engine.submit(request.ticket, request.params, request.listener)
            return
        if len(entry.waiting) >= max_slots(self.device, self._settings) + self._settings.max_queue:
            raise QueueFull(
                f"{entry.source.name} is still loading and its queue is full.",
                hint="Ask again later.",
                retry_after=RETRY_AFTER,
            )
        entry.waiting.append(request)
        request.listener(Waiting(len(entry.waiting) - 1, loading=True))

    def _forgetting(self, ticket: str, listener: Listener) -> Callable[[Event], None]:
        """The listener, and after the last event no memory of the ticket."""

        def listen(event: Event) -> None:
            if isinstance(event, Finished | Failed):
                with self._lock:
                    self._tickets.pop(ticket, None)
            listener(event)

        return listen


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _unforeseen(entry: _Entry, error: Exception) -> MusicGenError:
    name = entry.source.name
    _log.error("%s: %s", name, where(error))
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return LoadFailed(f"{name} does not fit into memory.", hint="Take a smaller model.", field="model")
    return LoadFailed(f"{name} could not be loaded ({briefly(error)}).", field="model")
