"""The blocking client: requests, clips, errors and cancellation."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from musicgen_bento.client import (
    Cancelled,
    Clip,
    InvalidResponse,
    MusicGenClient,
    MusicGenError,
    Progress,
    Unreachable,
)
from musicgen_bento.errors import (
    GenerationFailed,
    InvalidRequest,
    Unavailable,
    UnknownModel,
)
from musicgen_bento.schemas import GenerationOptions, GenerationRequest
from tests.support.fake_server import (
    CLIP_CALLS,
    WAV,
    FakeServer,
    Reply,
    audio_headers,
    error_reply,
    failed_job_reply,
    job_body,
    make_client,
)


def test_clip_equals_the_response_of_the_server(tmp_path: Path) -> None:
    reports: list[Progress] = []
    with FakeServer() as server:
        clip = make_client(server).generate("calm", seed=7, duration=0.5, progress=reports.append)
    assert clip == Clip(WAV, seed=7, model="café", sample_rate=32_000, channels=1, duration=0.5)
    assert server.calls() == CLIP_CALLS
    assert reports == [
        Progress("queued", 1, 0, 0.5),
        Progress("running", None, 0.2, 0.5),
        Progress("done", None, 0.5, 0.5),
    ]
    assert "RIFF" not in repr(clip)
    clip.save(tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == WAV
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    with pytest.raises(InvalidRequest, match="no folder"):
        clip.save(tmp_path / "nowhere" / "a.wav")


def test_request_contains_only_the_given_fields_and_a_seed() -> None:
    with FakeServer() as server:
        make_client(server, headers={"X-Key": "k"}).generate("calm", top_k=9)
    [body] = server.posted_jobs()
    assert body.keys() == {"prompt", "top_k", "seed"}
    assert 0 <= body["seed"] < 2**32
    assert {request.headers["X-Key"] for request in server.requests} == {"k"}
    polls = [request.query for request in server.requests if "wait" in request.query]
    assert [query["version"] for query in polls] == ["1", "2"]
    assert all(0 < float(query["wait"]) <= 30 for query in polls)


def test_options_equal_the_fields_of_a_request() -> None:
    assert set(GenerationOptions.__annotations__) == set(GenerationRequest.model_fields) - {"prompt", "model"}


@pytest.mark.parametrize(
    ("options", "field"),
    [({"prompt": " "}, "prompt"), ({"duration": -1}, "duration"), ({"seed": "x"}, "seed"), ({"timeout": 0}, "timeout")],
)
def test_invalid_arguments_are_rejected_before_any_request(options: dict[str, Any], field: str) -> None:
    with FakeServer() as server, pytest.raises(InvalidRequest) as caught:
        make_client(server).generate(**{"prompt": "calm", **options})
    assert caught.value.field == field
    assert server.requests == []


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:y", "http://x/?q=1", ""])
def test_invalid_url_is_rejected(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        MusicGenClient(url)
    assert caught.value.field == "url"


def test_error_response_becomes_its_exception_with_code_hint_and_field() -> None:
    reply = error_reply(400, "unknown_model", field="model")
    with FakeServer(post=[reply]) as server, pytest.raises(UnknownModel) as caught:
        make_client(server).generate("calm", model="x")
    raised = caught.value
    assert (raised.status, raised.code, raised.message) == (400, "unknown_model", "It is unknown_model.")
    assert (raised.hint, raised.field) == ("Do better.", "model")
    assert server.calls() == ["post"]


def test_failed_job_raises_its_error_and_is_deleted() -> None:
    reply = failed_job_reply("generation_failed")
    with FakeServer(get=[reply]) as server, pytest.raises(GenerationFailed, match="It failed"):
        make_client(server).generate("calm")
    assert server.calls() == ["post", "get", "delete"]


def test_job_cancelled_by_another_client_is_an_error() -> None:
    reply = Reply(200, job_body("cancelled", 2))
    with FakeServer(get=[reply]) as server, pytest.raises(GenerationFailed, match="cancelled"):
        make_client(server).generate("calm")


@pytest.mark.parametrize(
    "replies",
    [
        {"post": [Reply(200, b"<html>")]},
        {"post": [Reply(202, {"id": 5})]},
        {"post": [Reply(404, b"not found")]},
        {"get": [Reply(200, b'{"state": ')]},
        {"get": [Reply(200, job_body("no-such-state"))]},
        {"audio": [Reply(200, b"not a wav", audio_headers())]},
        {"audio": [Reply(200, WAV, {})]},
        {"audio": [Reply(200, WAV, {**audio_headers(), "X-Seed": "seven"})]},
    ],
    ids=str,
)
def test_malformed_response_raises_invalid_response(replies: dict[str, list[Reply]]) -> None:
    with FakeServer(**replies) as server, pytest.raises(InvalidResponse):
        make_client(server).generate("calm")
    assert "post" in replies or server.calls()[-1] == "delete"


def test_redirect_is_reported_and_not_followed() -> None:
    moved = Reply(301, b"", {"Location": "https://elsewhere.example/jobs"})
    with FakeServer(post=[moved]) as server, pytest.raises(InvalidResponse, match=r"https://elsewhere\.example"):
        make_client(server).generate("calm")
    assert server.calls() == ["post"]


def test_missing_server_is_reported_immediately_without_credentials() -> None:
    with FakeServer() as server:
        port = server.url.rpartition(":")[2]
    start = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        MusicGenClient(f"http://me:secret@127.0.0.1:{port}").generate("calm")
    assert time.monotonic() - start < 0.4
    assert "127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("error_type", [KeyboardInterrupt, ZeroDivisionError])
def test_exception_in_progress_deletes_the_job(error_type: type[BaseException]) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.state == "running":
            raise error_type

    with FakeServer() as server, pytest.raises(error_type):
        make_client(server).generate("calm", progress=interrupt)
    assert server.calls() == ["post", "get", "delete"]
    assert server.requests[-1].path == "/jobs/j%2F1"


def test_another_thread_can_cancel() -> None:
    cancelled = threading.Event()
    with FakeServer(get=[Reply(200, job_body("cancelled", 2), delay=cancelled)]) as server:
        generation = make_client(server).start("calm")
        assert server.requests == []
        threading.Timer(0.2, lambda: (generation.cancel(), cancelled.set())).start()
        with pytest.raises(MusicGenError):
            generation.result()
        assert server.calls() == ["post", "get", "delete"]
        with pytest.raises(Cancelled):
            generation.result()


def test_cancel_interrupts_a_pause() -> None:
    with FakeServer(post=[error_reply(429, "queue_full", retry_after="60")]) as server:
        generation = make_client(server).start("calm")
        threading.Timer(0.2, generation.cancel).start()
        start = time.monotonic()
        with pytest.raises(Cancelled):
            generation.result()
    assert time.monotonic() - start < 2


def test_list_models_raises_errors() -> None:
    with FakeServer(models=[error_reply(503, "unavailable")]) as server, pytest.raises(Unavailable):
        make_client(server).list_models()
    with FakeServer(models=[Reply(200, {"models": [{"id": "demo"}]})]) as server, pytest.raises(InvalidResponse):
        make_client(server).list_models()
