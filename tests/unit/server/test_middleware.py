"""The middleware, the errors and the page, around a small app that stands in for BentoML's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from musicgen_bento.errors import QueueFull, Unavailable
from musicgen_bento.schemas import ErrorBody, GenerationRequest, ModelList
from musicgen_bento.server import middleware, routes
from musicgen_bento.server.jobs import Jobs
from musicgen_bento.server.middleware import Middleware, PathNormalizer
from musicgen_bento.server.request_body import MAX_BODY
from musicgen_bento.server.request_context import ResponseAborted, exchange, refuse
from musicgen_bento.server.shutdown import Drain, InFlight

SECRET = "a secret prompt"


async def generate(request: Request) -> Response:
    asked = GenerationRequest.model_validate_json(await request.body())
    match asked.model:
        case "full":
            return refuse(QueueFull("The queue is full.", retry_after=2.1))
        case "bento-400":
            return JSONResponse([{"error": SECRET}], status_code=400)
        case "bento-422":
            return JSONResponse({"error": "1 validation error", "detail": [{"input": SECRET}]}, status_code=422)
        case "bento-500":
            return JSONResponse({"error": SECRET}, status_code=500)
        case "bento-503":
            return PlainTextResponse(SECRET, status_code=503)
        case "raise":
            raise RuntimeError(SECRET)
        case "break":
            return StreamingResponse(breaking())
    exchange().model = "demo"
    exchange().duration = asked.duration
    return Response(b"music", headers={"X-Seed": "7"})


async def breaking() -> AsyncIterator[bytes]:
    yield b"half"
    raise RuntimeError(SECRET)


async def list_models(_: Request) -> Response:
    return JSONResponse({"models": []})


async def no_models() -> ModelList:
    raise Unavailable("The runner is gone.", retry_after=9)


def no_jobs() -> Jobs:
    raise Unavailable("The runner is gone.")


def stack(drain: Drain | None = None) -> PathNormalizer:
    listed = [
        Route("/generate", generate, methods=["POST"]),
        Route("/list_models", list_models, methods=["POST"]),
        *routes.build(no_models, no_jobs, GenerationRequest).routes,
    ]
    inner = Middleware(
        Starlette(routes=listed),
        bodies={"/generate": GenerationRequest, "/list_models": None},
        drain=drain or Drain(1, lambda: False),
        work=InFlight(),
    )
    return PathNormalizer(inner, frozenset(("/", "/app.js", "/style.css", "/models", "/generate", "/list_models")))


@pytest.fixture
def client() -> TestClient:
    return TestClient(stack(), raise_server_exceptions=False)


def error(response: Any, status: int, code: str) -> dict[str, Any]:
    """The error of an answer, which must be of the one shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    ErrorBody.model_validate(body)
    assert body["error"]["code"] == code
    assert SECRET not in response.text
    return dict(body["error"])


def test_a_good_request_passes_and_is_logged_without_its_prompt(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "bentoml.musicgen")
    response = client.post("/generate", json={"prompt": SECRET, "duration": 2})
    assert (response.status_code, response.content, response.headers["x-seed"]) == (200, b"music", "7")
    [record] = [record for record in caplog.records if record.name == "bentoml.musicgen"]
    line = record.getMessage()
    assert f"id={response.headers['x-request-id']} POST /generate model=demo duration=2 seconds=" in line
    assert line.endswith("status=200")
    assert SECRET not in caplog.text


