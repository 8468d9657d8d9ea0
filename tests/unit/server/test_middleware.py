"""The middleware, the error responses and the page, around a small app in place of BentoML's."""

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
from musicgen_bento.server import request_body
from musicgen_bento.server.error_responses import ErrorResponse, ResponseAborted
from musicgen_bento.server.jobs import Jobs
from musicgen_bento.server.middleware import Middleware, PathNormalizer
from musicgen_bento.server.request_body import MAX_BODY_BYTES
from musicgen_bento.server.request_context import current_request
from musicgen_bento.server.routes import build_app
from musicgen_bento.server.shutdown import Drain, InFlight

SECRET = "a secret prompt"


async def generate(request: Request) -> Response:
    body = GenerationRequest.model_validate_json(await request.body())
    match body.model:
        case "full":
            response = ErrorResponse(QueueFull("The queue is full.", retry_after=2.1))
            response.headers["Server"] = "BentoML Service"  # BentoML adds this to the response of a handler
            return response
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
        case "fail-later":
            return StreamingResponse(failing_body())
    current_request().model = "demo"
    current_request().duration = body.duration
    return Response(b"audio", headers={"X-Seed": "7"})


async def failing_body() -> AsyncIterator[bytes]:
    yield b"half"
    raise RuntimeError(SECRET)


async def list_models(_: Request) -> Response:
    return JSONResponse({"models": []})


async def no_models() -> ModelList:
    raise Unavailable("The runner is unavailable.", retry_after=9)


def no_jobs() -> Jobs:
    raise Unavailable("The runner is unavailable.")


def build_stack(drain: Drain | None = None) -> PathNormalizer:
    all_routes = [
        Route("/generate", generate, methods=["POST"]),
        Route("/list_models", list_models, methods=["POST"]),
        *build_app(no_models, no_jobs, GenerationRequest).routes,
    ]
    middleware = Middleware(
        Starlette(routes=all_routes),
        bodies={"/generate": GenerationRequest, "/list_models": None},
        drain=drain or Drain(1, lambda: False),
        in_flight=InFlight(),
    )
    return PathNormalizer(middleware, frozenset(("/", "/app.js", "/style.css", "/models", "/generate", "/list_models")))


@pytest.fixture
def client() -> TestClient:
    return TestClient(build_stack(), raise_server_exceptions=False)


