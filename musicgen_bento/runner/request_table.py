"""The runner's desk: takes clips in, keeps their events until they are collected, forgets what nobody wants.

The pool speaks from its own threads; everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from musicgen_bento.engine.types import Event, EventCallback, Failed, Finished, GenerationParams, Pool
from musicgen_bento.errors import InvalidRequest, MusicGenError, Unavailable
from musicgen_bento.log import exception_location, logger
from musicgen_bento.runner.protocol import encode

COLLECT_TIMEOUT_SECONDS = 60.0
REMEMBERED_ABORTS = 4096


class AdmitMsg(BaseModel):
    """A clip to admit. The asker chooses the ticket, so that a clip can be cancelled whose answer was never seen."""

    model_config = ConfigDict(frozen=True)

    request_id: str
    model: str
    params: GenerationParams


@dataclass(eq=False)
class _TableEntry:
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    collected: bool = False
    expiry: asyncio.TimerHandle | None = None


class RequestTable:
    """Clips by ticket, between a pool and whoever collects them."""

    def __init__(self, pool: Pool, collect_seconds: float = COLLECT_TIMEOUT_SECONDS) -> None:
        self._pool = pool
        self._collect_seconds = collect_seconds
        self._clips: dict[str, _TableEntry] = {}
        self._cancelled: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clips)

    def admit(self, admission: AdmitMsg) -> dict[str, Any]:
        """Give a clip to the pool: `{"ticket": ...}`, or `{"error": {...}}` as MusicGenError.to_dict writes it.

        Never raises: one that did would fail its whole batch.
        """
        ticket = admission.request_id
        if ticket in self._clips:
            return {"ticket": ticket}
        if ticket in self._cancelled:
            return InvalidRequest("The request was cancelled.").to_dict()
        clip = _TableEntry()
        try:
            self._pool.add_request(ticket, admission.model, admission.params, _listener(clip.events))
        except MusicGenError as error:
            return error.to_dict()
        except Exception as error:  # its text may hold the prompt
            logger.error("id=%s failed: %s", ticket.partition("-")[0], exception_location(error))
            return MusicGenError("The request could not be taken.").to_dict()
        clip.expiry = asyncio.get_running_loop().call_later(self._collect_seconds, self.abort, ticket)
        self._clips[ticket] = clip
        return {"ticket": ticket}

    async def stream(self, request_id: str) -> AsyncIterator[bytes]:
        """The clip's events as frames, up to and with its last one. Whoever stops reading cancels it."""
        yield b""  # starts the answer at once: only a started one notices that its reader has gone
        clip = self._clips.get(request_id)
        if clip is None or clip.collected:
            yield encode(Failed(_gone("The clip is gone: it was cancelled or not collected in time.")))
            return
        clip.collected = True
        if clip.expiry:
            clip.expiry.cancel()
        over = False
        try:
            while not over:
                event = await clip.events.get()
                over = isinstance(event, Finished | Failed)
                yield encode(event)
        finally:
            self._forget(request_id, cancel=not over)

    def abort(self, request_id: str) -> None:
        """Forget a clip, also one that is still on its way here."""
        self._cancelled[request_id] = None
        if len(self._cancelled) > REMEMBERED_ABORTS:
            self._cancelled.popitem(last=False)
        clip = self._clips.get(request_id)
        self._forget(request_id, cancel=True)
        if clip and clip.collected:  # its reader waits for a last word
            clip.events.put_nowait(Failed(_gone("The clip was cancelled.")))

    def _forget(self, ticket: str, *, cancel: bool) -> None:
        clip = self._clips.pop(ticket, None)
        if clip is None:
            return
        if clip.expiry:
            clip.expiry.cancel()
        if cancel:
            self._pool.abort(ticket)


def _listener(events: asyncio.Queue[Event]) -> EventCallback:
    loop = asyncio.get_running_loop()

    def listen(event: Event) -> None:
        if not loop.is_closed():  # the pool may finish a step after the server has stopped
            loop.call_soon_threadsafe(events.put_nowait, event)

    return listen


def _gone(why: str) -> Unavailable:
    """Not what its client wanted, who is not there to hear it, or meets a process that has begun anew."""
    return Unavailable(why, hint="Ask again.", retry_after=5)