DEEP = 100_000
BAD_BODIES: dict[str, tuple[str | bytes, str | None]] = {
    "missing": ('{"duration": 1}', "prompt"),
    "empty prompt": ('{"prompt": ""}', "prompt"),
    "blank prompt": ('{"prompt": " \\n "}', "prompt"),
    "number for text": ('{"prompt": 7}', "prompt"),
    "long prompt": (json.dumps({"prompt": SECRET * 200}), "prompt"),
    "null byte": (json.dumps({"prompt": SECRET + "\0"}), "prompt"),
    "text for number": (json.dumps({"prompt": "x", "duration": SECRET}), "duration"),
    "null for number": ('{"prompt": "x", "duration": null}', "duration"),
    "too short": ('{"prompt": "x", "duration": 0}', "duration"),
    "NaN": ('{"prompt": "x", "duration": NaN}', "duration"),
    "Infinity": ('{"prompt": "x", "temperature": Infinity}', "temperature"),
    "too large a number": ('{"prompt": "x", "cfg_coef": 1e999}', "cfg_coef"),
    "negative seed": ('{"prompt": "x", "seed": -1}', "seed"),
    "seed too large": ('{"prompt": "x", "seed": 4294967296}', "seed"),
    "half a seed": ('{"prompt": "x", "seed": 1.5}', "seed"),
    "no such choice": (json.dumps({"prompt": "x", "normalize": SECRET}), "normalize"),
    "unknown field": (json.dumps({"prompt": "x", "promt": SECRET}), "promt"),
    "twice": (f'{{"prompt": "x", "prompt": "{SECRET}"}}', "prompt"),
    "array": (json.dumps([SECRET]), None),
    "null": ("null", None),
    "empty": ("", None),
    "broken": (f'{{"prompt": "{SECRET}', None),
    "raw null byte": (b'{"prompt": "\0"}', None),
    "not UTF-8": (b'{"prompt": "\xff"}', None),
    "lone surrogate": ('{"prompt": "\\ud800"}', None),
    "deep array": ("[" * DEEP, None),
    "deep object": ('{"a":' * DEEP, None),
    "deep in a field": ('{"prompt":' + "[" * DEEP + "]" * DEEP + "}", None),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_400_with_a_hint_and_its_field(
    client: TestClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    body, field = BAD_BODIES[name]
    response = client.post("/generate", content=body, headers={"content-type": "application/json"})
    found = error(response, 400, "invalid")
    assert found["field"] == field
    assert found["message"]
    assert found["hint"]
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/vnd.bentoml+pickle"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
    ids=str,
)
def test_only_plain_json_is_taken(client: TestClient, headers: dict[str, str]) -> None:
    error(client.post("/generate", content=b'{"prompt": "x"}', headers=headers), 415, "unsupported_media_type")


def test_json_may_name_its_charset(client: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/generate", content=b'{"prompt": "x"}', headers=headers).status_code == 200


def test_a_large_body_is_refused_by_its_length_alone(client: TestClient) -> None:
    headers = {"content-type": "application/json", "content-length": str(MAX_BODY + 1)}
    error(client.post("/generate", content=b"{}", headers=headers), 413, "too_large")


def test_a_body_without_a_length_is_counted_as_it_comes() -> None:
    sent: list[Any] = []
    given = 0

    async def receive() -> Any:
        nonlocal given
        given += 1
        return {"type": "http.request", "body": b" " * 65536, "more_body": given < 100_000}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            sent.append((message["status"], given))

    headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers, "query_string": b""}
    asyncio.run(stack()(scope, receive, send))
    assert sent == [(413, MAX_BODY // 65536 + 1)]


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.05)
    sent: list[Any] = []

    async def receive() -> Any:
        if not sent:
            sent.append("begun")
            return {"type": "http.request", "body": b"{", "more_body": True}
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers, "query_string": b""}
    asyncio.run(stack()(scope, receive, send))
    assert sent[1]["status"] == 408
    assert (b"connection", b"close") in sent[1]["headers"]
    assert json.loads(sent[2]["body"])["error"]["code"] == "too_slow"


def test_a_websocket_is_refused_before_anyone_counts_its_path() -> None:
    async def app(*_: Any) -> None:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message["type"])

    sent: list[str] = []
    asyncio.run(PathNormalizer(app, frozenset())({"type": "websocket", "path": f"/{SECRET}"}, app, send))
    assert sent == ["websocket.close"]


def test_a_body_of_just_the_limit_is_read(client: TestClient) -> None:
    body = b'{"prompt": "x"}'.ljust(MAX_BODY)
    assert client.post("/generate", content=body, headers={"content-type": "application/json"}).status_code == 200


