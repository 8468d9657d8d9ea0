"""A real server: `bentoml serve` on a free port, with a folder of its own."""

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
    """A server that runs while the block runs.

    Args:
        folder: for its log and its files.
        hub: environment variables of a fake hub; None is no hub.
        settings: MUSICGEN_* variables without the prefix.
    """

    def __init__(self, folder: Path, hub: dict[str, str] | None = None, **settings: Any) -> None:
        self.log = folder / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MUSICGEN_", "BENTOML_"))
        }
        self._environment = {
            **environment,
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
        raise AssertionError(f"the server did not become ready:\n{self.log.read_text()}")

    def stop(self) -> None:
        """Kill the server and its child processes, which have sessions of their own and get no signal to the group."""
        children = self.child_processes()
        self.process.kill()
        for process in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def child_processes(self) -> list[psutil.Process]:
        """Return the running processes that the server has started."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def worker_process(self, service: str) -> psutil.Process:
        """Return the process of MusicGenService or MusicGenRunner."""
        [worker] = [process for process in self.child_processes() if service in process.cmdline()]
        return worker

    def metrics(self) -> dict[str, float]:
        """Return the metrics of this package by name and labels."""
        text = requests.get(f"{self.url}/metrics", timeout=30).text
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("musicgen_"))
        return {name: float(value) for name, value in lines}

    def metric_sum(self, name: str) -> float:
        """Return the sum of the metrics whose name and labels begin with `name`."""
        return sum(value for key, value in self.metrics().items() if key.startswith(name))

    def slots_in_use(self) -> float:
        """Return the number of running requests."""
        return self.metric_sum("musicgen_slots_in_use{")

    def generate(self, timeout: float = 120, **body: Any) -> requests.Response:
        return requests.post(f"{self.url}/generate", json={"prompt": "calm", **body}, timeout=timeout)
