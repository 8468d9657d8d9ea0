"""The finished audio of slow clients has a memory limit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from musicgen_bento import schemas
from musicgen_bento.config import Settings
from musicgen_bento.engine.types import EventCallback
from musicgen_bento.server import responses
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.error_responses import ErrorResponse, ResponseAborted
from musicgen_bento.server.generation import AdmittedRequest, Generator
from musicgen_bento.server.request_context import RequestContext, current_request, current_request_var
from musicgen_bento.server.response_buffer import ResponseBufferLimit
from musicgen_bento.server.responses import AudioResponse, EncodedAudio
from musicgen_bento.server.shutdown import Drain, InFlight
from tests.support.asgi_client import EVENTS, SAMPLES, AsgiClient

ADMITTED = AdmittedRequest("http", "request", "demo", 7, SAMPLES / 32_000, "clip")
ENDPOINTS = ["generate", "stream"]


class YieldingClient(AsgiClient):
    """Reads everything, and lets other tasks run before each message."""

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)
        await super().send(message)


class InstantGenerator(Generator):
    """Generates every clip at once, without a runner."""

    def __init__(self, response_buffer: ResponseBufferLimit) -> None:
        drain = Drain(1.0, InFlight().__bool__)
        super().__init__(None, Settings(), drain, response_buffer)  # type: ignore[arg-type]

    async def admit(self, request: schemas.GenerationRequest, context: RequestContext) -> AdmittedRequest:
        return ADMITTED

    async def generate_audio(self, admitted: AdmittedRequest, on_event: EventCallback) -> EncodedAudio:
        return EncodedAudio(bytes(2 * SAMPLES), {"X-Seed": "7"})

    async def _fill_buffer(self, admitted: AdmittedRequest, buffer: PcmBuffer) -> None:
        for event in EVENTS:
            buffer.on_event(event)


async def request(generator: Generator, endpoint: str) -> Any:
    if endpoint == "generate":
        return await generator.generate(schemas.GenerationRequest(prompt="calm"))
    return await generator.stream(schemas.StreamRequest(prompt="calm"))


@pytest.fixture(autouse=True)
def _request_context() -> Iterator[None]:
    token = current_request_var.set(RequestContext("POST", "/"))
    yield
    current_request_var.reset(token)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_full_response_buffer_refuses_new_requests(endpoint: str) -> None:
    async def test() -> None:
        limit = ResponseBufferLimit(2 * SAMPLES + 1)
        generator = InstantGenerator(limit)
        clients = [AsgiClient(stall=True) for _ in range(2)]
        accepted = [await request(generator, endpoint) for _ in clients]
        assert [response.status_code for response in accepted] == [200, 200]
        sending = [
            asyncio.ensure_future(response(client.scope, client.receive, client.send))
            for response, client in zip(accepted, clients, strict=True)
        ]
        await asyncio.sleep(0.02)
        assert limit.bytes == 4 * SAMPLES
        for other in ENDPOINTS:
            refused = await request(generator, other)
            assert refused.status_code == 429
            assert json.loads(refused.body)["error"]["code"] == "response_buffer_full"
            assert isinstance(refused, ErrorResponse)
            client = AsgiClient()
            await refused(client.scope, client.receive, client.send)  # type: ignore[arg-type]
            error = current_request().error  # for the log line and the metric
            assert error is not None
            assert (error.code, error.retry_after) == ("response_buffer_full", 10.0)
        sending[0].cancel()
        await asyncio.wait(sending[:1])
        assert limit.bytes == 2 * SAMPLES
        response, client = await request(generator, endpoint), AsgiClient()
        await response(client.scope, client.receive, client.send)
        assert client.body.endswith(bytes(2 * SAMPLES))
        sending[1].cancel()
        await asyncio.wait(sending)
        assert limit.bytes == 0

    asyncio.run(test())


def test_whole_clip_is_aborted_if_the_client_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "STALLED_SECONDS", 0.05)

    async def test() -> None:
        limit, client = ResponseBufferLimit(1), AsgiClient(stall=True)
        response = AudioResponse(EncodedAudio(bytes(100), {}), limit)
        with pytest.raises(ResponseAborted):
            await response(client.scope, client.receive, client.send)  # type: ignore[arg-type]
        assert limit.bytes == 0

    asyncio.run(test())


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_client_that_does_not_read_the_end_is_disconnected(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP server blocks in the last message until the client has read what was sent before."""
    monkeypatch.setattr(responses, "STALLED_SECONDS", 0.05)

    class StallingClient(AsgiClient):
        async def send(self, message: Any) -> None:
            if message.get("more_body") is False:
                await asyncio.Event().wait()
            await super().send(message)

    async def test() -> None:
        limit, client = ResponseBufferLimit(1), StallingClient()
        response = await request(InstantGenerator(limit), endpoint)
        with pytest.raises(ResponseAborted):
            await response(client.scope, client.receive, client.send)
        assert limit.bytes == 0

    asyncio.run(test())


def test_sending_stops_when_the_client_disconnects() -> None:
    async def test() -> None:
        limit, client = ResponseBufferLimit(1), YieldingClient()
        client.disconnected.set()
        response = AudioResponse(EncodedAudio(bytes(10 * 64 * 1024), {}), limit)
        await response(client.scope, client.receive, client.send)  # type: ignore[arg-type]
        assert len(client.body) < 10 * 64 * 1024
        assert limit.bytes == 0

    asyncio.run(test())
