"""A real server: `bentoml serve` on a free port, with nothing shared."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import requests

ROOT = Path(__file__).parents[2]
STARTUP_SECONDS = 240


class Server:
    """Serves while the block lasts. `settings` are MUSICGEN_* variables without the prefix; `hub` leads to a hub."""

    def __init__(self, folder: Path, hub: dict[str, str] | None = None, **settings: Any) -> None:
        self.log = folder / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MUSICGEN_", "BENTOML_"))}
        self._environment = {
            **kept,
            "BENTOML_HOME": str(folder),
            "BENTOML_DO_NOT_TRACK": "True",
            **(hub or {"HF_HUB_OFFLINE": "1"}),
            **{f"MUSICGEN_{name.upper()}": str(value) for name, value in settings.items()},
        }

    def __enter__(self) -> Server:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        command = [sys.executable, "-m", "bentoml", "serve", "--port", str(self.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the server did not get ready:\n{self.log.read_text()}")

    def stop(self) -> None:
        """Kill it and what it started: its workers are sessions of their own, no signal to a group reaches them."""
        family = self.family()
        self.process.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def family(self) -> list[psutil.Process]:
        """The processes it has started and that live."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def worker(self, service: str) -> psutil.Process:
        """The process of one of the two services."""
        [found] = [each for each in self.family() if service in each.cmdline()]
        return found

    def figures(self) -> dict[str, float]:
        """What /metrics says of the music, by name and labels."""
        text = requests.get(f"{self.url}/metrics", timeout=30).text
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("musicgen_"))
        return {name: float(value) for name, value in lines}

    def figure(self, name: str) -> float:
        """The sum of those whose name and labels begin so."""
        return sum(value for full, value in self.figures().items() if full.startswith(name))

    def in_slots(self) -> float:
        """How many clips are being made."""
        return self.figure("musicgen_slots_in_use{")

    def generate(self, timeout: float = 120, **body: Any) -> requests.Response:
        return requests.post(f"{self.url}/generate", json={"prompt": "calm", **body}, timeout=timeout)
