"""The real service, asked over HTTP as its users ask it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import mean
from types import TracebackType
from typing import Any

import requests
from urllib3.exceptions import HTTPError

from bench import machine
from bench.models import Model
from musicgen_bento.schemas import WAV_HEADER
from tests.server import Server

PROMPT = "calm piano over a slow beat"
DURATIONS = (2, 20, 3, 16, 5, 12, 8, 2, 18, 4, 6, 10, 14, 7, 9, 2)  # seconds, of the mixed clients' clips
SAMPLE_RATE = 32_000


@dataclass(frozen=True)
class Told:
    """One clip of one client; times are seconds from when the first was asked for.

    Attributes:
        client: which.
        duration: of its clip, in seconds.
        asked: when the request was sent.
        joined: when the answer began: the clip had a slot.
        first: when the first samples were here.
        last: when the last ones were.
    """

    client: int
    duration: float
    asked: float
    joined: float
    first: float
    last: float

    @property
    def per_second(self) -> float:
        """Seconds of waiting for a second of audio."""
        return (self.last - self.asked) / self.duration


@dataclass(frozen=True)
class Crowd:
    """Clients who ask at the same time, each for one clip after the other until all clips are made.

    Attributes:
        clients: how many.
        clips: what became of each.
    """

    clients: int
    clips: tuple[Told, ...]

    @property
    def audio_s_per_s(self) -> float:
        """Seconds of audio made in a second, by all together."""
        return sum(clip.duration for clip in self.clips) / max(clip.last for clip in self.clips)

    @property
    def slowest_over_mean(self) -> float:
        """Of the waiting for a second of audio."""
        waits = [clip.per_second for clip in self.clips]
        return max(waits) / mean(waits)

    @property
    def first_audio_s(self) -> float:
        """From the request to the first samples, on average."""
        return mean(clip.first - clip.asked for clip in self.clips)


class Service:
    """A server of its own on a free port, with one model in memory after the first clip of it.

    Args:
        model: to ask for.
        precision: of it.
        folder: for the server's files and its log.
    """

    def __init__(self, model: Model, precision: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.model, self.precision = model, precision
        self._server = Server(folder, hub=dict(model.environment), allow_any_model=1, precision=precision)
        self._seed = 0

    def __enter__(self) -> Service:
        self._server.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.stop()

    def load(self) -> float:
        """Seconds that the first clip takes longer than the second: those of loading the model."""
        first = self.clip(0.1)
        return max(0.0, first - self.clip(0.1))

    def clip(self, seconds: float, model: str | None = None) -> float:
        """Seconds until the whole clip is here, by `POST /generate`."""
        began = time.perf_counter()
        with self._post("/generate", seconds, model) as answer:
            wav = answer.content
        took = time.perf_counter() - began
        samples = int(seconds * 50 + 1e-6) * SAMPLE_RATE // 50
        assert len(wav) - WAV_HEADER in (2 * samples, 4 * samples), "the clip is not whole"
        return took

    def first_audio(self, seconds: float) -> float:
        """Seconds until the first samples are here, by `POST /stream`; the rest is not waited for."""
        began = time.perf_counter()
        with self._post("/stream", seconds) as answer:
            answer.raw.read(WAV_HEADER + 2)
            took = time.perf_counter() - began
        time.sleep(0.2)  # the clip's slot is free within a step
        return took

    def crowd(self, clients: int, durations: Sequence[float]) -> Crowd:
        """Clips of these durations, by `POST /stream`, so many at a time."""
        left: SimpleQueue[float] = SimpleQueue()
        for duration in durations:
            left.put(duration)
        told: list[Told] = []
        failed: list[Exception] = []
        began = time.perf_counter()

        def ask(client: int) -> None:
            with suppress(Empty):
                while not failed:
                    try:
                        told.append(self._told(client, left.get_nowait(), began))
                    except (requests.RequestException, HTTPError) as error:  # the second: it broke off
                        failed.append(error)

        threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return Crowd(clients, tuple(sorted(told, key=lambda clip: (clip.client, clip.asked))))

    def _told(self, client: int, duration: float, began: float) -> Told:
        asked = time.perf_counter() - began
        with self._post("/stream", duration) as answer:
            joined = time.perf_counter() - began
            answer.raw.read(WAV_HEADER + 2)
            first = time.perf_counter() - began
            while answer.raw.read(65536):
                pass
        return Told(client, duration, asked, joined, first, time.perf_counter() - began)

    def _post(self, path: str, seconds: float, model: str | None = None) -> requests.Response:
        self._seed += 1
        payload: dict[str, Any] = {
            "model": model or self.model.id,
            "prompt": PROMPT,
            "duration": seconds,
            "seed": self._seed,
        }
        answer = requests.post(f"{self._server.url}{path}", json=payload, timeout=None, stream=True)
        answer.raise_for_status()
        return answer

    def peak_gb(self) -> float:
        """Most memory the runner has had: its own, and what it mapped of the files."""
        return machine.peak_gb(self._server.worker("MusicGenRunner").pid)

    def describe(self) -> str:
        """The runner's line in the log: device, threads, precision, slots."""
        lines = self._server.log.read_text(encoding="utf-8").splitlines()
        return next((line[line.index("running on") :] for line in lines if "running on" in line), "")
