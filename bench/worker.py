"""A contestant in a process of its own: its memory and its threads are its own, and so is its end.

The other side of the pipe is `contestant.py`. Between two questions it is blocked on the pipe, so it takes nothing from
whoever is measured.
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

from bench.machine import ROOT
from bench.models import Model

ANSWER_SECONDS = 900.0


class WorkerError(Exception):
    """There is no answer; the text says why."""


def _environment(name: str, model: Model) -> dict[str, str]:
    """The peers' threads are as torch has them; what musicgen_bento has set for its own is not for them."""
    inherited = {key: value for key, value in os.environ.items() if name.startswith("ours") or key != "GOMP_SPINCOUNT"}
    return inherited | dict(model.environment)


class Worker:
    """The parent's side of one process.

    Args:
        name: of the contestant.
        model: to load.
        folder: for its log.

    Raises:
        WorkerError: it cannot be loaded.
    """

    def __init__(self, name: str, model: Model, folder: Path) -> None:
        self.name = name
        with (folder / f"{name.replace(' ', '-')}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.contestant", name, model.id],
                cwd=ROOT,
                env=_environment(name, model),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        self._rest = b""
        try:
            self.load_s = float(self._answer())
        except BaseException:
            self.stop()
            raise

    def ask(self, what: str, **about: Any) -> Any:
        """An answer.

        Raises:
            WorkerError: it failed, died or took too long.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": what, **about}).encode() + b"\n")
        return self._answer()

    def _answer(self) -> Any:
        reply: Mapping[str, Any] = json.loads(self._line(time.monotonic() + ANSWER_SECONDS))
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply["is"]

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._process.kill()
                raise WorkerError(f"no answer in {ANSWER_SECONDS:.0f} s")
            piece = self._process.stdout.read(65536)
            if not piece:
                code = self._process.wait()
                raise WorkerError("killed: out of memory?" if code == -9 else f"ended with status {code}")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
