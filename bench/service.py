"""The real service, asked over HTTP as its users ask it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import mean
from types import TracebackType

import requests

from bench import machine
from bench.models import Model
from musicgen_bento.schemas import WAV_HEADER
from tests.support.server import Server

PROMPT = "calm piano over a slow beat"
DURATIONS = (2, 20, 3, 16, 5, 12, 8, 2, 18, 4, 6, 10, 14, 7, 9, 2)  # seconds, of the mixed clients' clips
BYTES = 2 * 32_000  # of a second, mono
SILENCE = 3600.0  # seconds without a byte, after which a clip will not come any more


class Failed(Exception):
    """The service has not done what it was asked for."""


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
    """A server of its own on a free port of this machine, with one model in memory after the first clip of it.

    Args:
        model: to ask for.
        precision: of it.
        folder: for the server's files and its log.
    """

    def __init__(self, model: Model, precision: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.model = model
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
        _whole(len(wav), seconds)
        return took

    def first_audio(self, seconds: float) -> float:
        """Seconds until the first samples are here, by `POST /stream`; the rest is not waited for."""
        began = time.perf_counter()
        with self._post("/stream", seconds) as answer:
            answer.raw.read(WAV_HEADER + 2)
            took = time.perf_counter() - began
        time.sleep(1)  # the front notices that its client has left, and the slot is free within a step
        return took

    def crowd(self, clients: int, durations: Sequence[float]) -> Crowd:
        """Clips of these durations, by `POST /stream`, so many at a time."""
        left: SimpleQueue[float] = SimpleQueue()
        for duration in durations:
            left.put(duration)
        began = time.perf_counter()

        def ask(client: int) -> list[Told]:
            told: list[Told] = []
            while True:
                try:
                    duration = left.get_nowait()
                except Empty:
                    return told
                told.append(self._told(client, duration, began))

        threads = ThreadPoolExecutor(clients)
        try:
            told = [clip for clips in threads.map(ask, range(clients)) for clip in clips]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # whoever ends the run waits for no clip
        return Crowd(clients, tuple(told))

    def _told(self, client: int, duration: float, began: float) -> Told:
        asked = time.perf_counter() - began
        with self._post("/stream", duration) as answer:
            joined = time.perf_counter() - began
            got = len(answer.raw.read(WAV_HEADER + 2))
            first = time.perf_counter() - began
            while piece := answer.raw.read(65536):
                got += len(piece)
        last = time.perf_counter() - began
        _whole(got, duration)
        return Told(client, duration, asked, joined, first, last)

    def _post(self, path: str, seconds: float, model: str | None = None) -> requests.Response:
        self._seed += 1
        payload = {"model": model or self.model.id, "prompt": PROMPT, "duration": seconds, "seed": self._seed}
        answer = requests.post(f"{self._server.url}{path}", json=payload, timeout=SILENCE, stream=True)
        if answer.status_code != 200:
            raise Failed(f"{answer.status_code}: {answer.text[:500]}")
        return answer

    def peak_gb(self) -> float:
        """Most memory the runner has had: its own, and what it mapped of the files."""
        return machine.peak_gb(self._server.worker("MusicGenRunner").pid)

    def describe(self) -> str:
        """The runner's line in the log: device, threads, precision, slots."""
        lines = self._server.log.read_text(encoding="utf-8").splitlines()
        return next((line[line.index("running on") :] for line in lines if "running on" in line), "")


def _whole(length: int, seconds: float) -> None:
    """A WAV of a clip, mono or stereo."""
    mono = int(seconds * 50 + 1e-6) * BYTES // 50
    if length - WAV_HEADER not in (mono, 2 * mono):
        raise Failed(f"{length} bytes are no clip of {seconds:g} s")
