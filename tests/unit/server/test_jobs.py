"""Jobs: their life, their bounds, and how they are fetched. Around a maker whose every step a test decides."""

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
from musicgen_bento.server import jobs, responses, routes
from musicgen_bento.server.jobs import PROGRESS_SECONDS, SMALLEST, Jobs
from musicgen_bento.server.middleware import Middleware, PathNormalizer
from musicgen_bento.server.request_context import RequestContext, ResponseAborted
from musicgen_bento.server.shutdown import Drain, InFlight
from musicgen_bento.server.studio import AdmittedRequest, EncodedAudio

RATE = 32_000
SECRET = "xylophone-of-the-hidden-garden"
PATHS = frozenset(("/jobs", "/jobs/{id}", "/jobs/{id}/audio"))


@dataclass
class Maker:
    """Makes what it is told to, when it is told to."""

    refuse: MusicGenError | None = None
    listeners: list[EventCallback] = field(default_factory=list)
    ends: list[asyncio.Future[EncodedAudio]] = field(default_factory=list)
    cancelled: int = 0

    async def take(self, request: GenerationRequest, current: RequestContext) -> AdmittedRequest:
        await asyncio.sleep(0)
        if self.refuse:
            raise self.refuse
        return AdmittedRequest(
            current.id, "ticket", request.model or "demo", request.seed or 0, request.duration, "none"
        )

    async def make(self, order: AdmittedRequest, listen: EventCallback) -> EncodedAudio:
        end = asyncio.get_running_loop().create_future()
        self.listeners.append(listen)
        self.ends.append(end)
        try:
            return await end
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def tell(self, *events: Event) -> None:
        for event in events:
            self.listeners[-1](event)

    def finish(self, size: int = 1000) -> bytes:
        wav = bytes(range(256)) * (size // 256 + 1)
        self.ends[-1].set_result(EncodedAudio(wav[:size], {"X-Seed": "7"}))
        return wav[:size]


@dataclass
class Bench:
    """The jobs with everything around them."""

    maker: Maker
    jobs: Jobs
    drain: Drain
    work: InFlight
    http: httpx.AsyncClient
    asgi: Any

    async def post(self, **body: Any) -> httpx.Response:
        return await self.http.post("/jobs", json={"prompt": SECRET, **body})

    async def submit(self, **body: Any) -> str:
        answer = await self.post(**body)
        assert answer.status_code == 202, answer.text
        view = JobView.model_validate(answer.json())
        assert answer.headers["location"] == f"/jobs/{view.id}"
        await settle()
        return view.id

    async def ask(self, name: str, query: str = "") -> JobView:
        answer = await self.http.get(f"/jobs/{name}{query}")
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        return JobView.model_validate(answer.json())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def started(seconds: float = 10) -> Started:
    return Started("demo", RATE, 1, int(seconds * RATE))


def chunk(position: float, seconds: float) -> AudioChunk:
    return AudioChunk(np.zeros((1, int(seconds * RATE)), np.float32), int(position * RATE))


def run(test: Callable[[Bench], Awaitable[None]], *, abandoned: float = 300, **settings: Any) -> None:
    async def main() -> None:
        maker, work = Maker(), InFlight()
        drain = Drain(60, work.__bool__)
        jobs = Jobs(maker, Settings(**settings), drain, work, abandoned)
        built = routes.build(no_models, lambda: jobs, GenerationRequest)
        bodies = {"/jobs": GenerationRequest}
        asgi = PathNormalizer(Middleware(built, bodies, drain, work), PATHS)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://test") as http:
            await test(Bench(maker, jobs, drain, work, http, asgi))

    asyncio.run(main())


async def no_models() -> ModelList:
    return ModelList(models=[])


def error(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found = ErrorBody.model_validate(answer.json()).error
    assert found.code == code
    assert found.message
    assert SECRET not in answer.text
    return found.model_dump()


def test_a_job_from_the_queue_to_its_music() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit(duration=10.005, seed=5)
        seen = [await bench.ask(name)]
        for events in ([Queued(2)], [Queued(0, True)], [Queued(0)], [started(10)], [chunk(0, 2.5)]):
            bench.maker.tell(*events)
            seen.append(await bench.ask(name))
        wav = bench.maker.finish()
        seen.append(await bench.ask(name, "?wait=5"))
        told = [(view.state, view.position, view.audio_seconds) for view in seen]
        assert told == [
            ("queued", None, 0),
            ("queued", 3, 0),
            ("loading", None, 0),
            ("queued", 1, 0),
            ("running", None, 0),
            ("running", None, 2.5),
            ("done", None, 10),
        ]
        assert (seen[0].duration, seen[-1].duration, seen[-1].seed, seen[-1].model) == (10.005, 10, 5, "demo")
        versions = [view.version for view in seen]
        assert versions == sorted(versions)
        assert versions[0] == 1
        assert [view.expires_in is None for view in seen] == [True] * 6 + [False]
        assert 590 < (seen[-1].expires_in or 0) <= 600
        answer = await bench.http.get(f"/jobs/{name}/audio")
        assert (answer.content, answer.headers["content-type"], answer.headers["x-seed"]) == (wav, "audio/wav", "7")
        assert answer.headers["cache-control"] == "no-store"

    run(test)


def test_a_wait_ends_with_the_next_change_and_not_before() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit()
        waiting = [asyncio.ensure_future(bench.ask(name, f"?wait=30{more}")) for more in ("", "&version=1")]
        await settle()
        assert not any(each.done() for each in waiting)
        bench.maker.tell(Queued(0))
        assert [(await each).position for each in waiting] == [1, 1]
        assert (await bench.ask(name, "?wait=30&version=1")).version == 2
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await bench.ask(name, "?wait=0.1&version=2")).version == 2
        assert 0.09 < loop.time() - began < 5

    run(test)


def test_progress_is_told_a_few_times_a_second_and_the_last_word_at_once() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit()
        bench.maker.tell(started(100))
        version = (await bench.ask(name)).version
        bench.maker.tell(*(chunk(at, 1) for at in range(50)))
        view = await bench.ask(name)
        assert view.version == version  # the start has just been told
        assert view.audio_seconds == 50
        await asyncio.sleep(PROGRESS_SECONDS * 1.5)
        waiting = asyncio.ensure_future(bench.ask(name, f"?wait=5&version={version}"))
        await settle()
        bench.maker.tell(*(chunk(at, 1) for at in range(50, 99)))
        assert (await waiting).version == version + 1
        bench.maker.finish()
        assert (await bench.ask(name, f"?wait=5&version={version + 1}")).state == "done"

    run(test)


def test_the_music_is_fetched_once() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit()
        error(await bench.http.get(f"/jobs/{name}/audio"), 409, "not_ready")
        wav = bench.maker.finish()
        await settle()
        head = await bench.http.head(f"/jobs/{name}/audio")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(wav)), b"")
        assert (await bench.http.get(f"/jobs/{name}/audio?keep=true")).content == wav
        assert (await bench.http.get(f"/jobs/{name}/audio")).content == wav
        for answer in (
            await bench.http.get(f"/jobs/{name}/audio"),
            await bench.http.get(f"/jobs/{name}"),
            await bench.http.delete(f"/jobs/{name}"),
            await bench.http.get("/jobs/{id}"),
        ):
            assert error(answer, 404, "unknown_job")["hint"]
        assert (bench.jobs.reserved, len(bench.jobs)) == (0, 0)

    run(test)


