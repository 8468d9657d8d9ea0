"""Streams of the blocking client."""

from __future__ import annotations

from typing import Any

import pytest

from musicgen_bento.client import (
    StreamTruncated,
)
from musicgen_bento.errors import (
    GenerationFailed,
    InvalidRequest,
)
from tests.support.fake_server import (
    DROP,
    WAV,
    FakeServer,
    Reply,
    audio_headers,
    error_reply,
    failed_job_reply,
    job_body,
    make_client,
)


def test_stream_yields_the_wav_with_increasing_position() -> None:
    states: list[str] = []
    with FakeServer() as server:
        client = make_client(server)
        stream = client.stream("calm", seed=7, duration=0.5, progress=lambda progress: states.append(progress.state))
        attributes = (stream.seed, stream.model, stream.sample_rate, stream.channels, stream.duration, stream.position)
        assert attributes == (7, "café", 32_000, 1, 0.5, 0.0)
        chunks, positions = zip(*((chunk, stream.position) for chunk in stream), strict=True)
    assert b"".join(chunks) == WAV
    assert list(positions) == sorted(positions)
    assert len(chunks) > 5
    assert positions[-1] == 0.5
    assert states == ["queued", "running"]
    assert server.calls() == ["post", "get", "stream", "delete"]
    assert server.posted_jobs()[0]["normalize"] == "clip"


def test_pcm_stream_has_no_header() -> None:
    options: dict[str, Any] = {"duration": 0.5, "format": "pcm", "normalize": "none"}
    with FakeServer() as server, make_client(server).stream("calm", **options) as stream:
        assert b"".join(stream) == WAV[44:]
    assert server.posted_jobs()[0].keys() == {"prompt", "duration", "seed", "normalize"}


def test_truncated_stream_raises_after_the_received_bytes() -> None:
    truncated = Reply(200, WAV, audio_headers(), cut_at=10_000)
    with FakeServer(stream=[truncated]) as server:
        stream = make_client(server).stream("calm", seed=3)
        chunks: list[bytes] = []
        with pytest.raises(StreamTruncated, match=r"ended early, after 0\.\d of 0\.5 s.*seed 1 "):
            chunks.extend(stream)
    assert WAV.startswith(b"".join(chunks))
    assert server.calls()[-1] == "delete"


@pytest.mark.parametrize("chunks_read", [0, 1])
def test_closing_a_stream_deletes_the_job(chunks_read: int) -> None:
    with FakeServer() as server:
        with make_client(server).stream("calm") as stream:
            for _ in range(chunks_read):
                next(stream)
        assert server.calls()[-1] == "delete"
        assert list(stream) == []


def test_stream_rejects_normalization_of_the_whole_clip() -> None:
    with FakeServer() as server, pytest.raises(InvalidRequest, match="POST /generate") as caught:
        make_client(server).stream("calm", normalize="loudness")
    assert caught.value.field == "normalize"
    assert server.requests == []


def test_job_finished_before_streaming_is_read_from_its_audio() -> None:
    with FakeServer(stream=[error_reply(409, "not_ready")]) as server:
        assert b"".join(make_client(server).stream("calm")) == WAV
        assert server.calls() == ["post", "get", "stream", "audio", "delete"]
    with FakeServer(get=[Reply(200, job_body("done", 3))]) as server:
        assert b"".join(make_client(server).stream("calm")) == WAV


def test_permanent_errors_before_a_stream_are_raised_and_temporary_errors_retried() -> None:
    with FakeServer(get=[failed_job_reply("generation_failed")]) as server, pytest.raises(GenerationFailed):
        make_client(server).stream("calm")
    assert server.calls()[-1] == "delete"
    with FakeServer(stream=[DROP], post=[error_reply(503, "unavailable", retry_after="1")]) as server:
        assert b"".join(make_client(server).stream("calm")) == WAV


def test_job_failed_before_streaming_raises_its_error() -> None:
    not_ready = error_reply(409, "not_ready")
    polls = [Reply(200, job_body("running", 2)), failed_job_reply("generation_failed")]
    script = {"get": polls, "stream": [not_ready], "audio": [not_ready]}
    with FakeServer(**script) as server, pytest.raises(GenerationFailed):
        make_client(server).stream("calm")
    assert server.calls() == ["post", "get", "stream", "audio", "get", "delete"]
