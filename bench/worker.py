"""The parent's side of a backend process (`bench/backends.py`).

A process of its own isolates a backend's memory, threads and crashes. Between two commands the process blocks on its
pipe, so it takes no CPU time from the backend that is measured.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.backends import engine_precision
from bench.machine import ROOT
from bench.models import Model

REPLY_TIMEOUT_SECONDS = 900.0


class WorkerError(Exception):
    """A worker sent no result; the text gives the reason."""


def _environment(name: str, model: Model) -> dict[str, str]:
    """Return a worker's environment. Baselines do not get the GOMP_SPINCOUNT that musicgen_bento sets for itself."""
    is_engine = engine_precision(name) is not None
    inherited = {key: value for key, value in os.environ.items() if is_engine or key != "GOMP_SPINCOUNT"}
    return inherited | dict(model.environment)


class Worker:
    """A worker process with one backend.

    Args:
        name: name of the backend.
        model: the model to load.
        folder: folder for the worker's log.

    Attributes:
        load_seconds: seconds to load the model.

    Raises:
        WorkerError: the backend cannot be loaded.
    """

    def __init__(self, name: str, model: Model, folder: Path) -> None:
        self.name = name
        with (folder / f"{name.replace(' ', '-')}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.backends", name, model.id],
                cwd=ROOT,
                env=_environment(name, model),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        self._buffer = b""
        try:
            self.load_seconds = float(self._read_reply())
        except BaseException:
            self.stop()
            raise

    def call(self, command: str, **arguments: Any) -> Any:
        """Execute a command of `BackendWorker` and return its result.

        Raises:
            WorkerError: the command failed, or the process died or took too long.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
        return self._read_reply()

    def _read_reply(self) -> Any:
        reply: Mapping[str, Any] = json.loads(self._read_line(time.monotonic() + REPLY_TIMEOUT_SECONDS))
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply["result"]

    def _read_line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._process.kill()
                raise WorkerError(f"no reply in {REPLY_TIMEOUT_SECONDS:.0f} s")
            chunk = self._process.stdout.read(65536)
            if not chunk:
                code = self._process.wait()
                raise WorkerError("killed: out of memory?" if code == -9 else f"ended with status {code}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