async def fetch(bench: Bench, name: str, *, leave_after: int, stall: bool = False) -> int:
    """Take so many bytes of the music, then leave, or stay and take nothing. How many came."""
    got, gone = 0, asyncio.Event()
    asked = False

    async def receive() -> Any:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal got
        got += len(message.get("body", b""))
        if got >= leave_after and stall:
            await asyncio.Event().wait()
        if got > leave_after or message.get("more_body") is False:  # at the end, while the last bytes are on their way
            gone.set()
            await settle()

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/jobs/{name}/audio",
        "raw_path": b"",
        "query_string": b"",
        "headers": [],
    }
    with suppress(ResponseAborted):
        await bench.asgi(scope, receive, send)
    return got


def test_a_fetch_that_breaks_may_be_repeated() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit()
        wav = bench.maker.finish(1_000_000)
        await settle()
        assert 100_000 <= await fetch(bench, name, leave_after=100_000) < len(wav)
        assert (await bench.http.get(f"/jobs/{name}/audio")).content == wav
        error(await bench.http.get(f"/jobs/{name}/audio"), 404, "unknown_job")

    run(test)


def test_a_fetch_that_breaks_behind_its_last_byte_may_be_repeated() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit()
        wav = bench.maker.finish(1_000_000)
        await settle()
        assert await fetch(bench, name, leave_after=1_000_000) == len(wav)
        assert (await bench.http.get(f"/jobs/{name}/audio")).content == wav

    run(test)


