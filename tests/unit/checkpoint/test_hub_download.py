"""The real hub client with a fake hub: an interrupted download, and two concurrent downloads into one cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from musicgen_bento.checkpoint.source import Source

CONTENT = os.urandom(24_000_000)  # bytes; the client writes the file in parts of 10 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PROGRAM = """
import hashlib
from musicgen_bento.checkpoint.source import Source
try:
    path = Source("small", "facebook/musicgen-small").fetch_file("state_dict.bin")
    print(hashlib.sha256(path.read_bytes()).hexdigest())
except Exception as error: print(type(error).__name__)
"""


class OneFileHub(ThreadingHTTPServer):
    """Serves one file of one repository.

    Attributes:
        truncate_after: number of bytes after which each response breaks off; None for complete responses.
        pause_seconds: pause after each 2 MB.
        first_bytes: offset of the first byte of each response so far.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.truncate_after: int | None = None
        self.pause_seconds = 0.0
        self.first_bytes: list[int] = []


class Handler(BaseHTTPRequestHandler):
    server: OneFileHub

    def send_head(self, begin: int) -> None:
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{DIGEST}"')
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.send_head(0)

    def do_GET(self) -> None:
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.server.first_bytes.append(begin)
        self.send_head(begin)
        end = len(CONTENT) if self.server.truncate_after is None else begin + self.server.truncate_after
        for offset in range(begin, end, 2_000_000):
            self.wfile.write(CONTENT[offset : min(end, offset + 2_000_000)])
            time.sleep(self.server.pause_seconds)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[OneFileHub]:
    with OneFileHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def start_download(hub: OneFileHub, cache: Path) -> subprocess.Popen[str]:
    """Start PROGRAM in a process of its own: the client reads its settings when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True)


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait for the process; return the SHA-256 of the file, or the name of the error."""
    return process.communicate(timeout=120)[0].strip()


def test_a_folder_is_local_if_everything_that_it_references_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path / "cache"))
    source = Source("mine", tmp_path)
    assert source.is_local  # loading it fails without network access
    (tmp_path / "compression_state_dict.bin").write_bytes(b"names another")
    assert not source.is_local
    (tmp_path / "encodec_32khz").mkdir()
    assert not source.is_local
    (tmp_path / "t5").mkdir()
    assert source.is_local
    (tmp_path / "encodec_32khz").rmdir()
    assert not source.is_local
    (tmp_path / "compression_state_dict.bin").write_bytes(bytes(200_000))
    assert source.is_local


def test_an_interrupted_download_resumes(hub: OneFileHub, tmp_path: Path) -> None:
    hub.truncate_after = 12_000_000
    assert output_of(start_download(hub, tmp_path)) in (DIGEST, "ModelUnavailable")
    hub.truncate_after = None
    assert output_of(start_download(hub, tmp_path)) == DIGEST
    assert any(
        first_byte >= 10_000_000 for first_byte in hub.first_bytes
    )  # the second response does not begin at the start


def test_concurrent_downloads_into_one_cache_fetch_a_file_once(hub: OneFileHub, tmp_path: Path) -> None:
    hub.pause_seconds = 0.1
    processes = [start_download(hub, tmp_path), start_download(hub, tmp_path)]
    assert [output_of(process) for process in processes] == [DIGEST, DIGEST]
    assert len(hub.first_bytes) == 1  # the second process waits for the first
