"""A stand-in for the hub, for the hub's real client: repositories as folders."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_checkpoints import Recipe, write

REPO = "facebook/musicgen-small"
SHA = "0" * 40
# Large enough for a download to be seen, and to be kept in part: the client keeps pieces of 10 MB.
LARGE = Recipe(dim=256, layers=6)


class Hub(ThreadingHTTPServer):
    """Repositories as folders. `cut` breaks a file off after so many bytes; `pause` slows all down."""

    def __init__(self, home: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.home = home
        self.cut: dict[str, int] = {}
        self.pause = 0.0
        self.fetched: list[tuple[str, int]] = []  # file and first byte
        self.digests: dict[Path, str] = {}

    def digest(self, path: Path) -> str:
        if path not in self.digests:
            self.digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self.digests[path]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def file(self) -> Path | None:
        found = re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", self.path.partition("?")[0])
        path = self.server.home / found[1] / found[2] if found else None
        return path if path and path.is_file() else None

    def head(self, begin: int = 0) -> Path | None:
        path = self.file()
        if path is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        size = path.stat().st_size
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("ETag", f'"{self.server.digest(path)}"')
        self.send_header("Content-Length", str(size - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.end_headers()
        return path

    def do_HEAD(self) -> None:
        self.head()

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            self.api(self.path.removeprefix("/api/models/").partition("?")[0])
            return
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if (path := self.head(begin)) is None:
            return
        self.server.fetched.append((path.name, begin))
        content = path.read_bytes()
        end = min(len(content), begin + self.server.cut.get(path.name, len(content)))
        for at in range(begin, end, 1_000_000):
            self.wfile.write(content[at : min(end, at + 1_000_000)])
            time.sleep(self.server.pause)

    def api(self, what: str) -> None:
        repo = re.sub(r"/(revision|tree)/.*", "", what)
        names = [path.name for path in (self.server.home / repo).iterdir() if path.is_file()]
        tree = [
            {"type": "file", "path": name, "size": (self.server.home / repo / name).stat().st_size, "oid": "0"}
            for name in names
        ]
        info = {"id": repo, "sha": SHA, "siblings": [{"rfilename": name} for name in names]}
        body = json.dumps(tree if "/tree/" in what else info).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def fill(home: Path) -> Path:
    """The hub's folders: a model, and T5."""
    write(home / REPO, LARGE)
    shutil.move(home / REPO / "t5", home / "t5-base")
    package = torch.load(home / REPO / "state_dict.bin", weights_only=True)
    package["xp.cfg"] = package["xp.cfg"].replace(str(home / REPO / "t5"), "t5-base")
    torch.save(package, home / REPO / "state_dict.bin")
    return home


@contextmanager
def opened(home: Path) -> Iterator[Hub]:
    """Answers while the block lasts."""
    with Hub(home) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    """What leads a process there."""
    address = f"http://127.0.0.1:{hub.server_port}"
    return {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
