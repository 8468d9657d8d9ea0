"""The runner's table of requests: admits them, keeps their events until they are collected, and aborts them.

All methods run on the event loop. The model pool reports events from its own threads; `call_soon_threadsafe` moves them
to the loop, in order.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from musicgen_bento.engine.types import Event, EventCallback, Failed, Finished, RequestSink
from musicgen_bento.errors import InvalidRequest, MusicGenError, Unavailable
from musicgen_bento.log import exception_location, logger
from musicgen_bento.runner.metrics import RequestMetrics
from musicgen_bento.runner.protocol import AdmitMsg, encode

COLLECT_TIMEOUT_SECONDS = 60.0
REMEMBERED_ABORTS = 4096  # request ids


@dataclass(eq=False)
class _TableEntry:
    """One request of the table.

    Attributes:
        events: events that are reported and not collected yet.
        collected: whether `stream` was called.
        expiry: aborts the request if its events are not collected in time.
    """

    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    collected: bool = False
    expiry: asyncio.TimerHandle | None = None


class RequestTable:
    """Requests by id, between the model pool and the HTTP process.

    Args:
        pool: generates the audio.
        metrics: counts admissions, events and aborts.
        collect_seconds: a request is aborted if `stream` is not called within this time.
    """

    def __init__(
        self, pool: RequestSink, metrics: RequestMetrics, collect_seconds: float = COLLECT_TIMEOUT_SECONDS
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._collect_seconds = collect_seconds
        self._entries: dict[str, _TableEntry] = {}
        self._aborted: OrderedDict[str, None] = OrderedDict()  # the last ids: an abort may overtake its admission

    def __len__(self) -> int:
        return len(self._entries)

    def admit(self, message: AdmitMsg) -> dict[str, Any]:
        """Pass a request to the pool, unless the table already contains its id.

        Returns:
            `{"request_id": ...}`, or `{"error": {...}}` as `MusicGenError.to_dict` writes it. Errors are not raised
            because one exception would fail all admissions of a BentoML batch.
        """
        request_id = message.request_id
        if request_id in self._entries:
            return {"request_id": request_id}
        if request_id in self._aborted:
            return InvalidRequest("The request was cancelled.").to_dict()
        admitted_at = time.monotonic()
        try:
            self._pool.add_request(request_id, message.model, message.params, self._event_callback(request_id))
        except MusicGenError as error:
            return error.to_dict()
        except Exception as error:  # its text may quote the prompt
            logger.error("id=%s failed: %s", request_id.partition("-")[0], exception_location(error))
            return MusicGenError("The runner could not admit the request.").to_dict()
        loop = asyncio.get_running_loop()
        self._entries[request_id] = _TableEntry(expiry=loop.call_later(self._collect_seconds, self.abort, request_id))
        self._metrics.on_admit(request_id, message.model, admitted_at)
        return {"request_id": request_id}

    async def stream(self, request_id: str) -> AsyncIterator[bytes]:
        """Yield the request's events as frames, up to its last event. Closing the iterator early aborts the request."""
        yield b""  # starts the response at once: BentoML notices a disconnected client only after the first bytes
        entry = self._entries.get(request_id)
        if entry is None or entry.collected:
            yield encode(Failed(_not_available("The request was cancelled or its audio was not collected in time.")))
            return
        entry.collected = True
        if entry.expiry:
            entry.expiry.cancel()
        ended = False
        try:
            while not ended:
                event = await entry.events.get()
                ended = isinstance(event, Finished | Failed)
                yield encode(event)
        finally:
            self._remove(request_id, abort=not ended)

    def abort(self, request_id: str) -> None:
        """End a request, running or waiting. A request that is not admitted yet will be refused."""
        self._aborted[request_id] = None
        if len(self._aborted) > REMEMBERED_ABORTS:
            self._aborted.popitem(last=False)
        entry = self._entries.get(request_id)
        self._remove(request_id, abort=True)
        if entry and entry.collected:  # `stream` waits for a last event
            entry.events.put_nowait(Failed(_not_available("The request was cancelled.")))

    def _remove(self, request_id: str, *, abort: bool) -> None:
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return
        if entry.expiry:
            entry.expiry.cancel()
        if abort:
            self._pool.abort(request_id)
            self._metrics.on_abort(request_id)

    def _event_callback(self, request_id: str) -> EventCallback:
        """Return a callback that moves the events of a request to the event loop. It may be called in any thread."""
        loop = asyncio.get_running_loop()

        def on_event(event: Event) -> None:
            if not loop.is_closed():  # the pool may complete a step after the server has stopped
                loop.call_soon_threadsafe(self._on_event, request_id, event, time.monotonic())

        return on_event

    def _on_event(self, request_id: str, event: Event, reported_at: float) -> None:
        """Store an event for `stream`, and pass it to the metrics with the time at which the pool reported it."""
        entry = self._entries.get(request_id)
        if entry is not None:
            entry.events.put_nowait(event)
        self._metrics.on_event(request_id, event, reported_at)


def _not_available(message: str) -> Unavailable:
    """The error for a client that has disconnected already, or that reconnects after the runner was restarted."""
    return Unavailable(message, hint="Send the request again.", retry_after=5)
