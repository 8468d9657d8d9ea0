"""The hub's real client against a stand-in for the hub: a download that is cut, and two at once into one cache."""

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

CONTENT = os.urandom(24_000_000)  # the client keeps what it has got in pieces of 10 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PROGRAM = """
import hashlib
from musicgen_bento.engine.hub import Source
try: print(hashlib.sha256(Source("small", "facebook/musicgen-small").file("state_dict.bin").read_bytes()).hexdigest())
except Exception as error: print(type(error).__name__)
"""


class StandIn(ThreadingHTTPServer):
    """One file of one repository. `cut` says after how many bytes a download breaks off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut: int | None = None
        self.pause = 0.0
        self.begins: list[int] = []


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def head(self, begin: int) -> None:
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{DIGEST}"')
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.head(0)

    def do_GET(self) -> None:
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.server.begins.append(begin)
        self.head(begin)
        end = len(CONTENT) if self.server.cut is None else begin + self.server.cut
        for at in range(begin, end, 2_000_000):
            self.wfile.write(CONTENT[at : min(end, at + 2_000_000)])
            time.sleep(self.server.pause)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[StandIn]:
    with StandIn() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def fetch(hub: StandIn, cache: Path) -> subprocess.Popen[str]:
    """In a process of its own: the client reads its settings when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=120)[0].strip()


def test_a_folder_is_here_when_what_it_names_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path / "cache"))
    source = Source("mine", tmp_path)
    assert source.is_local  # its load fails with no look at the network
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


def test_a_download_that_is_cut_goes_on_where_it_was(hub: StandIn, tmp_path: Path) -> None:
    hub.cut = 12_000_000
    assert said(fetch(hub, tmp_path)) in (DIGEST, "ModelUnavailable")
    hub.cut = None
    assert said(fetch(hub, tmp_path)) == DIGEST
    assert any(begin >= 10_000_000 for begin in hub.begins)  # not from the start again


def test_two_at_once_into_one_cache(hub: StandIn, tmp_path: Path) -> None:
    hub.pause = 0.1
    both = [fetch(hub, tmp_path), fetch(hub, tmp_path)]
    assert [said(process) for process in both] == [DIGEST, DIGEST]
    assert len(hub.begins) == 1  # the second waited for the first
