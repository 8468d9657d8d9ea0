"""The service under `bentoml serve`: real processes, the real engine, the built-in model."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import soundfile

from musicgen_bento.model_catalog import CATALOG
from musicgen_bento.schemas import ErrorBody, ModelList
from tests.support.server import ROOT, Server
from tests.support.wait import wait_until

SECRET = "xylophone-of-the-hidden-garden"
SLOTS, QUEUE, LONGEST = 2, 3, 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with Server(folder, max_slots=SLOTS, max_queue=QUEUE, max_duration=LONGEST, drain_seconds=60) as server:
        yield server


def error(response: requests.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    ErrorBody.model_validate(response.json())
    detail: dict[str, Any] = response.json()["error"]
    assert detail["code"] == code
    return detail


def has_free_capacity(server: Server) -> bool:
    """Return whether the slots and the queue are empty: they accept as many short clips as they have capacity."""
    with ThreadPoolExecutor(SLOTS + QUEUE) as clients:
        clips = [clients.submit(server.generate, duration=0.1) for _ in range(SLOTS + QUEUE)]
        return all(clip.result().status_code == 200 for clip in clips)


def disconnect_clients(server: Server, count: int, after: float) -> None:
    """Request long clips, and close the connections `after` seconds later."""
    body = b'{"prompt": "x", "duration": 60}'
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(count)]
    for client in clients:
        client.sendall(head.encode() + body)
    time.sleep(after)
    for client in clients:
        client.close()


def test_clip_is_a_wav_of_the_requested_duration(server: Server) -> None:
    response = server.generate(prompt=SECRET, duration=1.5, seed=3)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "audio/wav"
    names = ("x-seed", "x-model", "x-audio-sample-rate", "x-audio-channels", "x-audio-duration")
    assert [response.headers[name] for name in names] == ["3", "demo", "32000", "1", "1.500"]
    assert len(response.headers["x-request-id"]) == 8
    audio, rate = soundfile.read(io.BytesIO(response.content))
    assert (rate, len(audio), soundfile.info(io.BytesIO(response.content)).subtype) == (32_000, 48_000, "PCM_16")
    assert server.generate(prompt=SECRET, duration=1.5, seed=3).content == response.content


def test_random_seed_is_returned(server: Server) -> None:
    one, other = server.generate(duration=0.2), server.generate(duration=0.2)
    assert one.headers["x-seed"] != other.headers["x-seed"]
    again = server.generate(duration=0.2, seed=int(one.headers["x-seed"]))
    assert again.content == one.content


def test_get_models_equals_post_list_models(server: Server) -> None:
    response = requests.get(f"{server.url}/models", timeout=10)
    models = ModelList.model_validate(response.json()).models
    assert [model.id for model in models] == [card.id for card in CATALOG]
    [demo] = [model for model in models if model.default]
    assert (demo.id, demo.state) == ("demo", "loaded")
    posted = requests.post(f"{server.url}/list_models", json={}, timeout=10)
    assert posted.json() == response.json()


def test_api_document_describes_all_fields_and_responses(server: Server) -> None:
    document = requests.get(f"{server.url}/docs.json", timeout=10).json()
    assert {"/generate", "/list_models"} <= set(document["paths"])
    for path in ("/generate", "/list_models"):
        assert document["paths"][path]["post"]["description"]
    fields = document["components"]["schemas"]["GenerationRequest"]["properties"]
    assert all(field.get("description") for field in fields.values())
    assert (fields["duration"]["minimum"], fields["duration"]["maximum"]) == (0.1, LONGEST)
    assert fields["prompt"]["examples"]
    response = document["paths"]["/generate"]["post"]["responses"]["200"]
    assert "audio/wav" in response["content"]
    assert "X-Seed" in response["headers"]
    error_response = document["paths"]["/generate"]["post"]["responses"]["429"]
    assert error_response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
    text = json.dumps(document)
    assert all(name in document["components"]["schemas"] for name in re.findall(r"#/components/schemas/(\w+)", text))


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"prompt": SECRET, "duration": LONGEST + 1}, "invalid", "duration"),
        ({"prompt": SECRET, "duration": "long"}, "invalid", "duration"),
        ({"prompt": SECRET, "model": "facebook/nothing"}, "unknown_model", "model"),
        ({"prompt": SECRET, "tempo": 120}, "invalid", "tempo"),
        ({"prompt": SECRET + "\0"}, "invalid", "prompt"),
        ({"prompt": f"{SECRET} " * 75}, "invalid", "prompt"),  # too many T5 tokens
        ({"duration": 1}, "invalid", "prompt"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_invalid_request_is_400_with_its_field(server: Server, body: dict[str, Any], code: str, field: str) -> None:
    response = requests.post(f"{server.url}/generate", json=body, timeout=20)
    assert error(response, 400, code)["field"] == field
    assert SECRET not in response.text


def test_errors_of_bentoml_and_starlette_have_the_same_form(server: Server) -> None:
    error(requests.get(f"{server.url}/{SECRET}", timeout=10), 404, "not_found")
    error(requests.get(f"{server.url}/generate", timeout=10), 405, "method_not_allowed")
    pickle = {"content-type": "application/vnd.bentoml+pickle"}
    error(requests.post(f"{server.url}/generate", b"x", headers=pickle, timeout=10), 415, "unsupported_media_type")
    plain = {"content-type": "application/json"}
    error(requests.post(f"{server.url}/generate", b" " * (8 << 20), headers=plain, timeout=10), 413, "body_too_large")
    chunks = (b" " * 65536 for _ in range(200))
    error(requests.post(f"{server.url}/generate", chunks, headers=plain, timeout=10), 413, "body_too_large")


def test_full_queue_is_429_with_retry_after(server: Server) -> None:
    with ThreadPoolExecutor(16) as clients:
        responses = [future.result() for future in [clients.submit(server.generate, duration=1) for _ in range(16)]]
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= SLOTS + QUEUE
    for response in responses:
        if response.status_code == 429:
            error(response, 429, "queue_full")
            assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("after", [0.0, 0.5])
def test_disconnected_clients_free_their_slots_within_a_second(server: Server, after: float) -> None:
    lines = server.log.read_text().count("status=499")
    disconnect_clients(server, SLOTS + QUEUE, after)
    wait_until(lambda: server.log.read_text().count("status=499") >= lines + SLOTS + QUEUE, 5)
    time.sleep(1)
    assert has_free_capacity(server)


def test_long_clip_survives_150_other_calls(server: Server) -> None:
    """By default BentoML closes its connection to the runner, with all running calls, after 100 requests."""
    with ThreadPoolExecutor(1) as clients:
        long = clients.submit(server.generate, duration=60)
        session = requests.Session()
        for path in ("readyz", "readyz", "models") * 50:
            assert session.get(f"{server.url}/{path}", timeout=10).status_code == 200
        assert not long.done()
        assert long.result().status_code == 200


def test_only_the_http_process_and_the_supervisor_listen(server: Server) -> None:
    """The runner listens on a unix socket, BentoML's supervisor on two control ports of the loopback interface."""
    inodes = set()
    for pid in (server.process.pid, *(process.pid for process in server.child_processes())):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry) if entry.is_symlink() else ""
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    listening = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        cells = line.split()
        if cells[3] == "0A" and cells[9] in inodes:
            listening.append(cells[1])
    assert all(address.startswith("0100007F:") for address in listening)
    assert f"0100007F:{server.port:04X}" in listening


