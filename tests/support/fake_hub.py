"""A fake of the Hugging Face hub for the real hub client. Its repositories are folders."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.tiny_checkpoints import RandomModelConfig, move_t5_to_hub, write_checkpoint

REPO = "facebook/musicgen-small"
COMMIT = "0" * 40
# Large enough to observe a download and to resume it: the client writes the file in parts of 10 MB.
LARGE_MODEL = RandomModelConfig(dim=256, layers=6)


class FakeHub(ThreadingHTTPServer):
    """Serves folders as repositories.

    Attributes:
        root: the folder of all repositories.
        truncate_after: by file name, the number of bytes after which a download breaks off.
        pause_seconds: pause after each MB.
        downloads: file name and first byte of each download so far.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.truncate_after: dict[str, int] = {}
        self.pause_seconds = 0.0
        self.downloads: list[tuple[str, int]] = []
        self.digests: dict[Path, str] = {}

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file."""
        if path not in self.digests:
            self.digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self.digests[path]


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def requested_file(self) -> Path | None:
        match = re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", self.path.partition("?")[0])
        path = self.server.root / match[1] / match[2] if match else None
        return path if path and path.is_file() else None

    def send_head(self, begin: int = 0) -> Path | None:
        path = self.requested_file()
        if path is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        size = path.stat().st_size
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{self.server.digest(path)}"')
        self.send_header("Content-Length", str(size - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.end_headers()
        return path

    def do_HEAD(self) -> None:
        self.send_head()

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            self.send_repository_info(self.path.removeprefix("/api/models/").partition("?")[0])
            return
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if (path := self.send_head(begin)) is None:
            return
        self.server.downloads.append((path.name, begin))
        content = path.read_bytes()
        end = min(len(content), begin + self.server.truncate_after.get(path.name, len(content)))
        for offset in range(begin, end, 1_000_000):
            self.wfile.write(content[offset : min(end, offset + 1_000_000)])
            time.sleep(self.server.pause_seconds)

    def send_repository_info(self, resource: str) -> None:
        repo = re.sub(r"/(revision|tree)/.*", "", resource)
        names = [path.name for path in (self.server.root / repo).iterdir() if path.is_file()]
        tree = [
            {"type": "file", "path": name, "size": (self.server.root / repo / name).stat().st_size, "oid": "0"}
            for name in names
        ]
        info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        body = json.dumps(tree if "/tree/" in resource else info).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def fill_hub(root: Path) -> Path:
    """Write a model and T5 into the hub's folder."""
    write_checkpoint(root / REPO, LARGE_MODEL)
    move_t5_to_hub(root / REPO, root / "t5-base")
    return root


@contextmanager
def running_hub(root: Path) -> Iterator[FakeHub]:
    """Run a hub in a thread while the block runs."""
    with FakeHub(root) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def hub_environment(hub: FakeHub, cache: Path) -> dict[str, str]:
    """Return the environment variables that make a process use this hub and a cache of its own."""
    address = f"http://127.0.0.1:{hub.server_port}"
    return {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