def test_a_reader_who_takes_nothing_is_left_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "STALLED_SECONDS", 0.05)

    async def test(bench: Bench) -> None:
        name = await bench.submit()
        wav = bench.maker.finish(1_000_000)
        await settle()
        assert await fetch(bench, name, leave_after=100_000, stall=True) < len(wav)
        job = bench.jobs.find(name)
        assert job.readers == 0
        assert (await bench.http.delete(f"/jobs/{name}")).status_code == 204
        assert bench.jobs.reserved == 0

    run(test)


def test_what_a_listener_holds_counts_until_it_leaves() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit(duration=10)
        bench.maker.tell(started(), chunk(0, 5))
        whole = bench.jobs.reserved
        with bench.jobs.listening(bench.jobs.find(name)):
            await bench.http.delete(f"/jobs/{name}")
            assert bench.jobs.reserved == whole
        assert bench.jobs.reserved == SMALLEST

    run(test)


def test_what_a_runner_still_says_of_a_cancelled_job_changes_nothing() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit(duration=10)
        await bench.http.delete(f"/jobs/{name}")
        bench.maker.tell(Queued(0), started())
        assert (await bench.ask(name)).state == "cancelled"

    run(test)


def test_two_who_fetch_at_once_both_get_it_and_its_memory_counts_until_then() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit()
        wav = bench.maker.finish(1_000_000)
        await settle()
        job = bench.jobs.find(name)
        with bench.jobs.reading(job) as slow:
            assert (await bench.http.get(f"/jobs/{name}/audio")).content == wav
            assert bench.jobs.reserved == len(wav)
            assert slow.wav == wav
        assert bench.jobs.reserved == 0

    run(test)


def begin(bench: Bench, state: str) -> None:
    events: dict[str, list[Event]] = {
        "queued": [Queued(1)],
        "loading": [Queued(0, True)],
        "running": [started(), chunk(0, 1)],
    }
    bench.maker.tell(*events[state])


@pytest.mark.parametrize("state", ["queued", "loading", "running"])
def test_cancelled_in_any_state_it_ends_and_says_so(state: str) -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit(duration=60)
        begin(bench, state)
        watching = asyncio.ensure_future(bench.ask(name, "?wait=30"))
        await settle()
        assert (await bench.http.delete(f"/jobs/{name}")).status_code == 204
        assert (await watching).state == "cancelled"
        await settle()
        assert (bench.maker.cancelled, bool(bench.work)) == (1, False)
        assert bench.jobs.reserved == SMALLEST
        error(await bench.http.get(f"/jobs/{name}/audio"), 409, "not_ready")
        assert (await bench.http.delete(f"/jobs/{name}")).status_code == 204
        error(await bench.http.get(f"/jobs/{name}"), 404, "unknown_job")
        assert bench.jobs.reserved == 0

    run(test)


