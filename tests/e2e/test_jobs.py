"""Jobs under `bentoml serve`, with the built-in model."""

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
    response = requests.post(f"{server.url}/jobs", json={"prompt": SECRET, **body}, timeout=20)
    assert response.status_code == 202, response.text
    return Job.model_validate(response.json()).id


def poll(server: Server, job: str, **query: Any) -> Job:
    response = requests.get(f"{server.url}/jobs/{job}", params=query, timeout=60)
    assert response.status_code == 200, response.text
    return Job.model_validate(response.json())


def poll_until(server: Server, job: str, *states: str) -> list[Job]:
    """Poll a job until it is in one of the states, and return all responses."""
    views = [poll(server, job)]
    while views[-1].state not in states:
        assert views[-1].state not in ("done", "failed", "cancelled"), views[-1]
        views.append(poll(server, job, wait=30, version=views[-1].version))
    return views


def error(response: requests.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert ErrorBody.model_validate(response.json()).error.code == code


def delete(server: Server, *jobs: str) -> None:
    for job in jobs:
        assert requests.delete(f"{server.url}/jobs/{job}", timeout=10).status_code == 204


def test_job_audio_equals_generate_and_progress_only_grows(server: Server) -> None:
    job = submit(server, duration=20, seed=3)
    views = poll_until(server, job, "done")
    audio_seconds = [view.audio_seconds for view in views]
    assert audio_seconds == sorted(audio_seconds)
    assert audio_seconds[-1] == 20
    assert len({view.audio_seconds for view in views if view.state == "running"}) > 2
    response = requests.get(f"{server.url}/jobs/{job}/audio", timeout=20)
    whole = server.generate(prompt=SECRET, duration=20, seed=3)
    assert response.content == whole.content
    names = ("content-type", "x-seed", "x-model", "x-audio-sample-rate", "x-audio-channels", "x-audio-duration")
    assert [response.headers[name] for name in names] == [whole.headers[name] for name in names]
    error(requests.get(f"{server.url}/jobs/{job}/audio", timeout=10), 404, "unknown_job")


def test_queued_jobs_report_their_position(server: Server) -> None:
    first, second, third = (submit(server, duration=15, seed=seed) for seed in range(3))
    assert poll_until(server, third, "queued")[-1].position in (None, 1, 2)
    with ThreadPoolExecutor(3) as clients:
        histories = list(clients.map(lambda job: poll_until(server, job, "done"), (first, second, third)))
    positions = [view.position for view in histories[2] if view.position]
    assert positions == sorted(positions, reverse=True)
    assert positions[0] == 2
    for job in (first, second, third):
        wav = requests.get(f"{server.url}/jobs/{job}/audio", timeout=20).content
        assert soundfile.info(io.BytesIO(wav)).frames == 15 * 32_000


def test_cancelled_job_frees_its_slot(server: Server) -> None:
    running, queued = submit(server, duration=200), submit(server, duration=0.2)
    poll_until(server, running, "running")
    assert poll(server, queued).state == "queued"
    delete(server, running)
    assert poll(server, running).state == "cancelled"
    assert poll_until(server, queued, "done")[-1].audio_seconds == 0.2
    delete(server, running, queued)


def test_jobs_refuse_the_requests_that_generate_refuses(server: Server) -> None:
    url = f"{server.url}/jobs"
    error(requests.post(url, json={"prompt": SECRET, "duration": 601}, timeout=10), 400, "invalid")
    error(requests.post(url, json={"prompt": SECRET, "model": "unknown/model"}, timeout=10), 400, "unknown_model")
    error(requests.post(url, json={"prompt": f"{SECRET} " * 75}, timeout=10), 400, "invalid")  # too many T5 tokens
    error(requests.post(url, data="x", timeout=10), 415, "unsupported_media_type")
    error(requests.post(url, json={"prompt": "x" * (2 << 20)}, timeout=10), 413, "body_too_large")
    error(requests.post(url, json={"prompt": SECRET, "duration": 500}, timeout=10), 400, "invalid")  # over 24 MB


def test_full_queue_and_full_storage_are_429(server: Server) -> None:
    jobs = [submit(server, duration=60) for _ in range(4)]
    response = requests.post(f"{server.url}/jobs", json={"prompt": SECRET, "duration": 1}, timeout=10)
    error(response, 429, "queue_full")
    delete(server, *jobs[2:])
    response = requests.post(f"{server.url}/jobs", json={"prompt": SECRET, "duration": 300}, timeout=10)
    error(response, 429, "job_storage_full")
    assert int(response.headers["retry-after"]) >= 1
    delete(server, *jobs[:2], *jobs)


def test_interrupted_download_can_be_repeated(server: Server) -> None:
    job = submit(server, duration=80)  # larger than the buffers of a connection
    poll_until(server, job, "done")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(f"GET /jobs/{job}/audio HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        time.sleep(0.5)
    response = requests.get(f"{server.url}/jobs/{job}/audio", timeout=20)
    assert len(response.content) == 44 + 2 * 32_000 * 80
    error(requests.get(f"{server.url}/jobs/{job}", timeout=10), 404, "unknown_job")


def test_api_document_has_the_routes_of_jobs(server: Server) -> None:
    document = requests.get(f"{server.url}/docs.json", timeout=10).json()
    assert set(document["paths"]["/jobs/{id}"]) == {"get", "delete"}
    submitted = document["paths"]["/jobs"]["post"]
    assert submitted["requestBody"] == document["paths"]["/generate"]["post"]["requestBody"]
    assert set(submitted["responses"]) == {"202", "400", "413", "415", "429", "500", "503"}
    assert {entry["name"] for entry in document["paths"]["/jobs/{id}"]["get"]["parameters"]} == {
        "id",
        "wait",
        "version",
    }
    assert set(document["paths"]["/jobs/{id}/audio"]["get"]["responses"]) == {"200", "400", "404", "409"}
    fields = document["components"]["schemas"]["Job"]["properties"]
    assert set(fields) == set(Job.model_fields)
    assert all(field.get("description") for name, field in fields.items() if "$ref" not in field)


def test_no_job_id_or_prompt_is_stored_or_logged(server: Server) -> None:
    job = submit(server, duration=0.2)
    poll_until(server, job, "done")
    assert requests.get(f"{server.url}/jobs/{job}/audio", timeout=10).status_code == 200
    metrics = requests.get(f"{server.url}/metrics", timeout=10).text
    assert 'endpoint="/jobs/{id}"' in metrics
    files = [path for path in server.log.parent.rglob("*") if path.is_file()]
    for text in (metrics.encode(), *(path.read_bytes() for path in files)):
        assert job.encode() not in text
        assert SECRET.encode() not in text
    log = server.log.read_text()
    assert " job seconds=" in log
    assert "Traceback" not in log
    assert "status=499" not in log


def test_killed_runner_fails_its_jobs_but_not_later_ones(server: Server) -> None:
    job = submit(server, duration=200)
    poll_until(server, job, "running")
    server.worker_process("MusicGenRunner").kill()
    failed = poll_until(server, job, "failed")[-1]
    assert failed.error
    assert failed.error.code == "unavailable"
    server.wait_until_ready()
    poll_until(server, submit(server, duration=0.2), "done")


def test_sigterm_finishes_jobs_and_waits_for_their_download(server: Server) -> None:
    """This test is the last one, because it ends the server."""
    jobs = [submit(server, duration=15) for _ in range(2)]
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    error(requests.post(f"{server.url}/jobs", json={"prompt": SECRET}, timeout=10), 503, "shutting_down")

    def download_size(job: str) -> int:
        poll_until(server, job, "done")
        return len(requests.get(f"{server.url}/jobs/{job}/audio", timeout=20).content)

    with ThreadPoolExecutor(2) as clients:
        assert list(clients.map(download_size, jobs)) == [44 + 2 * 32_000 * 15] * 2
    server.process.wait(timeout=15)
