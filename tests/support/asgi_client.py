"""An HTTP client at the ASGI level that a test controls step by step, and the events of one short clip."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from musicgen_bento.engine.types import AudioChunk, Finished, Started

SAMPLES = 100_000
EVENTS = (Started("demo", 32_000, 1, SAMPLES), AudioChunk(np.zeros((1, SAMPLES), np.float32), 0), Finished())


class AsgiClient:
    """One request and its response. With `stall` it reads nothing after the response headers."""

    def __init__(self, method: str = "POST", *, stall: bool = False) -> None:
        self.scope = {"type": "http", "method": method}
        self.disconnected = asyncio.Event()
        self.messages: list[Any] = []
        self._stall = stall

    async def receive(self) -> dict[str, Any]:
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self._stall and message["type"] == "http.response.body":
            await asyncio.Event().wait()
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)