def test_a_job_that_is_done_is_forgotten_by_delete() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit()
        bench.maker.finish()
        await settle()
        assert (await bench.http.delete(f"/jobs/{name}")).status_code == 204
        error(await bench.http.get(f"/jobs/{name}/audio"), 404, "unknown_job")
        await settle()
        assert (bench.jobs.reserved, bool(bench.work)) == (0, False)

    run(test)


def test_a_job_that_fails_keeps_its_error_and_no_memory() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit(duration=60)
        bench.maker.ends[-1].set_exception(GenerationFailed("The model gave NaN.", hint="Try another seed."))
        view = await bench.ask(name, "?wait=5")
        assert view.state == "failed"
        assert view.error
        assert (view.error.code, view.error.hint) == ("generation_failed", "Try another seed.")
        assert bench.jobs.reserved == SMALLEST
        assert "error" in error(await bench.http.get(f"/jobs/{name}/audio"), 409, "not_ready")["hint"]

    run(test)


@pytest.mark.parametrize("failed", [True, False])
def test_a_job_without_music_holds_on_to_nothing_that_was_on_the_way(failed: bool) -> None:
    class Clip:
        """Half of one, say."""

    async def test(bench: Bench) -> None:
        seen: list[weakref.ref[Clip]] = []
        make = bench.maker.make

        async def making(order: AdmittedRequest, listen: EventCallback) -> EncodedAudio:
            clip = Clip()
            seen.append(weakref.ref(clip))
            return await make(order, listen)

        bench.maker.make = making  # type: ignore[method-assign]
        name = await bench.submit()
        await settle()
        assert seen[0]() is not None
        if failed:
            bench.maker.ends[-1].set_exception(GenerationFailed("The model gave NaN."))
        else:
            bench.jobs._cancel(bench.jobs.find(name))
        await settle()
        bench.maker.ends.clear()  # they hold the exception as well
        assert bench.jobs.find(name).over
        gc.collect()
        assert seen[0]() is None

    run(test)


def test_what_the_runner_refuses_is_refused_and_leaves_nothing() -> None:
    async def test(bench: Bench) -> None:
        bench.maker.refuse = QueueFull("The queue is full.", retry_after=3.2)
        answer = await bench.post()
        error(answer, 429, "queue_full")
        assert answer.headers["retry-after"] == "4"
        assert (bench.jobs.reserved, len(bench.jobs)) == (0, 0)
        assert error(await bench.post(durration=3), 400, "invalid")["field"] == "durration"

    run(test)


