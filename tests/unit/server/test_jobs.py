"""Jobs: states, limits and downloads, with a generator that the test controls step by step."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, get_args

import httpx
import numpy as np
import pytest

from musicgen_bento.config import Settings
from musicgen_bento.engine.types import AudioChunk, Event, EventCallback, Queued, Started
from musicgen_bento.errors import GenerationFailed, MusicGenError, QueueFull
from musicgen_bento.schemas import ErrorBody, GenerationRequest, JobState, ModelList
from musicgen_bento.schemas import Job as JobView
from musicgen_bento.server import job, responses
from musicgen_bento.server.error_responses import ResponseAborted
from musicgen_bento.server.generation import AdmittedRequest
from musicgen_bento.server.job import PROGRESS_SECONDS
from musicgen_bento.server.jobs import MIN_JOB_BYTES, Jobs
from musicgen_bento.server.middleware import Middleware, PathNormalizer
from musicgen_bento.server.request_context import RequestContext
from musicgen_bento.server.responses import EncodedAudio
from musicgen_bento.server.routes import build_app
from musicgen_bento.server.shutdown import Drain, InFlight

RATE = 32_000
SECRET = "xylophone-of-the-hidden-garden"
PATHS = frozenset(("/jobs", "/jobs/{id}", "/jobs/{id}/audio"))


@dataclass
class FakeGenerator:
    """A generator that reports the events and the results that a test passes to it."""

    admit_error: MusicGenError | None = None
    callbacks: list[EventCallback] = field(default_factory=list)
    results: list[asyncio.Future[EncodedAudio]] = field(default_factory=list)
    cancelled: int = 0

    async def admit(self, request: GenerationRequest, context: RequestContext) -> AdmittedRequest:
        await asyncio.sleep(0)
        if self.admit_error:
            raise self.admit_error
        return AdmittedRequest(
            context.id, "request", request.model or "demo", request.seed or 0, request.duration, "none"
        )

    async def generate_audio(self, admitted: AdmittedRequest, on_event: EventCallback) -> EncodedAudio:
        result = asyncio.get_running_loop().create_future()
        self.callbacks.append(on_event)
        self.results.append(result)
        try:
            return await result
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def send(self, *events: Event) -> None:
        for event in events:
            self.callbacks[-1](event)

    def finish(self, size: int = 1000) -> bytes:
        wav = bytes(range(256)) * (size // 256 + 1)
        self.results[-1].set_result(EncodedAudio(wav[:size], {"X-Seed": "7"}))
        return wav[:size]


@dataclass
class Harness:
    """The jobs with their routes and the middleware."""

    generator: FakeGenerator
    jobs: Jobs
    drain: Drain
    in_flight: InFlight
    http: httpx.AsyncClient
    asgi: Any

    async def post(self, **body: Any) -> httpx.Response:
        return await self.http.post("/jobs", json={"prompt": SECRET, **body})

    async def submit(self, **body: Any) -> str:
        response = await self.post(**body)
        assert response.status_code == 202, response.text
        view = JobView.model_validate(response.json())
        assert response.headers["location"] == f"/jobs/{view.id}"
        await run_ready_tasks()
        return view.id

    async def poll(self, job_id: str, query: str = "") -> JobView:
        response = await self.http.get(f"/jobs/{job_id}{query}")
        assert response.status_code == 200, response.text
        assert response.headers["cache-control"] == "no-store"
        return JobView.model_validate(response.json())


async def run_ready_tasks() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def started(seconds: float = 10) -> Started:
    return Started("demo", RATE, 1, int(seconds * RATE))


def chunk(position: float, seconds: float) -> AudioChunk:
    return AudioChunk(np.zeros((1, int(seconds * RATE)), np.float32), int(position * RATE))


def run(test: Callable[[Harness], Awaitable[None]], *, abandoned: float = 300, **settings: Any) -> None:
    async def main() -> None:
        generator, in_flight = FakeGenerator(), InFlight()
        drain = Drain(60, in_flight.__bool__)
        jobs = Jobs(generator, Settings(**settings), drain, in_flight, abandoned)
        app = build_app(no_models, lambda: jobs, GenerationRequest)
        bodies = {"/jobs": GenerationRequest}
        asgi = PathNormalizer(Middleware(app, bodies, drain, in_flight), PATHS)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://test") as http:
            await test(Harness(generator, jobs, drain, in_flight, http, asgi))

    asyncio.run(main())


async def no_models() -> ModelList:
    return ModelList(models=[])


def error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    detail = ErrorBody.model_validate(response.json()).error
    assert detail.code == code
    assert detail.message
    assert SECRET not in response.text
    return detail.model_dump()


def test_job_goes_from_the_queue_to_its_audio() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit(duration=10.005, seed=5)
        views = [await harness.poll(job_id)]
        for events in ([Queued(2)], [Queued(0, True)], [Queued(0)], [started(10)], [chunk(0, 2.5)]):
            harness.generator.send(*events)
            views.append(await harness.poll(job_id))
        wav = harness.generator.finish()
        views.append(await harness.poll(job_id, "?wait=5"))
        states = [(view.state, view.position, view.audio_seconds) for view in views]
        assert states == [
            ("queued", None, 0),
            ("queued", 3, 0),
            ("loading", None, 0),
            ("queued", 1, 0),
            ("running", None, 0),
            ("running", None, 2.5),
            ("done", None, 10),
        ]
        assert (views[0].duration, views[-1].duration, views[-1].seed, views[-1].model) == (10.005, 10, 5, "demo")
        versions = [view.version for view in views]
        assert versions == sorted(versions)
        assert versions[0] == 1
        assert [view.expires_in is None for view in views] == [True] * 6 + [False]
        assert 590 < (views[-1].expires_in or 0) <= 600
        response = await harness.http.get(f"/jobs/{job_id}/audio")
        assert (response.content, response.headers["content-type"], response.headers["x-seed"]) == (
            wav,
            "audio/wav",
            "7",
        )
        assert response.headers["cache-control"] == "no-store"

    run(test)


def test_poll_returns_at_the_next_change() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        waiting = [asyncio.ensure_future(harness.poll(job_id, f"?wait=30{more}")) for more in ("", "&version=1")]
        await run_ready_tasks()
        assert not any(poll.done() for poll in waiting)
        harness.generator.send(Queued(0))
        assert [(await poll).position for poll in waiting] == [1, 1]
        assert (await harness.poll(job_id, "?wait=30&version=1")).version == 2
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        assert (await harness.poll(job_id, "?wait=0.1&version=2")).version == 2
        assert 0.09 < loop.time() - started_at < 5

    run(test)


def test_progress_updates_are_rate_limited_but_the_end_is_not() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        harness.generator.send(started(100))
        version = (await harness.poll(job_id)).version
        harness.generator.send(*(chunk(at, 1) for at in range(50)))
        view = await harness.poll(job_id)
        assert view.version == version  # the start was less than PROGRESS_SECONDS ago
        assert view.audio_seconds == 50
        await asyncio.sleep(PROGRESS_SECONDS * 1.5)
        waiting = asyncio.ensure_future(harness.poll(job_id, f"?wait=5&version={version}"))
        await run_ready_tasks()
        harness.generator.send(*(chunk(at, 1) for at in range(50, 99)))
        assert (await waiting).version == version + 1
        harness.generator.finish()
        assert (await harness.poll(job_id, f"?wait=5&version={version + 1}")).state == "done"

    run(test)


def test_audio_is_downloaded_once() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        error(await harness.http.get(f"/jobs/{job_id}/audio"), 409, "not_ready")
        wav = harness.generator.finish()
        await run_ready_tasks()
        head = await harness.http.head(f"/jobs/{job_id}/audio")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(wav)), b"")
        assert (await harness.http.get(f"/jobs/{job_id}/audio?keep=true")).content == wav
        assert (await harness.http.get(f"/jobs/{job_id}/audio")).content == wav
        for response in (
            await harness.http.get(f"/jobs/{job_id}/audio"),
            await harness.http.get(f"/jobs/{job_id}"),
            await harness.http.delete(f"/jobs/{job_id}"),
            await harness.http.get("/jobs/{id}"),
        ):
            assert error(response, 404, "unknown_job")["hint"]
        assert (harness.jobs.reserved, len(harness.jobs)) == (0, 0)

    run(test)


async def download(harness: Harness, job_id: str, *, stop_after: int, stall: bool = False) -> int:
    """Read at least `stop_after` bytes of the audio, then disconnect or stall. Return the bytes that arrived."""
    received, disconnected = 0, asyncio.Event()
    requested = False

    async def receive() -> Any:
        nonlocal requested
        if not requested:
            requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal received
        received += len(message.get("body", b""))
        if received >= stop_after and stall:
            await asyncio.Event().wait()
        if received > stop_after or message.get("more_body") is False:  # at the end: while the last bytes are sent
            disconnected.set()
            await run_ready_tasks()

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/jobs/{job_id}/audio",
        "raw_path": b"",
        "query_string": b"",
        "headers": [],
    }
    with suppress(ResponseAborted):
        await harness.asgi(scope, receive, send)
    return received


def test_interrupted_download_can_be_repeated() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        wav = harness.generator.finish(1_000_000)
        await run_ready_tasks()
        assert 100_000 <= await download(harness, job_id, stop_after=100_000) < len(wav)
        assert (await harness.http.get(f"/jobs/{job_id}/audio")).content == wav
        error(await harness.http.get(f"/jobs/{job_id}/audio"), 404, "unknown_job")

    run(test)


def test_download_interrupted_after_its_last_byte_can_be_repeated() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        wav = harness.generator.finish(1_000_000)
        await run_ready_tasks()
        assert await download(harness, job_id, stop_after=1_000_000) == len(wav)
        assert (await harness.http.get(f"/jobs/{job_id}/audio")).content == wav

    run(test)


def test_download_of_a_stalled_client_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "STALLED_SECONDS", 0.05)

    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        wav = harness.generator.finish(1_000_000)
        await run_ready_tasks()
        assert await download(harness, job_id, stop_after=100_000, stall=True) < len(wav)
        job = harness.jobs.get(job_id)
        assert job.readers == 0
        assert (await harness.http.delete(f"/jobs/{job_id}")).status_code == 204
        assert harness.jobs.reserved == 0

    run(test)


def test_streamed_audio_stays_reserved_until_the_client_disconnects() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit(duration=10)
        harness.generator.send(started(), chunk(0, 5))
        reserved = harness.jobs.reserved
        with harness.jobs.hold_stream(harness.jobs.get(job_id)):
            await harness.http.delete(f"/jobs/{job_id}")
            assert harness.jobs.reserved == reserved
        assert harness.jobs.reserved == MIN_JOB_BYTES

    run(test)


def test_late_events_do_not_change_a_cancelled_job() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit(duration=10)
        await harness.http.delete(f"/jobs/{job_id}")
        harness.generator.send(Queued(0), started())
        assert (await harness.poll(job_id)).state == "cancelled"

    run(test)


def test_concurrent_downloads_both_get_the_audio_which_stays_reserved() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        wav = harness.generator.finish(1_000_000)
        await run_ready_tasks()
        job = harness.jobs.get(job_id)
        with harness.jobs.hold_audio(job) as encoded:
            assert (await harness.http.get(f"/jobs/{job_id}/audio")).content == wav
            assert harness.jobs.reserved == len(wav)
            assert encoded.wav == wav
        assert harness.jobs.reserved == 0

    run(test)


def advance(harness: Harness, state: str) -> None:
    events: dict[str, list[Event]] = {
        "queued": [Queued(1)],
        "loading": [Queued(0, True)],
        "running": [started(), chunk(0, 1)],
    }
    harness.generator.send(*events[state])


@pytest.mark.parametrize("state", ["queued", "loading", "running"])
def test_job_can_be_cancelled_in_every_state(state: str) -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit(duration=60)
        advance(harness, state)
        waiting = asyncio.ensure_future(harness.poll(job_id, "?wait=30"))
        await run_ready_tasks()
        assert (await harness.http.delete(f"/jobs/{job_id}")).status_code == 204
        assert (await waiting).state == "cancelled"
        await run_ready_tasks()
        assert (harness.generator.cancelled, bool(harness.in_flight)) == (1, False)
        assert harness.jobs.reserved == MIN_JOB_BYTES
        error(await harness.http.get(f"/jobs/{job_id}/audio"), 409, "not_ready")
        assert (await harness.http.delete(f"/jobs/{job_id}")).status_code == 204
        error(await harness.http.get(f"/jobs/{job_id}"), 404, "unknown_job")
        assert harness.jobs.reserved == 0

    run(test)


def test_delete_removes_a_finished_job() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        harness.generator.finish()
        await run_ready_tasks()
        assert (await harness.http.delete(f"/jobs/{job_id}")).status_code == 204
        error(await harness.http.get(f"/jobs/{job_id}/audio"), 404, "unknown_job")
        await run_ready_tasks()
        assert (harness.jobs.reserved, bool(harness.in_flight)) == (0, False)

    run(test)


def test_failed_job_keeps_its_error_but_no_memory() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit(duration=60)
        harness.generator.results[-1].set_exception(GenerationFailed("The model gave NaN.", hint="Use another seed."))
        view = await harness.poll(job_id, "?wait=5")
        assert view.state == "failed"
        assert view.error
        assert (view.error.code, view.error.hint) == ("generation_failed", "Use another seed.")
        assert harness.jobs.reserved == MIN_JOB_BYTES
        assert "error" in error(await harness.http.get(f"/jobs/{job_id}/audio"), 409, "not_ready")["hint"]

    run(test)


@pytest.mark.parametrize("failed", [True, False])
def test_failed_or_cancelled_job_keeps_no_reference_to_its_audio(failed: bool) -> None:
    class PartialAudio:
        """An object that only the generation refers to."""

    async def test(harness: Harness) -> None:
        references: list[weakref.ref[PartialAudio]] = []
        generate_audio = harness.generator.generate_audio

        async def keep_reference(admitted: AdmittedRequest, on_event: EventCallback) -> EncodedAudio:
            partial = PartialAudio()
            references.append(weakref.ref(partial))
            return await generate_audio(admitted, on_event)

        harness.generator.generate_audio = keep_reference  # type: ignore[method-assign]
        job_id = await harness.submit()
        await run_ready_tasks()
        assert references[0]() is not None
        if failed:
            harness.generator.results[-1].set_exception(GenerationFailed("The model gave NaN."))
        else:
            harness.jobs._cancel(harness.jobs.get(job_id))
        await run_ready_tasks()
        harness.generator.results.clear()  # they refer to the exception, too
        assert harness.jobs.get(job_id).finished
        gc.collect()
        assert references[0]() is None

    run(test)


def test_refusal_of_the_runner_leaves_no_job() -> None:
    async def test(harness: Harness) -> None:
        harness.generator.admit_error = QueueFull("The queue is full.", retry_after=3.2)
        response = await harness.post()
        error(response, 429, "queue_full")
        assert response.headers["retry-after"] == "4"
        assert (harness.jobs.reserved, len(harness.jobs)) == (0, 0)
        assert error(await harness.post(durration=3), 400, "invalid")["field"] == "durration"

    run(test)


def test_memory_is_reserved_when_a_job_is_submitted() -> None:
    async def test(harness: Harness) -> None:
        size = 44 + 2 * RATE * 10
        job_ids = [await harness.submit(duration=10) for _ in range(3)]
        assert harness.jobs.reserved == 3 * size
        response = await harness.post(duration=10)
        error(response, 429, "job_storage_full")
        assert int(response.headers["retry-after"]) >= 1
        assert (await harness.http.delete(f"/jobs/{job_ids[0]}")).status_code == 204
        error(await harness.post(duration=20), 429, "job_storage_full")
        await harness.submit(duration=5)
        response = await harness.post(duration=10)
        error(response, 429, "job_storage_full")
        assert int(response.headers["retry-after"]) == 10  # other jobs are running
        assert error(await harness.post(duration=100), 400, "invalid")["field"] == "duration"  # larger than the storage

    run(test, job_megabytes=2)


def test_number_of_small_jobs_is_limited() -> None:
    async def test(harness: Harness) -> None:
        for _ in range(1_000_000 // MIN_JOB_BYTES):
            await harness.submit(duration=0.1)
        error(await harness.post(duration=0.1), 429, "job_storage_full")

    run(test, job_megabytes=1)


def test_unknown_model_reserves_the_largest_format() -> None:
    async def test(harness: Harness) -> None:
        await harness.submit(duration=10, model="someone/else")
        assert harness.jobs.reserved == 44 + 2 * 2 * 48_000 * 10
        harness.generator.finish(700_000)
        await run_ready_tasks()
        assert harness.jobs.reserved == 700_000

    run(test)


def test_finished_job_expires() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        harness.generator.finish()
        assert (await harness.poll(job_id, "?wait=5")).state == "done"
        await asyncio.sleep(0.4)
        error(await harness.http.get(f"/jobs/{job_id}/audio"), 404, "unknown_job")
        assert harness.jobs.reserved == 0

    run(test, job_minutes=0.3 / 60)


def test_job_without_polls_is_cancelled() -> None:
    async def test(harness: Harness) -> None:
        abandoned, polled = await harness.submit(), await harness.submit()
        for _ in range(6):
            await asyncio.sleep(0.1)
            assert (await harness.poll(polled)).state == "queued"
        assert (await harness.poll(abandoned)).state == "cancelled"
        assert harness.generator.cancelled == 1

    run(test, abandoned=0.4)


def test_job_ids_are_unguessable_and_jobs_independent() -> None:
    async def test(harness: Harness) -> None:
        one, other = await harness.submit(seed=1), await harness.submit(seed=2)
        assert one != other
        assert len(one) >= 32
        harness.generator.finish(500)
        assert (await harness.poll(other, "?wait=5")).state == "done"
        assert (await harness.poll(one)).state == "queued"
        assert len((await harness.http.get(f"/jobs/{other}/audio")).content) == 500
        assert (await harness.http.delete(f"/jobs/{one}")).status_code == 204

    run(test)


@pytest.mark.parametrize(
    ("query", "field"),
    [("wait=31", "wait"), ("wait=-1", "wait"), ("wait=nan", "wait"), ("wait=x", "wait"), ("version=-1", "version")],
)
def test_invalid_query_is_400(query: str, field: str) -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        assert error(await harness.http.get(f"/jobs/{job_id}?{query}"), 400, "invalid")["field"] == field
        assert error(await harness.http.get(f"/jobs/{job_id}/audio?keep=x"), 400, "invalid")["field"] == "keep"
        assert error(await harness.http.get(f"/jobs/{job_id}/audio?kept=true"), 400, "invalid")["field"] == "kept"

    run(test)


def test_expired_drain_fails_running_jobs_and_new_jobs_are_refused() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        waiting = asyncio.ensure_future(harness.poll(job_id, "?wait=30"))
        await run_ready_tasks()
        harness.drain.started = True
        error(await harness.post(), 503, "shutting_down")
        assert harness.in_flight
        harness.drain.expired.set()
        view = await waiting
        assert (view.state, view.error and view.error.code) == ("failed", "shutting_down")
        await run_ready_tasks()
        assert (harness.generator.cancelled, bool(harness.in_flight)) == (1, False)

    run(test)


def test_shutdown_waits_for_the_download_of_a_finished_job() -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit()
        harness.generator.finish()
        assert (await harness.poll(job_id, "?wait=5")).state == "done"
        assert harness.in_flight
        await harness.http.get(f"/jobs/{job_id}/audio")
        await run_ready_tasks()
        assert not harness.in_flight

    run(test)


def test_log_has_one_line_per_job_without_its_id_or_prompt(caplog: pytest.LogCaptureFixture) -> None:
    async def test(harness: Harness) -> None:
        job_id = await harness.submit(duration=3)
        await harness.poll(job_id, "?wait=0.01")
        harness.generator.finish()
        await harness.poll(job_id, "?wait=5")
        await harness.http.get(f"/jobs/{job_id}/audio")
        lines = [record.getMessage() for record in caplog.records if record.name == "bentoml.musicgen"]
        assert [line.split(" ")[1:3] for line in lines] == [
            ["POST", "/jobs"],
            ["job", lines[1].split(" ")[2]],
            ["GET", "/jobs/{id}/audio"],
        ]
        assert lines[0].split(" ")[0] == lines[1].split(" ")[0]
        assert lines[1].endswith("state=done")
        assert job_id not in caplog.text
        assert SECRET not in caplog.text

    caplog.set_level("INFO", "bentoml.musicgen")
    run(test)


def test_state_diagram_has_every_state() -> None:
    assert set(re.findall(r"[a-z]+", (job.__doc__ or "").split("\n\n")[1])) >= set(get_args(JobState))