@pytest.mark.parametrize(
    ("model", "status", "code", "retry"),
    [
        ("full", 429, "queue_full", "3"),
        ("bento-400", 400, "invalid", None),
        ("bento-422", 400, "invalid", None),
        ("bento-500", 500, "failed", None),
        ("bento-503", 503, "unavailable", "1"),
        ("raise", 500, "failed", None),
    ],
)
def test_every_error_has_the_one_shape(
    client: TestClient, model: str, status: int, code: str, retry: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    response = client.post("/generate", json={"prompt": SECRET, "model": model})
    found = error(response, status, code)
    assert response.headers.get("retry-after") == retry
    if status == 500:
        assert response.headers["x-request-id"] in found["message"]
    assert SECRET not in caplog.text


def test_an_unforeseen_exception_is_logged_by_its_place(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    client.post("/generate", json={"prompt": SECRET, "model": "raise"})
    assert "RuntimeError at" in caplog.text
    assert "test_app.py:" in caplog.text
    assert SECRET not in caplog.text


def test_an_answer_that_fails_half_way_breaks_and_does_not_end_as_200() -> None:
    with pytest.raises(ResponseAborted):
        TestClient(stack()).post("/generate", json={"prompt": SECRET, "model": "break"})


@pytest.mark.parametrize("path", ["/nothing", "/generate/more", f"/{SECRET}", "/docs/", "/assets/x"])
def test_an_unknown_path_is_404_and_is_not_repeated(
    client: TestClient, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "bentoml.musicgen")
    error(client.get(path), 404, "not_found")
    error(client.post(path, content=b"x"), 404, "not_found")
    assert path not in [record.getMessage() for record in caplog.records if record.name == "bentoml.musicgen"]
    assert SECRET not in "".join(record.getMessage() for record in caplog.records if record.name == "bentoml.musicgen")


def test_the_wrong_method_is_405_and_says_which_is_right(client: TestClient) -> None:
    response = client.get("/generate")
    error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    assert set(client.put("/").headers["allow"].split(", ")) == {"GET", "HEAD"}  # starlette keeps a set


def test_head_has_no_body_and_options_says_what_is_allowed(client: TestClient) -> None:
    assert (client.head("/generate").status_code, client.head("/generate").content) == (405, b"")
    assert (client.head("/").status_code, client.head("/").content) == (200, b"")
    answer = client.options("/generate")
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, "POST", b"")


def test_a_slash_too_many_is_forgiven(client: TestClient) -> None:
    assert client.post("/generate/", json={"prompt": "x"}).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{}", b" {} "])
def test_list_models_takes_nothing(client: TestClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert client.post("/list_models", content=body, headers=headers).json() == {"models": []}
    assert client.post("/list_models").status_code == 200
    error(client.post("/list_models", content=b'{"x": 1}', headers=headers), 400, "invalid")


def test_a_failure_behind_a_page_has_the_shape_too(client: TestClient) -> None:
    response = client.get("/models")
    error(response, 503, "unavailable")
    assert response.headers["retry-after"] == "9"


def test_new_work_is_refused_while_the_server_drains() -> None:
    drain = Drain(1, lambda: False)
    drain.started = True
    client = TestClient(stack(drain))
    error(client.post("/generate", json={"prompt": "x"}), 503, "shutting_down")
    assert client.get("/").status_code == 200


def test_a_client_that_leaves_cancels_the_work() -> None:
    async def test() -> None:
        cancelled = asyncio.Event()

        async def endless(scope: Any, receive: Any, send: Any) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        messages = iter([{"type": "http.request", "body": b'{"prompt": "x"}'}, {"type": "http.disconnect"}])
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0.01)
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        work = InFlight()
        middleware = Middleware(endless, {"/generate": GenerationRequest}, Drain(1, lambda: False), work)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"15")]
        scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers}
        await asyncio.wait_for(middleware(scope, receive, send), 2)
        assert cancelled.is_set()
        assert sent[0]["status"] == 499  # nobody hears it, but a middleware that says nothing hangs in BentoML
        assert not work

    asyncio.run(test())


def test_work_that_outlasts_the_drain_is_503() -> None:
    drain = Drain(1, lambda: False)

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        drain.expired.set()
        await asyncio.sleep(60)

    client = TestClient(Middleware(endless, {"/generate": GenerationRequest}, drain, InFlight()))
    error(client.post("/generate", json={"prompt": SECRET}), 503, "shutting_down")


def test_the_page_is_ours_alone(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    for text in (page.text, client.get("/app.js").text, client.get("/style.css").text):
        assert "http://" not in text
        assert "https://" not in text
    assert "<script>" not in page.text
    assert "style=" not in page.text
    assert "onclick" not in page.text
    for name in ("prompt", "model", "duration"):
        assert f'<label for="{name}">' in page.text
