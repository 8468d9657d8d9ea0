"""The streaming response, with a client that the test controls step by step."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from musicgen_bento.errors import GenerationFailed
from musicgen_bento.server import responses
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.error_responses import ResponseAborted
from musicgen_bento.server.request_context import CLIENT_DISCONNECTED, RequestContext, current_request_var
from musicgen_bento.server.responses import StreamingAudioResponse
from tests.support.asgi_client import EVENTS, SAMPLES, AsgiClient


class FakeGeneration:
    """A generation that runs until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    async def __call__(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def respond(client: AsgiClient, buffer: PcmBuffer, generation: FakeGeneration) -> RequestContext:
    """Send a streaming response to its end, and return the context of the request."""
    context = RequestContext(client.scope["method"], "/stream")
    token = current_request_var.set(context)
    try:
        response = StreamingAudioResponse(buffer, 7, "wav", generation())
        await response(client.scope, client.receive, client.send)  # type: ignore[arg-type]
    finally:
        current_request_var.reset(token)
    return context


def buffer_with(*events: Any) -> PcmBuffer:
    buffer = PcmBuffer("clip")
    for event in events:
        buffer.on_event(event)
    return buffer


def test_stream_sends_exact_content_length_and_ends() -> None:
    async def test() -> None:
        client, generation = AsgiClient(), FakeGeneration()
        await respond(client, buffer_with(*EVENTS), generation)
        assert len(client.body) == 44 + 2 * SAMPLES
        assert dict(client.messages[0]["headers"])[b"content-length"] == str(len(client.body)).encode()
        assert client.messages[-1]["more_body"] is False
        assert generation.cancelled

    asyncio.run(test())


def test_head_request_gets_no_body() -> None:
    async def test() -> None:
        client = AsgiClient("HEAD")
        await respond(client, buffer_with(*EVENTS), FakeGeneration())
        assert (client.messages[0]["status"], client.body) == (200, b"")

    asyncio.run(test())


@pytest.mark.parametrize("started", [True, False])
def test_disconnect_cancels_the_generation(started: bool) -> None:
    async def test() -> None:
        client, generation = AsgiClient(), FakeGeneration()
        responding = asyncio.create_task(respond(client, buffer_with(*EVENTS[:started]), generation))
        await asyncio.sleep(0.01)
        assert not responding.done()
        client.disconnected.set()
        context = await responding
        assert generation.cancelled
        assert context.status == CLIENT_DISCONNECTED
        assert [message["type"] for message in client.messages].count("http.response.start") == 1

    asyncio.run(test())


def test_client_that_reads_nothing_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "STALLED_SECONDS", 0.05)

    async def test() -> None:
        generation = FakeGeneration()
        with pytest.raises(ResponseAborted):
            await respond(AsgiClient(stall=True), buffer_with(*EVENTS), generation)
        assert generation.cancelled

    asyncio.run(test())


def test_client_below_the_minimum_rate_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads each chunk within the time limit of a chunk, but not the whole clip within that of the clip."""
    monkeypatch.setattr(responses, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(responses, "MIN_BYTES_PER_SECOND", 1e9)

    class SlowClient(AsgiClient):
        async def send(self, message: Any) -> None:
            await asyncio.sleep(0.15)
            await super().send(message)

    async def test() -> None:
        client, generation = SlowClient(), FakeGeneration()
        with pytest.raises(ResponseAborted):
            await respond(client, buffer_with(*EVENTS), generation)
        assert generation.cancelled
        assert 0 < len(client.body) < 2 * SAMPLES

    asyncio.run(test())


def test_failure_is_an_error_response_before_the_first_byte_and_raised_after_it() -> None:
    async def test() -> None:
        buffer = buffer_with()
        buffer.fail(GenerationFailed("no"))
        client = AsgiClient()
        context = await respond(client, buffer, FakeGeneration())
        assert isinstance(context.error, GenerationFailed)
        assert client.messages[0]["status"] == 500
        buffer = buffer_with(EVENTS[0])
        buffer.fail(GenerationFailed("no"))
        client = AsgiClient()
        with pytest.raises(GenerationFailed):
            await respond(client, buffer, FakeGeneration())
        assert [message.get("more_body", True) for message in client.messages] == [True, True]

    asyncio.run(test())