def test_the_memory_is_reserved_when_a_job_is_taken() -> None:
    async def test(bench: Bench) -> None:
        size = 44 + 2 * RATE * 10
        names = [await bench.submit(duration=10) for _ in range(3)]
        assert bench.jobs.reserved == 3 * size
        answer = await bench.post(duration=10)
        error(answer, 429, "jobs_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await bench.http.delete(f"/jobs/{names[0]}")).status_code == 204
        error(await bench.post(duration=20), 429, "jobs_full")
        await bench.submit(duration=5)
        answer = await bench.post(duration=10)
        error(answer, 429, "jobs_full")
        assert int(answer.headers["retry-after"]) == 10  # others are being made
        assert error(await bench.post(duration=100), 400, "invalid")["field"] == "duration"  # never fits

    run(test, job_megabytes=2)


def test_small_jobs_are_bounded_in_number() -> None:
    async def test(bench: Bench) -> None:
        for _ in range(1_000_000 // SMALLEST):
            await bench.submit(duration=0.1)
        error(await bench.post(duration=0.1), 429, "jobs_full")

    run(test, job_megabytes=1)


def test_a_model_nobody_knows_is_reserved_for_at_its_widest() -> None:
    async def test(bench: Bench) -> None:
        await bench.submit(duration=10, model="someone/else")
        assert bench.jobs.reserved == 44 + 2 * 2 * 48_000 * 10
        bench.maker.finish(700_000)
        await settle()
        assert bench.jobs.reserved == 700_000

    run(test)


def test_a_job_that_is_over_is_forgotten_in_time() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit()
        bench.maker.finish()
        assert (await bench.ask(name, "?wait=5")).state == "done"
        await asyncio.sleep(0.4)
        error(await bench.http.get(f"/jobs/{name}/audio"), 404, "unknown_job")
        assert bench.jobs.reserved == 0

    run(test, job_minutes=0.3 / 60)


def test_a_job_nobody_asks_after_is_cancelled_and_one_that_is_watched_is_not() -> None:
    async def test(bench: Bench) -> None:
        left, watched = await bench.submit(), await bench.submit()
        for _ in range(6):
            await asyncio.sleep(0.1)
            assert (await bench.ask(watched)).state == "queued"
        assert (await bench.ask(left)).state == "cancelled"
        assert bench.maker.cancelled == 1

    run(test, abandoned=0.4)


def test_two_clients_do_not_see_each_other() -> None:
    async def test(bench: Bench) -> None:
        one, other = await bench.submit(seed=1), await bench.submit(seed=2)
        assert one != other
        assert len(one) >= 32
        bench.maker.finish(500)
        assert (await bench.ask(other, "?wait=5")).state == "done"
        assert (await bench.ask(one)).state == "queued"
        assert len((await bench.http.get(f"/jobs/{other}/audio")).content) == 500
        assert (await bench.http.delete(f"/jobs/{one}")).status_code == 204

    run(test)


@pytest.mark.parametrize(
    ("query", "field"),
    [("wait=31", "wait"), ("wait=-1", "wait"), ("wait=nan", "wait"), ("wait=x", "wait"), ("version=-1", "version")],
)
def test_a_bad_question_is_400(query: str, field: str) -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit()
        assert error(await bench.http.get(f"/jobs/{name}?{query}"), 400, "invalid")["field"] == field
        assert error(await bench.http.get(f"/jobs/{name}/audio?keep=x"), 400, "invalid")["field"] == "keep"
        assert error(await bench.http.get(f"/jobs/{name}/audio?kept=true"), 400, "invalid")["field"] == "kept"

    run(test)


def test_when_the_time_is_up_what_is_not_finished_fails_and_new_jobs_are_refused() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit()
        watching = asyncio.ensure_future(bench.ask(name, "?wait=30"))
        await settle()
        bench.drain.started = True
        error(await bench.post(), 503, "shutting_down")
        assert bench.work
        bench.drain.expired.set()
        view = await watching
        assert (view.state, view.error and view.error.code) == ("failed", "shutting_down")
        await settle()
        assert (bench.maker.cancelled, bool(bench.work)) == (1, False)

    run(test)


def test_a_server_that_goes_waits_for_what_it_has_made_to_be_fetched() -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit()
        bench.maker.finish()
        assert (await bench.ask(name, "?wait=5")).state == "done"
        assert bench.work
        await bench.http.get(f"/jobs/{name}/audio")
        await settle()
        assert not bench.work

    run(test)


def test_the_log_has_a_line_for_a_job_and_neither_its_id_nor_its_prompt(caplog: pytest.LogCaptureFixture) -> None:
    async def test(bench: Bench) -> None:
        name = await bench.submit(duration=3)
        await bench.ask(name, "?wait=0.01")
        bench.maker.finish()
        await bench.ask(name, "?wait=5")
        await bench.http.get(f"/jobs/{name}/audio")
        lines = [record.getMessage() for record in caplog.records if record.name == "bentoml.musicgen"]
        assert [line.split(" ")[1:3] for line in lines] == [
            ["POST", "/jobs"],
            ["job", lines[1].split(" ")[2]],
            ["GET", "/jobs/{id}/audio"],
        ]
        assert lines[0].split(" ")[0] == lines[1].split(" ")[0]
        assert lines[1].endswith("state=done")
        assert name not in caplog.text
        assert SECRET not in caplog.text

    caplog.set_level("INFO", "bentoml.musicgen")
    run(test)


def test_the_life_that_is_drawn_has_every_state() -> None:
    assert set(re.findall(r"[a-z]+", (jobs.__doc__ or "").split("\n\n")[1])) >= set(get_args(JobState))
