"""Jobs through the service as `bentoml serve` runs it, with the built-in model."""

from __future__ import annotations

import io
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import soundfile

from musicgen_bento.schemas import ErrorBody, Job
from tests.support.server import Server

SECRET = "xylophone-of-the-hidden-garden"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with Server(folder, max_slots=1, max_queue=3, job_megabytes=24, max_duration=600, drain_seconds=60) as server:
        yield server


def submit(server: Server, **body: Any) -> str:
    answer = requests.post(f"{server.url}/jobs", json={"prompt": SECRET, **body}, timeout=20)
    assert answer.status_code == 202, answer.text
    return Job.model_validate(answer.json()).id


def ask(server: Server, job: str, **query: Any) -> Job:
    answer = requests.get(f"{server.url}/jobs/{job}", params=query, timeout=60)
    assert answer.status_code == 200, answer.text
    return Job.model_validate(answer.json())


def follow(server: Server, job: str, *states: str) -> list[Job]:
    """Everything that is said of a job until it is in one of the states."""
    seen = [ask(server, job)]
    while seen[-1].state not in states:
        assert seen[-1].state not in ("done", "failed", "cancelled"), seen[-1]
        seen.append(ask(server, job, wait=30, version=seen[-1].version))
    return seen


def error(response: requests.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert ErrorBody.model_validate(response.json()).error.code == code


def drop(server: Server, *jobs: str) -> None:
    for job in jobs:
        assert requests.delete(f"{server.url}/jobs/{job}", timeout=10).status_code == 204


def test_a_job_is_what_generate_makes_with_progress_that_only_grows(server: Server) -> None:
    job = submit(server, duration=20, seed=3)
    seen = follow(server, job, "done")
    made = [view.audio_seconds for view in seen]
    assert made == sorted(made)
    assert made[-1] == 20
    assert len({view.audio_seconds for view in seen if view.state == "running"}) > 2
    answer = requests.get(f"{server.url}/jobs/{job}/audio", timeout=20)
    whole = server.generate(prompt=SECRET, duration=20, seed=3)
    assert answer.content == whole.content
    told = ("content-type", "x-seed", "x-model", "x-audio-sample-rate", "x-audio-channels", "x-audio-duration")
    assert [answer.headers[name] for name in told] == [whole.headers[name] for name in told]
    error(requests.get(f"{server.url}/jobs/{job}/audio", timeout=10), 404, "unknown_job")


def test_two_clients_at_once_wait_their_turn(server: Server) -> None:
    first, second, third = (submit(server, duration=15, seed=seed) for seed in range(3))
    assert follow(server, third, "queued")[-1].position in (None, 1, 2)
    with ThreadPoolExecutor(3) as clients:
        stories = list(clients.map(lambda job: follow(server, job, "done"), (first, second, third)))
    places = [view.position for view in stories[2] if view.position]
    assert places == sorted(places, reverse=True)
    assert places[0] == 2
    for job in (first, second, third):
        wav = requests.get(f"{server.url}/jobs/{job}/audio", timeout=20).content
        assert soundfile.info(io.BytesIO(wav)).frames == 15 * 32_000


def test_a_cancelled_job_frees_its_slot(server: Server) -> None:
    running, queued = submit(server, duration=200), submit(server, duration=0.2)
    follow(server, running, "running")
    assert ask(server, queued).state == "queued"
    drop(server, running)
    assert ask(server, running).state == "cancelled"
    assert follow(server, queued, "done")[-1].audio_seconds == 0.2
    drop(server, running, queued)


def test_what_generate_refuses_is_refused(server: Server) -> None:
    url = f"{server.url}/jobs"
    error(requests.post(url, json={"prompt": SECRET, "duration": 601}, timeout=10), 400, "invalid")
    error(requests.post(url, json={"prompt": SECRET, "model": "nobody/nothing"}, timeout=10), 400, "unknown_model")
    error(requests.post(url, json={"prompt": f"{SECRET} " * 75}, timeout=10), 400, "invalid")  # too many T5 tokens
    error(requests.post(url, data="x", timeout=10), 415, "unsupported_media_type")
    error(requests.post(url, json={"prompt": "x" * (2 << 20)}, timeout=10), 413, "too_large")
    error(requests.post(url, json={"prompt": SECRET, "duration": 500}, timeout=10), 400, "invalid")  # over 24 MB


def test_a_full_queue_and_full_memory_are_429(server: Server) -> None:
    jobs = [submit(server, duration=60) for _ in range(4)]
    answer = requests.post(f"{server.url}/jobs", json={"prompt": SECRET, "duration": 1}, timeout=10)
    error(answer, 429, "queue_full")
    drop(server, *jobs[2:])
    answer = requests.post(f"{server.url}/jobs", json={"prompt": SECRET, "duration": 300}, timeout=10)
    error(answer, 429, "jobs_full")
    assert int(answer.headers["retry-after"]) >= 1
    drop(server, *jobs[:2], *jobs)


def test_a_fetch_that_breaks_may_be_repeated(server: Server) -> None:
    job = submit(server, duration=80)  # more than the buffers of a connection take
    follow(server, job, "done")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(f"GET /jobs/{job}/audio HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        time.sleep(0.5)
    answer = requests.get(f"{server.url}/jobs/{job}/audio", timeout=20)
    assert len(answer.content) == 44 + 2 * 32_000 * 80
    error(requests.get(f"{server.url}/jobs/{job}", timeout=10), 404, "unknown_job")


def test_the_document_has_the_jobs(server: Server) -> None:
    document = requests.get(f"{server.url}/docs.json", timeout=10).json()
    assert set(document["paths"]["/jobs/{id}"]) == {"get", "delete"}
    submitted = document["paths"]["/jobs"]["post"]
    assert submitted["requestBody"] == document["paths"]["/generate"]["post"]["requestBody"]
    assert set(submitted["responses"]) == {"202", "400", "413", "415", "429", "500", "503"}
    assert {each["name"] for each in document["paths"]["/jobs/{id}"]["get"]["parameters"]} == {"id", "wait", "version"}
    assert set(document["paths"]["/jobs/{id}/audio"]["get"]["responses"]) == {"200", "400", "404", "409"}
    fields = document["components"]["schemas"]["Job"]["properties"]
    assert set(fields) == set(Job.model_fields)
    assert all(field.get("description") for name, field in fields.items() if "$ref" not in field)


def test_neither_an_id_nor_a_prompt_is_kept_or_logged(server: Server) -> None:
    job = submit(server, duration=0.2)
    follow(server, job, "done")
    assert requests.get(f"{server.url}/jobs/{job}/audio", timeout=10).status_code == 200
    metrics = requests.get(f"{server.url}/metrics", timeout=10).text
    assert 'endpoint="/jobs/{id}"' in metrics
    kept = [path for path in server.log.parent.rglob("*") if path.is_file()]
    for text in (metrics.encode(), *(path.read_bytes() for path in kept)):
        assert job.encode() not in text
        assert SECRET.encode() not in text
    log = server.log.read_text()
    assert " job seconds=" in log
    assert "Traceback" not in log
    assert "status=499" not in log


def test_a_runner_that_dies_fails_its_jobs_and_the_next_ones_are_made(server: Server) -> None:
    job = submit(server, duration=200)
    follow(server, job, "running")
    server.worker("MusicGenRunner").kill()
    failed = follow(server, job, "failed")[-1]
    assert failed.error
    assert failed.error.code == "unavailable"
    server.wait_until_ready()
    follow(server, submit(server, duration=0.2), "done")


def test_sigterm_finishes_jobs_and_their_clients_fetch_them(server: Server) -> None:
    """The last test: it ends the server."""
    jobs = [submit(server, duration=15) for _ in range(2)]
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    error(requests.post(f"{server.url}/jobs", json={"prompt": SECRET}, timeout=10), 503, "shutting_down")

    def have(job: str) -> int:
        follow(server, job, "done")
        return len(requests.get(f"{server.url}/jobs/{job}/audio", timeout=20).content)

    with ThreadPoolExecutor(2) as clients:
        assert list(clients.map(have, jobs)) == [44 + 2 * 32_000 * 15] * 2
    server.process.wait(timeout=15)
