"""POST /stream and the sound of a job through the service as `bentoml serve` runs it, over real sockets."""

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
from tests.support.wait import until

SECRET = "xylophone-of-the-hidden-garden"
SECOND = 2 * 32_000  # bytes
LONG = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # int8: a clip's bytes are the same with a neighbour and without
    with Server(tmp_path_factory.mktemp("server"), max_slots=2, max_queue=2, precision="int8") as running:
        yield running


class Reader:
    """A client of one stream that reads when it is told to."""

    def __init__(self, server: Server, request: str = "POST /stream", **body: Any) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the network would hold all of it
        self.socket.settimeout(120)
        self.socket.connect(("127.0.0.1", server.port))
        sent = json.dumps({"prompt": SECRET, **body}).encode() if request.startswith("POST") else b""
        kind = "Content-Type: application/json\r\n" if sent else ""
        self.socket.sendall(
            f"{request} HTTP/1.1\r\nHost: x\r\n{kind}Content-Length: {len(sent)}\r\n\r\n".encode() + sent
        )
        self.head, self.body = b"", b""

    def __enter__(self) -> Reader:
        while b"\r\n\r\n" not in self.head:
            self.head += self.socket.recv(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def read(self, count: int) -> bytes:
        """So many bytes, or all there are."""
        while len(self.body) < count and (piece := self.socket.recv(min(4096, count - len(self.body)))):
            self.body += piece
        return self.body


def error(response: requests.Response, status: int, code: str) -> Any:
    assert response.status_code == status, response.text
    found = ErrorBody.model_validate(response.json()).error
    assert found.code == code
    return found


def test_the_first_sound_is_there_long_before_the_last(server: Server) -> None:
    with Reader(server, duration=LONG) as reader:
        assert b"200 OK" in reader.head
        assert f"content-length: {44 + LONG * SECOND}".encode() in reader.head.lower()
        wav = reader.read(44 + 2000)
        assert int.from_bytes(wav[40:44], "little") == LONG * SECOND
        assert any(wav[44:])
        assert server.in_slots() == 1
    assert until(lambda: server.in_slots() == 0) < 5
    until(lambda: "POST /stream model=demo duration=120" in server.log.read_text())
    assert "status=499" in server.log.read_text()


def test_samples_alone(server: Server) -> None:
    answer = requests.post(f"{server.url}/stream", json={"prompt": SECRET, "duration": 1, "format": "pcm"}, timeout=60)
    assert answer.headers["content-type"] == "audio/pcm;rate=32000;channels=1"
    assert len(answer.content) == int(answer.headers["content-length"]) == SECOND


@pytest.mark.parametrize("how", ["loudness", "peak", "rms"])
def test_a_level_that_needs_the_whole_clip_is_refused(server: Server, how: str) -> None:
    answer = requests.post(f"{server.url}/stream", json={"prompt": SECRET, "normalize": how}, timeout=10)
    found = error(answer, 400, "invalid")
    assert found.field == "normalize"
    assert "'clip' or 'none'" in found.message
    assert "POST /generate" in found.hint


def test_an_error_before_the_first_sample_is_an_answer(server: Server) -> None:
    def ask(**body: Any) -> requests.Response:
        return requests.post(f"{server.url}/stream", json={"prompt": SECRET, **body}, timeout=60)

    error(ask(model="nobody/nothing"), 400, "unknown_model")
    assert error(ask(duration=9999), 400, "invalid").field == "duration"
    assert error(ask(format="mp3"), 400, "invalid").field == "format"
    error(ask(model="facebook/musicgen-small"), 503, "model_unavailable")  # taken, and cannot be loaded: no hub here


def test_a_slow_reader_holds_up_nobody_and_gets_everything(server: Server) -> None:
    """It takes a few bytes, then none until others are done, and its own clip is made, too."""
    long = {"prompt": SECRET, "duration": 80, "seed": 3}  # more than the buffers of a connection take
    made = server.figure("musicgen_audio_seconds_total{")
    with Reader(server, **long) as slow:
        slow.read(1000)
        neighbour = server.generate(duration=10, seed=3)
        assert len(neighbour.content) == 44 + 10 * SECOND
        until(lambda: server.figure("musicgen_audio_seconds_total{") >= made + 89, 120)
        assert server.in_slots() == 0
        assert "duration=80" not in server.log.read_text()  # the answer is not over
        received = slow.read(44 + 80 * SECOND)
    assert received == server.generate(**long, normalize="clip").content


@pytest.mark.parametrize("begun", [True, False])
def test_a_reader_that_leaves_frees_its_slot(server: Server, begun: bool) -> None:
    readers = [Reader(server, duration=LONG) for _ in range(4)]  # two run, two wait
    until(lambda: server.in_slots() == 2)
    if begun:
        for reader in readers[:2]:
            reader.read(1000)
    for reader in readers:
        reader.socket.close()
    assert until(lambda: server.in_slots() + server.figure("musicgen_queue_depth{") == 0) < 10


def test_several_at_once(server: Server) -> None:
    def stream(seed: int) -> bytes:
        body = {"prompt": "calm", "duration": 3, "seed": seed}
        return requests.post(f"{server.url}/stream", json=body, timeout=60).content

    with ThreadPoolExecutor(4) as clients:
        clips = list(clients.map(stream, range(4)))
    assert {len(clip) for clip in clips} == {44 + 3 * SECOND}
    assert len(set(clips)) == 4


def submit(server: Server, **body: Any) -> str:
    answer = requests.post(f"{server.url}/jobs", json={"prompt": SECRET, **body}, timeout=20)
    return f"{server.url}{answer.headers['location']}"


def test_a_job_is_heard_while_it_is_made_and_goes_on_without_its_listener(server: Server) -> None:
    job = submit(server, duration=30, seed=3)
    with Reader(server, f"GET {job.removeprefix(server.url)}/stream") as reader:
        assert b"x-seed: 3" in reader.head.lower()
        reader.read(5000)
        assert requests.get(job, timeout=10).json()["state"] == "running"
    heard = requests.get(f"{job}/stream", timeout=60).content
    assert len(heard) == 44 + 30 * SECOND
    until(lambda: requests.get(job, timeout=10).json()["state"] == "done")
    error(requests.get(f"{job}/stream", timeout=10), 409, "not_ready")
    assert requests.get(f"{job}/audio", timeout=10).status_code == 200
    error(requests.get(f"{job}/stream", timeout=10), 404, "unknown_job")
    body = {"prompt": SECRET, "duration": 30, "seed": 3}
    assert requests.post(f"{server.url}/stream", json=body, timeout=60).content == heard


def test_a_cancelled_job_breaks_off_for_its_listener(server: Server) -> None:
    job = submit(server, duration=LONG)
    with Reader(server, f"GET {job.removeprefix(server.url)}/stream") as reader:
        requests.delete(job, timeout=10)
        assert len(reader.read(LONG * SECOND)) < LONG * SECOND
    requests.delete(job, timeout=10)


def test_a_runner_that_dies_breaks_the_stream_and_is_counted(server: Server) -> None:
    """The last test: it kills the runner."""
    before = server.figure('musicgen_errors_total{code="unavailable"}')
    with Reader(server, duration=LONG) as reader:
        reader.read(1000)
        server.worker("MusicGenRunner").kill()
        assert 1000 <= len(reader.read(LONG * SECOND)) < LONG * SECOND  # the connection is closed before the end
    until(lambda: server.figure('musicgen_errors_total{code="unavailable"}') == before + 1)
    assert SECRET not in server.log.read_text()
