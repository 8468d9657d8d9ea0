"""`musicgen-bento pull` and downloads as they are seen, with the hub's real client against a stand-in for the hub."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import Recipe, write
from tests.models import MONO, folder

ROOT = Path(__file__).parent.parent
REPO = "facebook/musicgen-small"
SHA = "0" * 40
# Large enough for a download to be seen, and to be kept in part: the client keeps pieces of 10 MB.
LARGE = Recipe(dim=256, layers=6)
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("MUSICGEN_", "BENTOML_", "HF_"))}


class StandIn(ThreadingHTTPServer):
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
    server: StandIn

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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's folders: a model, and T5."""
    home = tmp_path_factory.mktemp("hub")
    write(home / REPO, LARGE)
    shutil.move(home / REPO / "t5", home / "t5-base")
    package = torch.load(home / REPO / "state_dict.bin", weights_only=True)
    package["xp.cfg"] = package["xp.cfg"].replace(str(home / REPO / "t5"), "t5-base")
    torch.save(package, home / REPO / "state_dict.bin")
    return home


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[StandIn]:
    home = Path(shutil.copytree(model, tmp_path / "hub"))
    with StandIn(home) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def environment(hub: StandIn, cache: Path) -> dict[str, str]:
    address = f"http://127.0.0.1:{hub.server_port}"
    return {**CLEAN, "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}


def run(hub: StandIn, cache: Path, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "musicgen_bento.cli", *args],
        env={**environment(hub, cache), **more},
        capture_output=True,
        text=True,
        timeout=200,
    )


def sizes(hub: StandIn) -> int:
    files = [hub.home / REPO / name for name in ("state_dict.bin", "compression_state_dict.bin")]
    files += [hub.home / "t5-base" / name for name in ("config.json", "model.safetensors")]
    return sum(file.stat().st_size for file in files)


def test_a_model_is_fetched_once_checked_and_makes_a_clip_without_a_network(hub: StandIn, tmp_path: Path) -> None:
    done = run(hub, tmp_path / "cache", "pull", "small", REPO)
    assert done.returncode == 0, done.stderr
    total = f"{sizes(hub) / 1e9:.2f}"
    assert done.stdout == f"{REPO}: fetched {total} GB, checked\n"
    lines = done.stderr.splitlines()
    assert lines, "a pipe gets a line now and then"
    assert len(lines) <= 11
    assert all(re.fullmatch(rf"{REPO}: \d\.\d\d of {total} GB", line) for line in lines)
    fetched = [name for name, _ in hub.fetched]
    assert sorted(set(fetched)) == sorted(fetched)
    again = run(hub, tmp_path / "cache", "pull", "small")
    assert (again.stdout, again.stderr) == (f"{REPO}: here already, checked\n", "")
    assert len(hub.fetched) == len(fetched)
    listed = run(hub, tmp_path / "cache", "models", HF_HUB_OFFLINE="1").stdout
    assert re.search(rf"^{REPO} +cached ", listed, re.M)
    assert re.search(r"^facebook/musicgen-medium +downloadable ", listed, re.M)
    wav = tmp_path / "out.wav"
    clip = run(
        *(hub, tmp_path / "cache", "--model", "small", "--prompt", "x", "--duration", "0.2", "--output", str(wav)),
        HF_HUB_OFFLINE="1",
    )
    assert clip.returncode == 0, clip.stderr
    assert wav.stat().st_size > 10_000


def test_a_download_that_is_cut_goes_on(hub: StandIn, tmp_path: Path) -> None:
    """In the same command, as long as it gets on."""
    size = (hub.home / REPO / "state_dict.bin").stat().st_size
    assert size > 21_000_000
    hub.cut["state_dict.bin"] = 11_000_000
    done = run(hub, tmp_path / "cache", "pull", "small")
    assert done.returncode == 0, done.stderr
    begins = [begin for name, begin in hub.fetched if name == "state_dict.bin"]
    assert begins[0] == 0
    assert max(begins) >= 20_000_000
    assert begins.count(0) == 1
    found = next((tmp_path / "cache").rglob("state_dict.bin")).read_bytes()
    assert hashlib.sha256(found).hexdigest() == hub.digest(hub.home / REPO / "state_dict.bin")


