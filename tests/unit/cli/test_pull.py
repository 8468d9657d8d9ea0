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
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from musicgen_bento.cli.progress import ProgressDisplay
from tests.support import fake_hub as hubs
from tests.support.fake_hub import REPO, Hub, fill, opened
from tests.support.tiny_models import MONO, folder

ROOT = Path(__file__).parents[3]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("MUSICGEN_", "BENTOML_", "HF_"))}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[Hub]:
    with opened(Path(shutil.copytree(model, tmp_path / "hub"))) as server:
        yield server


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    return {**CLEAN, **hubs.environment(hub, cache), "PYTHONPATH": str(ROOT)}


def run(hub: Hub, cache: Path, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "musicgen_bento.cli", *args],
        env={**environment(hub, cache), **more},
        capture_output=True,
        text=True,
        timeout=280,
    )


def sizes(hub: Hub) -> int:
    files = [hub.home / REPO / name for name in ("state_dict.bin", "compression_state_dict.bin")]
    files += [hub.home / "t5-base" / name for name in ("config.json", "model.safetensors")]
    return sum(file.stat().st_size for file in files)


def test_a_model_is_fetched_once_checked_and_makes_a_clip_without_a_network(hub: Hub, tmp_path: Path) -> None:
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


def test_a_download_that_is_cut_goes_on(hub: Hub, tmp_path: Path) -> None:
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


def test_a_download_that_does_not_get_on_is_one_line(hub: Hub, tmp_path: Path) -> None:
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
def test_what_came_is_looked_into(hub: Hub, tmp_path: Path, file: str, says: str) -> None:
    content = (hub.home / file).read_bytes()
    (hub.home / file).write_bytes(content[: len(content) // 2])
    done = run(hub, tmp_path / "cache", "pull", "small")
    assert done.returncode == 1, done.stdout
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert says in line
    assert "remove it" in line


def test_without_a_name_those_of_the_settings(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path / "cache", "pull", MUSICGEN_PRELOAD="demo,small")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "demo: here already, checked"
    assert done.stdout.splitlines()[1].startswith(f"{REPO}: fetched")


@pytest.mark.parametrize(("name", "says"), [("nonsense", "no model named"), ("facebook/musicgen-melody", "melody")])
def test_a_name_that_cannot_be_served_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, name: str, says: str
) -> None:
    done = run(hub, tmp_path / "cache", "pull", "small", name)
    assert done.returncode == 2
    assert says in done.stderr
    assert not hub.fetched


def test_a_terminal_gets_a_bar(hub: Hub, tmp_path: Path) -> None:
    hub.pause = 0.05
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (25, 100))
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


@pytest.mark.parametrize(
    ("columns", "shown"), [(55, "[##  ] 0.50 of 1.00 GB, downloading who/what-they-call"), (20, "0.50 of 1.00 GB, do")]
)
def test_a_narrow_terminal_gets_what_fits(columns: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (25, columns))
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        ProgressDisplay().fetch("who/what-they-call", 500_000_000, 1_000_000_000)
        assert os.read(master, 4096).decode() == shown
    os.close(master)


def test_the_states_of_a_model_on_its_way(hub: Hub, tmp_path: Path) -> None:
    """downloadable, loading with its bytes, loaded: as GET /models has them, in a pool's own process."""
    hub.pause = 0.15
    program = """
import json, time
from musicgen_bento.config import Settings
from musicgen_bento.model_pool.pool import ModelPool
from musicgen_bento.engine.types import GenerationParams
from dataclasses import asdict
pool = ModelPool(Settings(device="cpu", precision="float32", preload=(), memory_budget="8GB"))
def state():
    return next(asdict(status) for status in pool.statuses() if status.id == "facebook/musicgen-small")
seen = [state()]
pool.add_request("one", "small", GenerationParams("calm", 0.1, 0), lambda event: None)
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


def test_a_folder_is_checked_where_it_is(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path / "cache", "pull", str(folder(MONO)))
    assert done.stdout == f"{folder(MONO).name}: here already, checked\n"
    assert not hub.fetched
