"""A fake HTTP server with scripted replies, for failures that the real server cannot be made to show.

Without a scripted reply it behaves as the job API does: a job is queued, running and done, and its audio is available.
"""

from __future__ import annotations

import io
import json
import re
import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import soundfile

from musicgen_bento.client import MusicGenClient


def _silent_wav(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(int(seconds * 32_000), np.float32), 32_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


WAV = _silent_wav(seconds=0.5)
CLIP_CALLS = ["post", "get", "get", "audio", "delete"]  # the calls for a clip without failures


@dataclass(frozen=True)
class Reply:
    """A scripted response.

    Attributes:
        status: the HTTP status.
        body: bytes, or an object that is sent as JSON.
        headers: HTTP headers.
        delay: an event to wait for before the response, or a number of seconds.
        cut_at: close the connection after this number of bytes of the body; -1 sends no response at all.
    """

    status: int = 200
    body: bytes | dict[str, Any] = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: threading.Event | float = 0.0
    cut_at: int | None = None


DROP = Reply(cut_at=-1)


def error_reply(status: int, code: str, *, field: str | None = None, retry_after: str | None = None) -> Reply:
    """Return an error response of the service."""
    body = {"error": {"code": code, "message": f"It is {code}.", "hint": "Do better.", "field": field}}
    return Reply(status, body, {"Retry-After": retry_after} if retry_after else {})


def job_body(state: str = "running", version: int = 1, **fields: Any) -> dict[str, Any]:
    """Return the JSON of a job."""
    return {
        "id": "j/1",
        "state": state,
        "version": version,
        "position": None,
        "model": "demo",
        "seed": 1,
        "duration": 0.5,
        "audio_seconds": 0.0,
        "error": None,
        "expires_in": None,
        **fields,
    }


def failed_job_reply(code: str, **fields: Any) -> Reply:
    """Return the response to a poll of a job that failed with an error of this code."""
    error = {"code": code, "message": "It failed.", "hint": "Do better.", "field": None, **fields}
    return Reply(200, job_body("failed", 2, error=error))


@dataclass(frozen=True)
class Request:
    """A request that the server received."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


class FakeServer:
    """The server, running inside a `with` block.

    Args:
        script: the first replies to each kind of call: `post`, `get`, `audio`, `stream`, `delete` or `models`.

    Attributes:
        url: the server's URL.
        requests: all requests in order.
    """

    def __init__(self, **script: list[Reply]) -> None:
        self.requests: list[Request] = []
        self._script = defaultdict(deque, {name: deque(replies) for name, replies in script.items()})
        self._job: dict[str, Any] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                server._serve(self)

            do_GET = do_POST = do_DELETE = do

            def log_message(self, *_: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # tests make clients disconnect
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()

    def calls(self) -> list[str]:
        """Return the kinds of all calls in order: `post`, `get`, `audio`, `stream`, `delete` or `models`."""
        return [_call_kind(request.method, request.path) for request in self.requests]

    def posted_jobs(self) -> list[Any]:
        """Return the bodies of the submitted jobs."""
        return [request.body for request in self.requests if request.path == "/jobs"]

    def _serve(self, handler: Any) -> None:
        parts = urlsplit(handler.path)
        content = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = json.loads(content) if content else None
        request = Request(handler.command, parts.path, query, body, dict(handler.headers))
        self.requests.append(request)
        script = self._script[_call_kind(request.method, request.path)]
        self._send(handler, script.popleft() if script else self._default_reply(request))

    def _default_reply(self, request: Request) -> Reply:
        match _call_kind(request.method, request.path):
            case "post":
                self._job = job_body("queued", position=1, seed=request.body["seed"])
                return Reply(202, self._job, {"Location": "/jobs/j%2F1"})
            case "get":
                state = {"queued": "running", "running": "done"}[self._job["state"]]
                self._job = {
                    **self._job,
                    "state": state,
                    "audio_seconds": {"running": 0.2, "done": 0.5}[state],
                    "position": None,
                    "version": self._job["version"] + 1,
                }
                return Reply(200, self._job)
            case "audio" | "stream":
                return Reply(200, WAV, audio_headers(self._job["seed"]))
            case "delete":
                return Reply(204)
            case _:
                return error_reply(404, "not_found")

    @staticmethod
    def _send(handler: Any, reply: Reply) -> None:
        if isinstance(reply.delay, threading.Event):
            reply.delay.wait(10)
        else:
            threading.Event().wait(reply.delay)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        if reply.cut_at == -1:
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.status != 204:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: reply.cut_at])
        handler.close_connection = reply.cut_at is not None


def audio_headers(seed: int = 1) -> dict[str, str]:
    """Return the headers of a response that carries WAV."""
    return {
        "Content-Type": "audio/wav",
        "X-Seed": str(seed),
        "X-Model": "caf%C3%A9",
        "X-Audio-Sample-Rate": "32000",
        "X-Audio-Channels": "1",
        "X-Audio-Duration": "0.500",
    }


def _call_kind(method: str, path: str) -> str:
    """Return the key of a call in the script."""
    if path == "/models":
        return "models"
    if re.fullmatch("/jobs/j%2F1/audio", path):
        return "audio"
    if re.fullmatch("/jobs/j%2F1/stream", path):
        return "stream"
    return method.lower()


def make_client(server: FakeServer, **options: Any) -> MusicGenClient:
    """Return a client of the fake server."""
    return MusicGenClient(server.url, **options)
