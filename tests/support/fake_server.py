"""A server that follows a script, for what the real one cannot be made to do: refuse, fall silent, drop, talk nonsense.

Where the script says nothing it keeps the jobs' contract: a job is queued, runs, is done, is fetched.
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


def wav(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(int(seconds * 32_000), np.float32), 32_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


WAV = wav()


@dataclass(frozen=True)
class Reply:
    """One answer of the script. `after` waits for an event or that many seconds; `cut` breaks off after those bytes."""

    status: int = 200
    body: bytes | dict[str, Any] = b""
    headers: dict[str, str] = field(default_factory=dict)
    after: threading.Event | float = 0.0
    cut: int | None = None


DROP = Reply(cut=-1)  # the connection closes without a byte


def error(status: int, code: str, *, field: str | None = None, retry_after: str | None = None) -> Reply:
    body = {"error": {"code": code, "message": f"It is {code}.", "hint": "Do better.", "field": field}}
    return Reply(status, body, {"Retry-After": retry_after} if retry_after else {})


def job(state: str = "running", version: int = 1, **rest: Any) -> dict[str, Any]:
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
        **rest,
    }


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


class StandIn:
    """Answers while the block lasts. `script` holds a list of replies for "METHOD /path"; a job's id is written ID."""

    def __init__(self, **script: list[Reply]) -> None:
        self.requests: list[Request] = []
        self._script = defaultdict(deque, {name: deque(replies) for name, replies in script.items()})
        self._jobs: dict[str, Any] = {}
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                stand_in._serve(self)

            do_GET = do_POST = do_DELETE = do

            def log_message(self, *_: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients leave; that is the point
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()

    def calls(self) -> list[str]:
        """What was asked, in order: `post`, `get`, `audio`, `stream`, `delete`, `models`."""
        return [_name(request.method, request.path) for request in self.requests]

    def posted(self) -> list[Any]:
        """The bodies of the jobs."""
        return [request.body for request in self.requests if request.path == "/jobs"]

    def _serve(self, handler: Any) -> None:
        parts = urlsplit(handler.path)
        sent = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = json.loads(sent) if sent else None
        request = Request(handler.command, parts.path, query, body, dict(handler.headers))
        self.requests.append(request)
        script = self._script[_name(request.method, request.path)]
        self._answer(handler, script.popleft() if script else self._contract(request))

    def _contract(self, request: Request) -> Reply:
        match _name(request.method, request.path):
            case "post":
                self._jobs = job("queued", position=1, seed=request.body["seed"])
                return Reply(202, self._jobs, {"Location": "/jobs/j%2F1"})
            case "get":
                state = {"queued": "running", "running": "done"}[self._jobs["state"]]
                made = {"running": 0.2, "done": 0.5}[state]
                more = {"state": state, "audio_seconds": made, "position": None}
                self._jobs = {**self._jobs, **more, "version": self._jobs["version"] + 1}
                return Reply(200, self._jobs)
            case "audio" | "stream":
                return Reply(200, WAV, audio_headers(self._jobs["seed"]))
            case "delete":
                return Reply(204)
            case _:
                return error(404, "not_found")

    @staticmethod
    def _answer(handler: Any, reply: Reply) -> None:
        if isinstance(reply.after, threading.Event):
            reply.after.wait(10)
        else:
            threading.Event().wait(reply.after)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        if reply.cut == -1:
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.status != 204:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: reply.cut])
        handler.close_connection = reply.cut is not None


def audio_headers(seed: int = 1) -> dict[str, str]:
    return {
        "Content-Type": "audio/wav",
        "X-Seed": str(seed),
        "X-Model": "caf%C3%A9",
        "X-Audio-Sample-Rate": "32000",
        "X-Audio-Channels": "1",
        "X-Audio-Duration": "0.500",
    }


def _name(method: str, path: str) -> str:
    if path == "/models":
        return "models"
    if re.fullmatch("/jobs/j%2F1/audio", path):
        return "audio"
    if re.fullmatch("/jobs/j%2F1/stream", path):
        return "stream"
    return method.lower()