def error(response: Any, status: int, code: str) -> dict[str, Any]:
    """Return the error of a response, after a check of its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    ErrorBody.model_validate(body)
    assert body["error"]["code"] == code
    assert SECRET not in response.text
    return dict(body["error"])


def test_valid_request_is_logged_without_its_prompt(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bentoml.musicgen")
    response = client.post("/generate", json={"prompt": SECRET, "duration": 2})
    assert (response.status_code, response.content, response.headers["x-seed"]) == (200, b"audio", "7")
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
def test_invalid_body_is_400_with_a_hint_and_its_field(
    client: TestClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    body, field = BAD_BODIES[name]
    response = client.post("/generate", content=body, headers={"content-type": "application/json"})
    body = error(response, 400, "invalid")
    assert body["field"] == field
    assert body["message"]
    assert body["hint"]
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
def test_only_uncompressed_json_is_accepted(client: TestClient, headers: dict[str, str]) -> None:
    error(client.post("/generate", content=b'{"prompt": "x"}', headers=headers), 415, "unsupported_media_type")


def test_content_type_may_have_a_charset(client: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/generate", content=b'{"prompt": "x"}', headers=headers).status_code == 200


def test_large_body_is_refused_by_its_content_length(client: TestClient) -> None:
    headers = {"content-type": "application/json", "content-length": str(MAX_BODY_BYTES + 1)}
    error(client.post("/generate", content=b"{}", headers=headers), 413, "body_too_large")


def test_body_without_content_length_is_refused_at_the_limit() -> None:
    sent: list[Any] = []
    received = 0

    async def receive() -> Any:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b" " * 65536, "more_body": received < 100_000}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            sent.append((message["status"], received))

    headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers, "query_string": b""}
    asyncio.run(build_stack()(scope, receive, send))
    assert sent == [(413, MAX_BODY_BYTES // 65536 + 1)]


def test_incomplete_body_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.05)
    sent: list[Any] = []

    async def receive() -> Any:
        if not sent:
            sent.append("first chunk")
            return {"type": "http.request", "body": b"{", "more_body": True}
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers, "query_string": b""}
    asyncio.run(build_stack()(scope, receive, send))
    assert sent[1]["status"] == 408
    assert (b"connection", b"close") in sent[1]["headers"]
    assert json.loads(sent[2]["body"])["error"]["code"] == "request_timeout"


def test_websocket_is_closed_before_its_path_is_counted() -> None:
    async def app(*_: Any) -> None:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message["type"])

    sent: list[str] = []
    asyncio.run(PathNormalizer(app, frozenset())({"type": "websocket", "path": f"/{SECRET}"}, app, send))
    assert sent == ["websocket.close"]


def test_body_of_exactly_the_limit_is_accepted(client: TestClient) -> None:
    body = b'{"prompt": "x"}'.ljust(MAX_BODY_BYTES)
    assert client.post("/generate", content=body, headers={"content-type": "application/json"}).status_code == 200


@pytest.mark.parametrize(
    ("model", "status", "code", "retry"),
    [
        ("full", 429, "queue_full", "3"),
        ("bento-400", 400, "invalid", None),
        ("bento-422", 400, "invalid", None),
        ("bento-500", 500, "internal_error", None),
        ("bento-503", 503, "unavailable", "1"),
        ("raise", 500, "internal_error", None),
    ],
)
def test_all_errors_have_the_same_form(
    client: TestClient, model: str, status: int, code: str, retry: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    response = client.post("/generate", json={"prompt": SECRET, "model": model})
    body = error(response, status, code)
    assert response.headers.get("retry-after") == retry
    if status == 500:
        assert response.headers["x-request-id"] in body["message"]
    assert SECRET not in caplog.text


def test_headers_that_bentoml_adds_to_an_error_response_are_not_sent(client: TestClient) -> None:
    response = client.post("/generate", json={"prompt": SECRET, "model": "full"})
    error(response, 429, "queue_full")
    assert set(response.headers) == {"content-length", "content-type", "retry-after", "x-request-id"}


def test_unexpected_exception_is_logged_by_its_location(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    client.post("/generate", json={"prompt": SECRET, "model": "raise"})
    assert "RuntimeError at" in caplog.text
    assert "test_middleware.py:" in caplog.text
    assert SECRET not in caplog.text


def test_response_that_fails_after_its_start_is_aborted() -> None:
    with pytest.raises(ResponseAborted):
        TestClient(build_stack()).post("/generate", json={"prompt": SECRET, "model": "fail-later"})


@pytest.mark.parametrize("path", ["/nothing", "/generate/more", f"/{SECRET}", "/docs/", "/assets/x"])
def test_unknown_path_is_404_and_is_not_logged(client: TestClient, path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bentoml.musicgen")
    error(client.get(path), 404, "not_found")
    error(client.post(path, content=b"x"), 404, "not_found")
    assert path not in [record.getMessage() for record in caplog.records if record.name == "bentoml.musicgen"]
    assert SECRET not in "".join(record.getMessage() for record in caplog.records if record.name == "bentoml.musicgen")


def test_wrong_method_is_405_with_an_allow_header(client: TestClient) -> None:
    response = client.get("/generate")
    error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    assert set(client.put("/").headers["allow"].split(", ")) == {"GET", "HEAD"}  # Starlette has a set


def test_head_has_no_body_and_options_returns_the_allowed_methods(client: TestClient) -> None:
    assert (client.head("/generate").status_code, client.head("/generate").content) == (405, b"")
    assert (client.head("/").status_code, client.head("/").content) == (200, b"")
    response = client.options("/generate")
    assert (response.status_code, response.headers["allow"], response.content) == (204, "POST", b"")


def test_extra_slash_at_the_end_is_ignored(client: TestClient) -> None:
    assert client.post("/generate/", json={"prompt": "x"}).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{}", b" {} "])
def test_list_models_has_no_fields(client: TestClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert client.post("/list_models", content=body, headers=headers).json() == {"models": []}
    assert client.post("/list_models").status_code == 200
    error(client.post("/list_models", content=b'{"x": 1}', headers=headers), 400, "invalid")


def test_errors_of_get_routes_have_the_same_form(client: TestClient) -> None:
    response = client.get("/models")
    error(response, 503, "unavailable")
    assert response.headers["retry-after"] == "9"


def test_new_requests_are_refused_while_the_server_drains() -> None:
    drain = Drain(1, lambda: False)
    drain.started = True
    client = TestClient(build_stack(drain))
    error(client.post("/generate", json={"prompt": "x"}), 503, "shutting_down")
    assert client.get("/").status_code == 200


def test_disconnect_cancels_the_app() -> None:
    async def test() -> None:
        cancelled = asyncio.Event()

        async def endless(scope: Any, receive: Any, send: Any) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        incoming = iter([{"type": "http.request", "body": b'{"prompt": "x"}'}, {"type": "http.disconnect"}])
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0.01)
            return next(incoming)

        async def send(message: Any) -> None:
            sent.append(message)

        in_flight = InFlight()
        middleware = Middleware(endless, {"/generate": GenerationRequest}, Drain(1, lambda: False), in_flight)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"15")]
        scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers}
        await asyncio.wait_for(middleware(scope, receive, send), 2)
        assert cancelled.is_set()
        assert sent[0]["status"] == 499  # BentoML hangs if a middleware sends no response
        assert not in_flight

    asyncio.run(test())


def test_request_that_runs_when_the_drain_expires_is_503() -> None:
    drain = Drain(1, lambda: False)

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        drain.expired.set()
        await asyncio.sleep(60)

    client = TestClient(Middleware(endless, {"/generate": GenerationRequest}, drain, InFlight()))
    error(client.post("/generate", json={"prompt": SECRET}), 503, "shutting_down")


def test_page_loads_nothing_from_other_hosts(client: TestClient) -> None:
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
