"""`musicgen-bento pull` and the progress of downloads, with the hub's real client and a fake hub."""

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
from musicgen_bento.units import format_bytes
from tests.support import fake_hub as hubs
from tests.support.command_line import COMMAND, ROOT
from tests.support.fake_hub import REPO, FakeHub, fill_hub, running_hub
from tests.support.tiny_models import MONO, folder

BASE_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("MUSICGEN_", "BENTOML_", "HF_"))
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[FakeHub]:
    with running_hub(Path(shutil.copytree(model, tmp_path / "hub"))) as server:
        yield server


def environment(hub: FakeHub, cache: Path) -> dict[str, str]:
    return {**BASE_ENVIRONMENT, **hubs.hub_environment(hub, cache), "PYTHONPATH": str(ROOT)}


def run(hub: FakeHub, cache: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        env={**environment(hub, cache), **variables},
        capture_output=True,
        text=True,
        timeout=280,
    )


def download_bytes(hub: FakeHub) -> int:
    files = [hub.root / REPO / name for name in ("state_dict.bin", "compression_state_dict.bin")]
    files += [hub.root / "t5-base" / name for name in ("config.json", "model.safetensors")]
    return sum(file.stat().st_size for file in files)


def test_a_model_is_downloaded_once_checked_and_usable_offline(hub: FakeHub, tmp_path: Path) -> None:
    result = run(hub, tmp_path / "cache", "pull", "small", REPO)
    assert result.returncode == 0, result.stderr
    total = f"{download_bytes(hub) / 1e9:.2f}"
    assert result.stdout == f"{REPO}: downloaded {format_bytes(download_bytes(hub))}, checked\n"
    lines = result.stderr.splitlines()
    assert lines, "without a terminal a download prints lines"
    assert len(lines) <= 11
    assert all(re.fullmatch(rf"{REPO}: \d\.\d\d of {total} GB", line) for line in lines)
    fetched = [name for name, _ in hub.downloads]
    assert sorted(set(fetched)) == sorted(fetched)
    again = run(hub, tmp_path / "cache", "pull", "small")
    assert (again.stdout, again.stderr) == (f"{REPO}: already on this machine, checked\n", "")
    assert len(hub.downloads) == len(fetched)
    output = run(hub, tmp_path / "cache", "models", HF_HUB_OFFLINE="1").stdout
    assert re.search(rf"^{REPO} +cached ", output, re.M)
    assert re.search(r"^facebook/musicgen-medium +downloadable ", output, re.M)
    wav = tmp_path / "out.wav"
    clip = run(
        *(hub, tmp_path / "cache", "--model", "small", "--prompt", "x", "--duration", "0.2", "--output", str(wav)),
        HF_HUB_OFFLINE="1",
    )
    assert clip.returncode == 0, clip.stderr
    assert wav.stat().st_size > 10_000


def test_an_interrupted_download_is_continued(hub: FakeHub, tmp_path: Path) -> None:
    """The same command retries as long as each attempt receives something."""
    size = (hub.root / REPO / "state_dict.bin").stat().st_size
    assert size > 21_000_000
    hub.truncate_after["state_dict.bin"] = 11_000_000
    result = run(hub, tmp_path / "cache", "pull", "small")
    assert result.returncode == 0, result.stderr
    begins = [begin for name, begin in hub.downloads if name == "state_dict.bin"]
    assert begins[0] == 0
    assert max(begins) >= 20_000_000
    assert begins.count(0) == 1
    downloaded = next((tmp_path / "cache").rglob("state_dict.bin")).read_bytes()
    assert hashlib.sha256(downloaded).hexdigest() == hub.digest(hub.root / REPO / "state_dict.bin")


