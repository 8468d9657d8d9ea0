"""A fake model pool for tests of the request table. It records requests and reports events on command."""

from __future__ import annotations

import threading

import numpy as np

from musicgen_bento.engine.types import (
    AudioChunk,
    Event,
    EventCallback,
    Finished,
    GenerationParams,
    Started,
)

EVENTS: list[Event] = [Started("demo", 32000, 1, 4), AudioChunk(np.zeros((1, 4), np.float32), 0), Finished()]
"""The events of a request that succeeds."""


class FakePool:
    """Satisfies the RequestSink protocol.

    Attributes:
        callbacks: the event callbacks of the added requests, by request id.
        aborted: request ids, in the order of `abort` calls.
        add_error: raised by `add_request`, if set.
    """

    def __init__(self) -> None:
        self.callbacks: dict[str, EventCallback] = {}
        self.aborted: list[str] = []
        self.add_error: Exception | None = None

    def add_request(self, request_id: str, model: str, params: GenerationParams, on_event: EventCallback) -> None:
        if self.add_error:
            raise self.add_error
        assert request_id not in self.callbacks
        self.callbacks[request_id] = on_event

    def report(self, request_id: str, events: list[Event]) -> None:
        """Call the event callback from another thread, as the real pool does."""
        thread = threading.Thread(target=lambda: [self.callbacks[request_id](event) for event in events])
        thread.start()
        thread.join()

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
