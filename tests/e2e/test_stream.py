"""POST /stream and GET /jobs/{id}/stream under `bentoml serve`, over real sockets."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from musicgen_bento.schemas import ErrorBody
from tests.support.server import Server
from tests.support.wait import wait_until

SECRET = "xylophone-of-the-hidden-garden"
SECOND = 2 * 32_000  # bytes
LONG = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # int8: the bytes of a clip do not depend on the other requests in the batch
    with Server(tmp_path_factory.mktemp("server"), max_slots=2, max_queue=2, precision="int8") as running:
        yield running


class StreamClient:
    """A client of one stream that reads only what a test requests."""

    def __init__(self, server: Server, request: str = "POST /stream", **body: Any) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # larger buffers would hold the whole stream
        self.socket.settimeout(120)
        self.socket.connect(("127.0.0.1", server.port))
        payload = json.dumps({"prompt": SECRET, **body}).encode() if request.startswith("POST") else b""
        kind = "Content-Type: application/json\r\n" if payload else ""
        self.socket.sendall(
            f"{request} HTTP/1.1\r\nHost: x\r\n{kind}Content-Length: {len(payload)}\r\n\r\n".encode() + payload
        )
        self.head, self.body = b"", b""

    def __enter__(self) -> StreamClient:
        while b"\r\n\r\n" not in self.head:
            self.head += self.socket.recv(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def read(self, count: int) -> bytes:
        """Read until the body has `count` bytes or the stream ends, and return the body."""
        while len(self.body) < count and (chunk := self.socket.recv(min(4096, count - len(self.body)))):
            self.body += chunk
        return self.body


def error(response: requests.Response, status: int, code: str) -> Any:
    assert response.status_code == status, response.text
    detail = ErrorBody.model_validate(response.json()).error
    assert detail.code == code
    return detail


def test_first_samples_arrive_long_before_the_last(server: Server) -> None:
    with StreamClient(server, duration=LONG) as client:
        assert b"200 OK" in client.head
        assert f"content-length: {44 + LONG * SECOND}".encode() in client.head.lower()
        wav = client.read(44 + 2000)
        assert int.from_bytes(wav[40:44], "little") == LONG * SECOND
        assert any(wav[44:])
        assert server.slots_in_use() == 1
    assert wait_until(lambda: server.slots_in_use() == 0) < 5
    wait_until(lambda: "POST /stream model=demo duration=120" in server.log.read_text())
    assert "status=499" in server.log.read_text()


def test_pcm_format_has_no_header(server: Server) -> None:
    response = requests.post(
        f"{server.url}/stream", json={"prompt": SECRET, "duration": 1, "format": "pcm"}, timeout=60
    )
    assert response.headers["content-type"] == "audio/pcm;rate=32000;channels=1"
    assert len(response.content) == int(response.headers["content-length"]) == SECOND


@pytest.mark.parametrize("strategy", ["loudness", "peak", "rms"])
def test_normalization_that_needs_the_whole_clip_is_refused(server: Server, strategy: str) -> None:
    response = requests.post(f"{server.url}/stream", json={"prompt": SECRET, "normalize": strategy}, timeout=10)
    detail = error(response, 400, "invalid")
    assert detail.field == "normalize"
    assert "'clip' or 'none'" in detail.message
    assert "POST /generate" in detail.hint


def test_error_before_the_first_sample_is_an_error_response(server: Server) -> None:
    def request(**body: Any) -> requests.Response:
        return requests.post(f"{server.url}/stream", json={"prompt": SECRET, **body}, timeout=60)

    error(request(model="unknown/model"), 400, "unknown_model")
    assert error(request(duration=9999), 400, "invalid").field == "duration"
    assert error(request(format="mp3"), 400, "invalid").field == "format"
    error(
        request(model="facebook/musicgen-small"), 503, "model_unavailable"
    )  # admitted, but it cannot be fetched without a hub


def test_slow_client_does_not_delay_others_and_gets_the_whole_clip(server: Server) -> None:
    """It reads nothing while another request and its own are generated."""
    long = {"prompt": SECRET, "duration": 80, "seed": 3}  # larger than the buffers of a connection
    seconds_before = server.metric_sum("musicgen_audio_seconds_total{")
    with StreamClient(server, **long) as slow:
        slow.read(1000)
        other = server.generate(duration=10, seed=3)
        assert len(other.content) == 44 + 10 * SECOND
        wait_until(lambda: server.metric_sum("musicgen_audio_seconds_total{") >= seconds_before + 89, 120)
        assert server.slots_in_use() == 0
        assert "duration=80" not in server.log.read_text()  # the response has not ended
        received = slow.read(44 + 80 * SECOND)
    assert received == server.generate(**long, normalize="clip").content


@pytest.mark.parametrize("started", [True, False])
def test_disconnect_frees_the_slot(server: Server, started: bool) -> None:
    clients = [StreamClient(server, duration=LONG) for _ in range(4)]  # two are running, two are waiting
    wait_until(lambda: server.slots_in_use() == 2)
    if started:
        for client in clients[:2]:
            client.read(1000)
    for client in clients:
        client.socket.close()
    assert wait_until(lambda: server.slots_in_use() + server.metric_sum("musicgen_queue_depth{") == 0) < 10


def test_concurrent_streams_are_complete(server: Server) -> None:
    def stream(seed: int) -> bytes:
        body = {"prompt": "calm", "duration": 3, "seed": seed}
        return requests.post(f"{server.url}/stream", json=body, timeout=60).content

    with ThreadPoolExecutor(4) as clients:
        clips = list(clients.map(stream, range(4)))
    assert {len(clip) for clip in clips} == {44 + 3 * SECOND}
    assert len(set(clips)) == 4


def submit(server: Server, **body: Any) -> str:
    response = requests.post(f"{server.url}/jobs", json={"prompt": SECRET, **body}, timeout=20)
    return f"{server.url}{response.headers['location']}"


def test_job_can_be_streamed_and_is_not_affected_by_a_disconnect(server: Server) -> None:
    job = submit(server, duration=30, seed=3)
    with StreamClient(server, f"GET {job.removeprefix(server.url)}/stream") as client:
        assert b"x-seed: 3" in client.head.lower()
        client.read(5000)
        assert requests.get(job, timeout=10).json()["state"] == "running"
    streamed = requests.get(f"{job}/stream", timeout=60).content
    assert len(streamed) == 44 + 30 * SECOND
    wait_until(lambda: requests.get(job, timeout=10).json()["state"] == "done")
    error(requests.get(f"{job}/stream", timeout=10), 409, "not_ready")
    assert requests.get(f"{job}/audio", timeout=10).status_code == 200
    error(requests.get(f"{job}/stream", timeout=10), 404, "unknown_job")
    body = {"prompt": SECRET, "duration": 30, "seed": 3}
    assert requests.post(f"{server.url}/stream", json=body, timeout=60).content == streamed


def test_stream_of_a_cancelled_job_is_truncated(server: Server) -> None:
    job = submit(server, duration=LONG)
    with StreamClient(server, f"GET {job.removeprefix(server.url)}/stream") as client:
        requests.delete(job, timeout=10)
        assert len(client.read(LONG * SECOND)) < LONG * SECOND
    requests.delete(job, timeout=10)


def test_killed_runner_truncates_the_stream_and_is_counted(server: Server) -> None:
    """This test is the last one, because it kills the runner."""
    before = server.metric_sum('musicgen_errors_total{code="unavailable"}')
    with StreamClient(server, duration=LONG) as client:
        client.read(1000)
        server.worker_process("MusicGenRunner").kill()
        assert 1000 <= len(client.read(LONG * SECOND)) < LONG * SECOND  # the connection is closed early
    wait_until(lambda: server.metric_sum('musicgen_errors_total{code="unavailable"}') == before + 1)
    assert SECRET not in server.log.read_text()