def test_http_process_does_not_import_torch(server: Server) -> None:
    assert "torch" not in Path(f"/proc/{server.worker_process('MusicGenService').pid}/maps").read_text()
    assert "torch" in Path(f"/proc/{server.worker_process('MusicGenRunner').pid}/maps").read_text()


def test_log_has_one_line_per_request_without_its_prompt(server: Server) -> None:
    response = server.generate(prompt=SECRET, duration=0.5)
    request_id = response.headers["x-request-id"]
    wait_until(lambda: f"id={request_id} " in server.log.read_text(), 2)
    lines = [line for line in server.log.read_text().splitlines() if f"id={request_id} " in line]
    assert len(lines) == 1
    assert "POST /generate model=demo duration=0.5 seconds=" in lines[0]
    assert "status=200" in lines[0]
    log = server.log.read_text()
    assert SECRET not in log
    assert "Traceback" not in log
    assert "status=500" not in log
    metrics = requests.get(f"{server.url}/metrics", timeout=10).text
    assert SECRET not in metrics
    files_with_prompt = [
        path for path in server.log.parent.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert files_with_prompt == []


def test_hanging_runner_does_not_block_the_http_process(server: Server) -> None:
    """The socket of a suspended runner still accepts connections, so only a time limit detects it."""
    runner = server.worker_process("MusicGenRunner")
    runner.suspend()
    try:
        lines = server.log.read_text().count("status=499")
        with pytest.raises(requests.Timeout):
            server.generate(duration=0.2, timeout=0.5)
        wait_until(lambda: server.log.read_text().count("status=499") > lines, 6)
        error(requests.get(f"{server.url}/models", timeout=20), 503, "unavailable")
        error(requests.get(f"{server.url}/readyz", timeout=3), 503, "unavailable")
    finally:
        runner.resume()
    wait_until(lambda: has_free_capacity(server), 10)


def test_killed_runner_is_503_and_is_restarted(server: Server) -> None:
    with ThreadPoolExecutor(1) as clients:
        interrupted = clients.submit(server.generate, duration=LONGEST)
        time.sleep(1)
        server.worker_process("MusicGenRunner").kill()
        response = interrupted.result(timeout=10)
    error(response, 503, "unavailable")
    assert int(response.headers["retry-after"]) >= 1
    started_at = time.monotonic()
    probe = requests.get(f"{server.url}/readyz", timeout=10)
    error(probe, 503, "unavailable")
    assert time.monotonic() - started_at < 1.5
    server.wait_until_ready()
    assert server.generate(duration=0.2).status_code == 200


def test_sigterm_finishes_running_requests_and_ends_all_processes(server: Server) -> None:
    """This test is the last one, because it ends the server."""
    responses: list[requests.Response] = []
    clients = [
        threading.Thread(target=lambda: responses.append(server.generate(duration=15))) for _ in range(SLOTS + 1)
    ]
    for client in clients:
        client.start()
    time.sleep(1)
    children = server.child_processes()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    error(server.generate(duration=0.2), 503, "shutting_down")
    error(requests.get(f"{server.url}/readyz", timeout=5), 503, "shutting_down")
    for client in clients:
        client.join(timeout=100)
    assert [response.status_code for response in responses] == [200] * (SLOTS + 1)
    assert {len(response.content) for response in responses} == {44 + 2 * 32_000 * 15}
    server.process.wait(timeout=15)
    wait_until(lambda: not any(process.is_running() for process in children), 5)


def test_server_is_not_ready_if_a_preloaded_model_cannot_be_loaded(tmp_path: Path) -> None:
    """It runs other models. When its drain expires, a running request gets an error, not a truncated clip."""
    server = Server(tmp_path, preload="demo,facebook/musicgen-small", drain_seconds=1)
    server.start()
    try:
        wait_until(lambda: "HF_HUB" in readiness_text(server) or "musicgen-small" in readiness_text(server), 60)
        error(requests.get(f"{server.url}/readyz", timeout=5), 503, "unavailable")
        assert requests.get(f"{server.url}/livez", timeout=5).status_code == 200
        with ThreadPoolExecutor(1) as clients:
            long = clients.submit(server.generate, duration=250)
            wait_until(lambda: server.slots_in_use() == 1)  # the built-in model may still be loading
            server.process.send_signal(signal.SIGTERM)
            error(long.result(timeout=10), 503, "shutting_down")
        server.process.wait(timeout=15)
    finally:
        server.stop()


def readiness_text(server: Server) -> str:
    try:
        return requests.get(f"{server.url}/readyz", timeout=5).text
    except requests.RequestException:
        return ""


def test_import_of_the_service_needs_no_torch_and_disables_tracking() -> None:
    code = (
        "import musicgen_bento.server.service, os, sys\n"
        "print('torch' in sys.modules, os.environ['BENTOML_DO_NOT_TRACK'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("BENTOML_", "HF_", "MUSICGEN_"))
    }
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "True", "1"]