def test_a_download_that_does_not_get_on_is_one_line(hub: StandIn, tmp_path: Path) -> None:
    hub.cut["state_dict.bin"] = 0
    done = run(hub, tmp_path / "cache", "pull", "small")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"error: state_dict.bin of {REPO} is not in the cache")


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (f"{REPO}/state_dict.bin", "state_dict.bin"),
        (f"{REPO}/compression_state_dict.bin", "compression_state_dict.bin"),
        ("t5-base/model.safetensors", "t5 of"),
        ("t5-base/config.json", "t5 of"),
    ],
)
def test_what_came_is_looked_into(hub: StandIn, tmp_path: Path, file: str, says: str) -> None:
    content = (hub.home / file).read_bytes()
    (hub.home / file).write_bytes(content[: len(content) // 2])
    done = run(hub, tmp_path / "cache", "pull", "small")
    assert done.returncode == 1, done.stdout
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert says in line
    assert "remove it" in line


def test_without_a_name_those_of_the_settings(hub: StandIn, tmp_path: Path) -> None:
    done = run(hub, tmp_path / "cache", "pull", MUSICGEN_PRELOAD="demo,small")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "demo: here already, checked"
    assert done.stdout.splitlines()[1].startswith(f"{REPO}: fetched")


@pytest.mark.parametrize(("name", "says"), [("nonsense", "no model named"), ("facebook/musicgen-melody", "melody")])
def test_a_name_that_cannot_be_served_before_anything_is_fetched(
    hub: StandIn, tmp_path: Path, name: str, says: str
) -> None:
    done = run(hub, tmp_path / "cache", "pull", "small", name)
    assert done.returncode == 2
    assert says in done.stderr
    assert not hub.fetched


def test_a_terminal_gets_a_bar(hub: StandIn, tmp_path: Path) -> None:
    hub.pause = 0.05
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "musicgen_bento.cli", "pull", "small"],
        env=environment(hub, tmp_path / "cache"),
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    text = ""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        if not piece:
            break
        text += piece.decode()
    os.close(master)
    assert process.wait() == 0, text
    bars = re.findall(r"\r\[([# ]{30})\] ([\d.]+) of ([\d.]+) GB, downloading " + REPO, text)
    assert len(bars) > 2
    assert bars == sorted(bars, key=lambda bar: (bar[0].count("#"), bar[1]))
    total = f"{sizes(hub) / 1e9:.2f}"
    assert bars[-1] == ("#" * 30, total, total)
    assert text.endswith(f"{REPO}: fetched {total} GB, checked\r\n")


def test_the_states_of_a_model_on_its_way(hub: StandIn, tmp_path: Path) -> None:
    """downloadable, loading with its bytes, loaded: as GET /models has them, in a pool's own process."""
    hub.pause = 0.15
    program = """
import json, time
from musicgen_bento.config import Settings
from musicgen_bento.engine.pool import EnginePool
from musicgen_bento.engine.types import GenerationParams
from dataclasses import asdict
pool = EnginePool(Settings(device="cpu", preload=(), memory_budget="8GB"))
def state():
    return next(asdict(status) for status in pool.statuses() if status.id == "facebook/musicgen-small")
seen = [state()]
pool.submit("small", GenerationParams("calm", 0.1, 0), lambda event: None)
deadline = time.monotonic() + 120
while seen[-1]["state"] != "loaded" and time.monotonic() < deadline:
    if state() != seen[-1]: seen.append(state())
    time.sleep(0.01)
print(json.dumps(seen))
pool.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(hub, tmp_path / "cache"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen[0]["state"] == "downloadable"
    assert seen[0]["memory_bytes"] > 3e9  # as of the released one
    assert seen[-1]["state"] == "loaded"
    assert seen[-1]["memory_bytes"] < 3e8  # counted
    steps = [entry["progress"] for entry in seen if entry["state"] == "loading"]
    assert {entry["state"] for entry in seen[1:-1]} == {"loading"}
    downloading = [step for step in steps if step["step"] == "downloading"]
    assert {step["total_bytes"] for step in downloading} == {sizes(hub)}
    come = [step["done_bytes"] for step in downloading]
    assert come == sorted(come)
    assert len(set(come)) > 5
    assert steps[-1]["step"] == "loading"


def test_a_folder_is_checked_where_it_is(hub: StandIn, tmp_path: Path) -> None:
    done = run(hub, tmp_path / "cache", "pull", str(folder(MONO)))
    assert done.stdout == f"{folder(MONO).name}: here already, checked\n"
    assert not hub.fetched
