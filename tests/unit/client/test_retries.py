"""The client retries temporary failures, within its time limits."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate

import pytest

from musicgen_bento.client import (
    MusicGenError,
    TimedOut,
    Unreachable,
)
from musicgen_bento.errors import (
    ModelUnavailable,
    QueueFull,
    ShuttingDown,
    UnknownJob,
)
from tests.support.fake_server import (
    CLIP_CALLS,
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


@pytest.mark.parametrize(("status", "code"), [(429, "queue_full"), (429, "job_storage_full"), (503, "shutting_down")])
def test_retry_after_is_respected(status: int, code: str) -> None:
    start = time.monotonic()
    with FakeServer(post=[error_reply(status, code, retry_after="1")]) as server:
        make_client(server).generate("calm")
    assert time.monotonic() - start >= 1
    assert server.calls() == ["post", *CLIP_CALLS]


def test_retry_after_may_be_a_date() -> None:
    later = formatdate(time.time() + 2, usegmt=True)
    start = time.monotonic()
    with FakeServer(post=[error_reply(503, "unavailable", retry_after=later)]) as server:
        make_client(server).generate("calm")
    assert time.monotonic() - start > 0.5


def test_number_of_retries_is_limited() -> None:
    busy = [error_reply(429, "queue_full", retry_after="1")] * 9
    with FakeServer(post=busy) as server, pytest.raises(QueueFull):
        make_client(server, retries=1).generate("calm")
    assert server.calls() == ["post", "post"]


def test_permanent_errors_are_not_retried() -> None:
    with FakeServer(post=[error_reply(503, "model_unavailable")]) as server, pytest.raises(ModelUnavailable):
        make_client(server).generate("calm")
    reply = error_reply(500, "internal_error", retry_after="1")
    with FakeServer(post=[reply]) as other_server, pytest.raises(MusicGenError):
        make_client(other_server).generate("calm")
    assert server.calls() == other_server.calls() == ["post"]


@pytest.mark.parametrize("timeout", [5, None])
def test_pause_longer_than_the_time_limit_raises_immediately(timeout: float | None) -> None:
    start = time.monotonic()
    busy = error_reply(429, "queue_full", retry_after="9" if timeout else "999")
    with FakeServer(post=[busy]) as server, pytest.raises(QueueFull):
        make_client(server, timeout=timeout).generate("calm")
    assert time.monotonic() - start < 2


def test_dropped_submission_is_retried_with_the_same_seed() -> None:
    with FakeServer(post=[DROP]) as server:
        clip = make_client(server).generate("calm")
    assert server.calls() == ["post", *CLIP_CALLS]
    first, second = server.posted_jobs()
    assert first == second
    assert clip.seed == first["seed"]


@pytest.mark.parametrize("reply", [DROP, Reply(200, job_body(), cut_at=20), Reply(502, b"bad gateway")], ids=str)
def test_failed_poll_is_retried(reply: Reply) -> None:
    with FakeServer(get=[reply]) as server:
        make_client(server).generate("calm")
    assert server.calls() == ["post", "get", *CLIP_CALLS[1:]]


def test_truncated_download_is_retried_and_never_returned() -> None:
    with FakeServer(audio=[Reply(200, WAV, audio_headers(), cut_at=len(WAV) // 2)]) as server:
        assert make_client(server).generate("calm").audio == WAV
    assert server.calls() == [*CLIP_CALLS[:-1], "audio", "delete"]
    assert [request.query for request in server.requests if "keep" in request.query] == [{"keep": "true"}] * 2
    truncated = [Reply(200, WAV, audio_headers(), cut_at=len(WAV) // 2)] * 9
    with FakeServer(audio=truncated) as server, pytest.raises(Unreachable):
        make_client(server, retries=1).generate("calm")
    assert server.calls()[-1] == "delete"


@pytest.mark.parametrize("call", ["get", "audio"])
def test_lost_job_is_submitted_again_with_the_same_seed(call: str) -> None:
    with FakeServer(**{call: [error_reply(404, "unknown_job")]}) as server:
        make_client(server).generate("calm")
    first, second = server.posted_jobs()
    assert first == second
    assert server.calls().count("delete") == 1  # of the second job; the server has lost the first


def test_number_of_lost_jobs_is_limited() -> None:
    with FakeServer(get=[error_reply(404, "unknown_job")] * 9) as server, pytest.raises(UnknownJob):
        make_client(server, retries=1).generate("calm")
    assert server.calls() == ["post", "get"] * 2


def test_only_temporary_job_failures_are_repeated() -> None:
    with FakeServer(get=[failed_job_reply("shutting_down", retry_after=0.1)]) as server:
        make_client(server).generate("calm")
    first, second = server.posted_jobs()
    assert first == second
    with FakeServer(get=[failed_job_reply("shutting_down")]) as server, pytest.raises(ShuttingDown):
        make_client(server).generate("calm")


def test_timeout_deletes_the_job() -> None:
    test_end = threading.Event()
    start = time.monotonic()
    with FakeServer(get=[Reply(200, job_body(), delay=test_end)]) as server, pytest.raises(TimedOut):
        make_client(server).generate("calm", timeout=0.5)
    assert time.monotonic() - start < 3
    test_end.set()
    assert server.calls() == ["post", "get", "delete"]


def test_read_timeout_retries_the_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musicgen_bento.client.generation.READ_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("musicgen_bento.client.generation.POLL_SECONDS", 0.0)
    with FakeServer(get=[Reply(200, job_body(), delay=2.0)]) as server:
        make_client(server).generate("calm")
    assert server.calls() == ["post", "get", *CLIP_CALLS[1:]]
