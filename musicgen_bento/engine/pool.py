"""The models of one device: found by name, loaded once, on a thread of their own, when they are first asked for."""

from __future__ import annotations

import atexit
import logging
import math
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from musicgen_bento.catalogue import CATALOGUE, find
from musicgen_bento.config import Settings
from musicgen_bento.engine import checkpoint
from musicgen_bento.engine.device import DeviceThread
from musicgen_bento.engine.engine import ModelEngine
from musicgen_bento.engine.hub import is_cached
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
    InvalidRequest,
    LoadFailed,
    MusicGenError,
    QueueFull,
    ShuttingDown,
    UnknownModel,
)
from musicgen_bento.quiet import briefly, where

_log = logging.getLogger("bentoml.musicgen")  # below BentoML's, which has a handler

SLOTS = {"cpu": 16, "cuda": 64}
RETRY_AFTER = 30.0

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(slots=True)
class _Request:
    ticket: str
    params: GenerationParams
    listener: Listener


@dataclass(slots=True)
class _Entry:
    """A model that is in memory, or on its way there."""

    name: str
    source: str
    engine: ModelEngine | None = None
    waiting: list[_Request] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


class EnginePool:
    """See `types.Pool`. Begins to load the preloaded models at once.

    Args:
        settings: the operator's.
        allow_any_model: whether names outside the catalogue mean repositories on the hub.
        allow_folders: whether they may mean folders of this machine.
    """

    def __init__(self, settings: Settings, *, allow_any_model: bool = False, allow_folders: bool = False) -> None:
        self._settings = settings
        self._allow_any_model, self._allow_folders = allow_any_model, allow_folders
        self.device = _device(settings.device)
        self._lock = threading.RLock()
        self._thread = DeviceThread()
        self._entries: dict[str, _Entry] = {}
        self._tickets: dict[str, _Entry] = {}
        self._failures: dict[str, tuple[float, MusicGenError]] = {}
        self._closing = False
        atexit.register(self.close)  # torch's threads must not be at work when the interpreter goes
        for name in settings.preload:
            self._entry(*self._resolve(name, trusted=True))

    def submit(self, model: str, params: GenerationParams, listener: Listener) -> str:
        """See `Pool.submit`."""
        trusted = model in (self._settings.default_model, *self._settings.preload)
        name, source = self._resolve(model, trusted=trusted)
        ticket = uuid.uuid4().hex
        with self._lock:
            if self._closing:
                raise ShuttingDown("The server is shutting down.", hint="Ask again in a moment.", retry_after=5.0)
            entry = self._entry(name, source)
            request = _Request(ticket, params, self._forgetting(ticket, listener))
            self._tickets[ticket] = entry
            try:
                self._hand_over(entry, request)
            except MusicGenError:
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
        ready = True
        for model in self._settings.preload:
            name, source = self._resolve(model, trusted=True)
            with self._lock:
                failed_at, error = self._failures.get(name, (0.0, None))
                lasting = error is not None and (error.retry_after or math.inf) > time.monotonic() - failed_at
                if name not in self._entries and error is not None and lasting:
                    raise error
                ready = self._entry(name, source).engine is not None and ready
        return ready

    def statuses(self) -> list[ModelStatus]:
        """See `Pool.statuses`."""
        with self._lock:
            known = {name: "loaded" if entry.engine else "loading" for name, entry in self._entries.items()}
        listed = {
            card.id: "cached" if card.folder or is_cached(card.id, "state_dict.bin") else "downloadable"
            for card in CATALOGUE
        }
        return [ModelStatus(name, state) for name, state in (listed | known).items()]

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
        for entry in entries:
            for request in entry.waiting:
                request.listener(Failed(error))
            if entry.engine is not None:
                entry.engine.fail_all(error)
        self._thread.close()

    # ---- names

    def _resolve(self, model: str, *, trusted: bool) -> tuple[str, str]:
        """A model's name and where its files are."""
        card = find(model)
        if card is not None:
            if "melody" in card.conditioning:
                raise InvalidRequest(
                    f"{card.id} follows a melody, which this version does not serve yet.",
                    hint="Take a model conditioned on text alone, such as facebook/musicgen-medium.",
                    field="model",
                )
            return card.id, str(card.folder or card.id)
        if (self._allow_folders or trusted) and Path(model).is_dir():
            return model, model
        if (self._allow_any_model or trusted) and _HUB_ID.fullmatch(model):
            return model, model
        raise UnknownModel(
            f"There is no model named {model[:100]!r} here.",
            hint=f"Take one of {', '.join(card.id for card in CATALOGUE)}.",
            field="model",
        )

    # ---- loading

    def _entry(self, name: str, source: str) -> _Entry:
        """The model's entry; where there is none, one whose load begins now. However many ask, it loads once."""
        with self._lock:
            if name not in self._entries:
                self._entries[name] = entry = _Entry(name, source)
                threading.Thread(target=self._load, args=(entry,), name=f"load {name}", daemon=True).start()
            return self._entries[name]

    def _load(self, entry: _Entry) -> None:
        try:
            engine = self._make(entry)
        except Exception as error:
            self._load_failed(entry, error if isinstance(error, MusicGenError) else _load_error(entry, error))
            return
        self._thread.add(engine)
        with self._lock:
            entry.engine = engine
            self._failures.pop(entry.name, None)
            waiting, entry.waiting = entry.waiting, []
            for request in waiting:
                try:
                    self._hand_over(entry, request)
                except MusicGenError as refused:
                    request.listener(Failed(refused))

    def _load_failed(self, entry: _Entry, error: MusicGenError) -> None:
        with self._lock:
            del self._entries[entry.name]
            self._failures[entry.name] = (time.monotonic(), error)
            waiting, entry.waiting = entry.waiting, []
        for request in waiting:
            request.listener(Failed(error))

    def _make(self, entry: _Entry) -> ModelEngine:
        settings, kind = self._settings, self.device.type
        dtype = {"float32": torch.float32, "float16": torch.float16}.get(
            settings.precision, torch.float16 if kind == "cuda" else torch.float32
        )
        return ModelEngine(
            checkpoint.load(entry.name, entry.source, self.device, dtype),
            max_slots=settings.max_slots or SLOTS[kind],
            max_queue=settings.max_queue,
            deterministic=settings.deterministic,
            wake=self._thread.wake,
        )

    def _hand_over(self, entry: _Entry, request: _Request) -> None:
        """To the engine; while that is loading, to its waiting room."""
        if entry.engine is not None:
            entry.engine.submit(request.ticket, request.params, request.listener)
            return
        slots = self._settings.max_slots or SLOTS[self.device.type]
        if len(entry.waiting) >= slots + self._settings.max_queue:
            raise QueueFull(
                f"{entry.name} is still loading and its queue is full.",
                hint="Ask again later.",
                retry_after=RETRY_AFTER,
            )
        entry.waiting.append(request)
        request.listener(Waiting(len(entry.waiting) - 1))

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


def _load_error(entry: _Entry, error: Exception) -> MusicGenError:
    _log.error("loading %s failed: %s", entry.name, where(error))
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return LoadFailed(f"{entry.name} does not fit into memory.", hint="Take a smaller model.", field="model")
    return LoadFailed(f"{entry.name} could not be loaded ({briefly(error)}).", field="model")
