"""The service under test, called over HTTP by one client or by several at once."""

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
from musicgen_bento.schemas import WAV_HEADER_BYTES
from tests.support.server import Server

PROMPT = "calm piano over a slow beat"
DURATIONS = (2, 20, 3, 16, 5, 12, 8, 2, 18, 4, 6, 10, 14, 7, 9, 2)  # lengths in seconds of a load test's clips
BYTES_PER_SECOND = 2 * 32_000  # of mono audio
READ_TIMEOUT_SECONDS = 3600.0


class ServiceError(Exception):
    """The service responded with an error or with a clip of the wrong length."""


@dataclass(frozen=True)
class ClipTiming:
    """Timing of one clip in a load test, in seconds since the test started.

    Attributes:
        client: number of the client.
        duration: length of the clip in seconds.
        sent: the client sent the request.
        started: the response began, so the request has a slot.
        first_audio: the first samples arrived.
        finished: the last samples arrived.
    """

    client: int
    duration: float
    sent: float
    started: float
    first_audio: float
    finished: float

    @property
    def latency_per_second(self) -> float:
        """Seconds of latency for a second of audio."""
        return (self.finished - self.sent) / self.duration


@dataclass(frozen=True)
class LoadTest:
    """Clients that start at the same time. Each client requests one clip after the other until all are generated.

    Attributes:
        clients: number of clients.
        clips: timing of each clip.
    """

    clients: int
    clips: tuple[ClipTiming, ...]

    @property
    def audio_seconds_per_second(self) -> float:
        """Throughput of all clients together."""
        return sum(clip.duration for clip in self.clips) / max(clip.finished for clip in self.clips)

    @property
    def slowest_over_mean(self) -> float:
        """Longest latency per second of audio over the mean."""
        latencies = [clip.latency_per_second for clip in self.clips]
        return max(latencies) / mean(latencies)

    @property
    def mean_first_audio(self) -> float:
        """Seconds from the request to the first samples, on average."""
        return mean(clip.first_audio - clip.sent for clip in self.clips)


class ServiceUnderTest:
    """A server on a free port of this machine. It loads its model with the first clip.

    Args:
        model: the model to request.
        precision: precision of the model.
        folder: folder for the server's files and its log.
    """

    def __init__(self, model: Model, precision: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.model = model
        self._server = Server(folder, hub=dict(model.environment), allow_any_model=1, precision=precision)
        self._seed = 0

    def __enter__(self) -> ServiceUnderTest:
        self._server.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.stop()

    def load(self) -> float:
        """Load the model and return the seconds it took: the first clip's latency minus the second's."""
        first = self.clip(0.1)
        return max(0.0, first - self.clip(0.1))

    def clip(self, seconds: float, model: str | None = None) -> float:
        """Generate a clip by `POST /generate` and return the seconds until it is complete."""
        started = time.perf_counter()
        with self._post("/generate", seconds, model) as response:
            wav = response.content
        latency = time.perf_counter() - started
        _check_length(len(wav), seconds)
        return latency

    def first_audio(self, seconds: float) -> float:
        """Start a clip by `POST /stream`, return the seconds to the first samples, and disconnect."""
        started = time.perf_counter()
        with self._post("/stream", seconds) as response:
            response.raw.read(WAV_HEADER_BYTES + 2)
            latency = time.perf_counter() - started
        time.sleep(1)  # the server notices the disconnect, and the slot is free within a step
        return latency

    def load_test(self, clients: int, durations: Sequence[float]) -> LoadTest:
        """Generate clips of these durations by `POST /stream`, with that many clients at a time."""
        queue: SimpleQueue[float] = SimpleQueue()
        for duration in durations:
            queue.put(duration)
        started = time.perf_counter()

        def run_client(client: int) -> list[ClipTiming]:
            timings: list[ClipTiming] = []
            while True:
                try:
                    duration = queue.get_nowait()
                except Empty:
                    return timings
                timings.append(self._stream_clip(client, duration, started))

        threads = ThreadPoolExecutor(clients)
        try:
            clips = [clip for timings in threads.map(run_client, range(clients)) for clip in timings]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # an interrupted run must not wait for clips
        return LoadTest(clients, tuple(clips))

    def _stream_clip(self, client: int, duration: float, test_started: float) -> ClipTiming:
        sent = time.perf_counter() - test_started
        with self._post("/stream", duration) as response:
            started = time.perf_counter() - test_started
            length = len(response.raw.read(WAV_HEADER_BYTES + 2))
            first_audio = time.perf_counter() - test_started
            while chunk := response.raw.read(65536):
                length += len(chunk)
        finished = time.perf_counter() - test_started
        _check_length(length, duration)
        return ClipTiming(client, duration, sent, started, first_audio, finished)

    def _post(self, path: str, seconds: float, model: str | None = None) -> requests.Response:
        self._seed += 1
        payload = {"model": model or self.model.id, "prompt": PROMPT, "duration": seconds, "seed": self._seed}
        url = f"{self._server.url}{path}"
        response = requests.post(url, json=payload, timeout=READ_TIMEOUT_SECONDS, stream=True)
        if response.status_code != 200:
            raise ServiceError(f"{response.status_code}: {response.text[:500]}")
        return response

    def peak_gb(self) -> float:
        """Return the runner's peak memory in GB: its own, and the parts of files that it maps."""
        return machine.peak_gb(self._server.worker_process("MusicGenRunner").pid)

    def describe(self) -> str:
        """Return the runner's log line: device, threads, precision, slots."""
        lines = self._server.log.read_text(encoding="utf-8").splitlines()
        return next((line[line.index("running on") :] for line in lines if "running on" in line), "")


def _check_length(length: int, seconds: float) -> None:
    """Raise ServiceError unless that many bytes are a WAV of the clip, mono or stereo."""
    mono = int(seconds * 50 + 1e-6) * BYTES_PER_SECOND // 50
    if length - WAV_HEADER_BYTES not in (mono, 2 * mono):
        raise ServiceError(f"a response of {length} bytes is not a WAV of {seconds:g} s")