def test_a_download_without_progress_is_one_error_line(hub: FakeHub, tmp_path: Path) -> None:
    hub.truncate_after["state_dict.bin"] = 0
    result = run(hub, tmp_path / "cache", "pull", "small")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(f"error: state_dict.bin of {REPO} is not in the cache")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (f"{REPO}/state_dict.bin", "state_dict.bin"),
        (f"{REPO}/compression_state_dict.bin", "compression_state_dict.bin"),
        ("t5-base/model.safetensors", "t5 of"),
        ("t5-base/config.json", "t5 of"),
    ],
)
def test_downloaded_files_are_checked(hub: FakeHub, tmp_path: Path, file: str, message: str) -> None:
    content = (hub.root / file).read_bytes()
    (hub.root / file).write_bytes(content[: len(content) // 2])
    result = run(hub, tmp_path / "cache", "pull", "small")
    assert result.returncode == 1, result.stdout
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert "delete it" in line


def test_without_a_name_pull_downloads_the_models_of_the_settings(hub: FakeHub, tmp_path: Path) -> None:
    result = run(hub, tmp_path / "cache", "pull", MUSICGEN_PRELOAD="demo,small")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "demo: already on this machine, checked"
    assert result.stdout.splitlines()[1].startswith(f"{REPO}: downloaded")


@pytest.mark.parametrize(("name", "message"), [("nonsense", "no model named"), ("facebook/musicgen-melody", "melody")])
def test_an_unsupported_name_is_an_error_before_any_download(
    hub: FakeHub, tmp_path: Path, name: str, message: str
) -> None:
    result = run(hub, tmp_path / "cache", "pull", "small", name)
    assert result.returncode == 2
    assert message in result.stderr
    assert not hub.downloads


def test_a_terminal_shows_a_progress_bar(hub: FakeHub, tmp_path: Path) -> None:
    hub.pause_seconds = 0.05
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (25, 100))
    process = subprocess.Popen(
        [*COMMAND, "pull", "small"],
        env=environment(hub, tmp_path / "cache"),
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    text = ""
    while True:
        try:
            output = os.read(master, 4096)
        except OSError:
            break
        if not output:
            break
        text += output.decode()
    os.close(master)
    assert process.wait() == 0, text
    bars = re.findall(r"\r\[([# ]{30})\] ([\d.]+) of ([\d.]+) GB, downloading " + REPO, text)
    assert len(bars) > 2
    assert bars == sorted(bars, key=lambda bar: (bar[0].count("#"), bar[1]))
    total = f"{download_bytes(hub) / 1e9:.2f}"
    assert bars[-1] == ("#" * 30, total, total)
    assert text.endswith(f"{REPO}: downloaded {format_bytes(download_bytes(hub))}, checked\r\n")


@pytest.mark.parametrize(
    ("columns", "shown"), [(55, "[##  ] 0.50 of 1.00 GB, downloading owner/other-models"), (20, "0.50 of 1.00 GB, do")]
)
def test_a_narrow_terminal_shortens_the_bar(columns: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (25, columns))
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        ProgressDisplay().update_download("owner/other-models", 500_000_000, 1_000_000_000)
        assert os.read(master, 4096).decode() == shown
    os.close(master)


def test_statuses_report_each_state_while_a_model_loads(hub: FakeHub, tmp_path: Path) -> None:
    """downloadable, loading with its progress, loaded: as GET /models shows them, in a process with a model pool."""
    hub.pause_seconds = 0.15
    program = """
import json, time
from musicgen_bento.config import Settings
from musicgen_bento.model_pool.pool import ModelPool
from musicgen_bento.engine.types import GenerationParams
from dataclasses import asdict
pool = ModelPool(Settings(device="cpu", precision="float32", preload=(), memory_budget="8GB"))
def state():
    return next(asdict(status) for status in pool.statuses() if status.id == "facebook/musicgen-small")
states = [state()]
pool.add_request("one", "small", GenerationParams("calm", 0.1, 0), lambda event: None)
deadline = time.monotonic() + 120
while states[-1]["state"] != "loaded" and time.monotonic() < deadline:
    if state() != states[-1]: states.append(state())
    time.sleep(0.01)
print(json.dumps(states))
pool.close()
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment(hub, tmp_path / "cache"), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    states = json.loads(result.stdout)
    assert states[0]["state"] == "downloadable"
    assert states[0]["memory_bytes"] > 3e9  # the estimate for the released model
    assert states[-1]["state"] == "loaded"
    assert states[-1]["memory_bytes"] < 3e8  # exact
    steps = [entry["progress"] for entry in states if entry["state"] == "loading"]
    assert {entry["state"] for entry in states[1:-1]} == {"loading"}
    downloading = [step for step in steps if step["step"] == "downloading"]
    assert {step["total_bytes"] for step in downloading} == {download_bytes(hub)}
    received = [step["done_bytes"] for step in downloading]
    assert received == sorted(received)
    assert len(set(received)) > 5
    assert steps[-1]["step"] == "loading"


def test_a_folder_is_checked_in_place(hub: FakeHub, tmp_path: Path) -> None:
    result = run(hub, tmp_path / "cache", "pull", str(folder(MONO)))
    assert result.stdout == f"{folder(MONO).name}: already on this machine, checked\n"
    assert not hub.downloads
