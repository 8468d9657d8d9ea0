"""The client against a stand-in that refuses, drops, falls silent and talks nonsense, and the light imports."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pydantic
import pytest

from musicgen_bento.client import (
    AsyncMusicGenClient,
    Cancelled,
    Clip,
    InvalidResponse,
    MusicGenClient,
    MusicGenError,
    Progress,
    StreamTruncated,
    TimedOut,
    Unreachable,
)
from musicgen_bento.errors import (
    GenerationFailed,
    InvalidRequest,
    ModelUnavailable,
    QueueFull,
    ShuttingDown,
    Unavailable,
    UnknownJob,
    UnknownModel,
)
from musicgen_bento.schemas import GenerationOptions, GenerationRequest
from tests.support.fake_server import DROP, WAV, Reply, StandIn, audio_headers, error, job
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[3]
ROAD = ["post", "get", "get", "audio", "delete"]  # of a clip that is made


def client(server: StandIn, **options: Any) -> MusicGenClient:
    return MusicGenClient(server.url, **options)


# ---- the main road


def test_a_clip_is_what_the_server_says(tmp_path: Path) -> None:
    reports: list[Progress] = []
    with StandIn() as server:
        clip = client(server).generate("calm", seed=7, duration=0.5, progress=reports.append)
    assert clip == Clip(WAV, seed=7, model="café", sample_rate=32_000, channels=1, duration=0.5)
    assert server.calls() == ROAD
    assert reports == [
        Progress("queued", 1, 0, 0.5),
        Progress("running", None, 0.2, 0.5),
        Progress("done", None, 0.5, 0.5),
    ]
    assert "RIFF" not in repr(clip)
    clip.save(tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == WAV
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    with pytest.raises(InvalidRequest, match="no folder"):
        clip.save(tmp_path / "nowhere" / "a.wav")


def test_the_server_is_sent_what_was_given_and_a_seed_and_nothing_else() -> None:
    with StandIn() as server:
        client(server, headers={"X-Key": "k"}).generate("calm", top_k=9)
    [body] = server.posted()
    assert body.keys() == {"prompt", "top_k", "seed"}
    assert 0 <= body["seed"] < 2**32
    assert {request.headers["X-Key"] for request in server.requests} == {"k"}
    polls = [request.query for request in server.requests if "wait" in request.query]
    assert [query["version"] for query in polls] == ["1", "2"]
    assert all(0 < float(query["wait"]) <= 30 for query in polls)


def test_the_options_are_the_requests_fields() -> None:
    assert set(GenerationOptions.__annotations__) == set(GenerationRequest.model_fields) - {"prompt", "model"}


@pytest.mark.parametrize(
    ("options", "field"),
    [({"prompt": " "}, "prompt"), ({"duration": -1}, "duration"), ({"seed": "x"}, "seed"), ({"timeout": 0}, "timeout")],
)
def test_what_is_wrong_is_said_before_anything_is_sent(options: dict[str, Any], field: str) -> None:
    with StandIn() as server, pytest.raises(InvalidRequest) as caught:
        client(server).generate(**{"prompt": "calm", **options})
    assert caught.value.field == field
    assert server.requests == []


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:y", "http://x/?q=1", ""])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        MusicGenClient(url)
    assert caught.value.field == "url"


# ---- errors


def test_an_error_is_typed_and_carries_code_hint_and_field() -> None:
    with StandIn(post=[error(400, "unknown_model", field="model")]) as server, pytest.raises(UnknownModel) as caught:
        client(server).generate("calm", model="x")
    found = caught.value
    assert (found.status, found.code, found.message) == (400, "unknown_model", "It is unknown_model.")
    assert (found.hint, found.field) == ("Do better.", "model")
    assert server.calls() == ["post"]


def failed(code: str, **more: Any) -> Reply:
    about = {"code": code, "message": "It failed.", "hint": "Do better.", "field": None, **more}
    return Reply(200, job("failed", 2, error=about))


def test_a_job_that_fails_is_its_error_and_is_forgotten() -> None:
    with StandIn(get=[failed("generation_failed")]) as server, pytest.raises(GenerationFailed, match="It failed"):
        client(server).generate("calm")
    assert server.calls() == ["post", "get", "delete"]


def test_a_job_that_others_cancel_is_an_error() -> None:
    with StandIn(get=[Reply(200, job("cancelled", 2))]) as server, pytest.raises(GenerationFailed, match="cancelled"):
        client(server).generate("calm")


@pytest.mark.parametrize(
    "replies",
    [
        {"post": [Reply(200, b"<html>")]},
        {"post": [Reply(202, {"id": 5})]},
        {"post": [Reply(404, b"not found")]},
        {"get": [Reply(200, b'{"state": ')]},
        {"get": [Reply(200, job("dreaming"))]},
        {"audio": [Reply(200, b"not a wav", audio_headers())]},
        {"audio": [Reply(200, WAV, {})]},
        {"audio": [Reply(200, WAV, {**audio_headers(), "X-Seed": "seven"})]},
    ],
    ids=str,
)
def test_nonsense_is_a_bad_answer(replies: dict[str, list[Reply]]) -> None:
    with StandIn(**replies) as server, pytest.raises(InvalidResponse):
        client(server).generate("calm")
    assert "post" in replies or server.calls()[-1] == "delete"


def test_a_server_that_has_moved_is_named_not_followed() -> None:
    moved = Reply(301, b"", {"Location": "https://elsewhere.example/jobs"})
    with StandIn(post=[moved]) as server, pytest.raises(InvalidResponse, match=r"https://elsewhere\.example"):
        client(server).generate("calm")
    assert server.calls() == ["post"]


def test_no_server_is_told_at_once_without_the_addresss_secrets() -> None:
    with StandIn() as server:
        port = server.url.rpartition(":")[2]
    began = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        MusicGenClient(f"http://me:secret@127.0.0.1:{port}").generate("calm")
    assert time.monotonic() - began < 0.4
    assert "127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)


# ---- what is done again, and what is not


@pytest.mark.parametrize(("status", "code"), [(429, "queue_full"), (429, "job_storage_full"), (503, "shutting_down")])
def test_a_server_that_says_when_to_come_back_is_asked_again_then(status: int, code: str) -> None:
    began = time.monotonic()
    with StandIn(post=[error(status, code, retry_after="1")]) as server:
        client(server).generate("calm")
    assert time.monotonic() - began >= 1
    assert server.calls() == ["post", *ROAD]


def test_a_date_says_when_too() -> None:
    later = formatdate(time.time() + 2, usegmt=True)
    began = time.monotonic()
    with StandIn(post=[error(503, "unavailable", retry_after=later)]) as server:
        client(server).generate("calm")
    assert time.monotonic() - began > 0.5


def test_it_gives_up_in_the_end() -> None:
    busy = [error(429, "queue_full", retry_after="1")] * 9
    with StandIn(post=busy) as server, pytest.raises(QueueFull):
        client(server, retries=1).generate("calm")
    assert server.calls() == ["post", "post"]


def test_what_no_waiting_mends_is_not_asked_again() -> None:
    with StandIn(post=[error(503, "model_unavailable")]) as server, pytest.raises(ModelUnavailable):
        client(server).generate("calm")
    with StandIn(post=[error(500, "internal_error", retry_after="1")]) as other, pytest.raises(MusicGenError):
        client(other).generate("calm")
    assert server.calls() == other.calls() == ["post"]


@pytest.mark.parametrize("timeout", [5, None])
def test_nobody_waits_longer_than_there_is_time(timeout: float | None) -> None:
    began = time.monotonic()
    busy = error(429, "queue_full", retry_after="9" if timeout else "999")
    with StandIn(post=[busy]) as server, pytest.raises(QueueFull):
        client(server, timeout=timeout).generate("calm")
    assert time.monotonic() - began < 2


def test_a_dropped_generate_is_repeated_with_its_seed() -> None:
    with StandIn(post=[DROP]) as server:
        clip = client(server).generate("calm")
    assert server.calls() == ["post", *ROAD]
    first, second = server.posted()
    assert first == second
    assert clip.seed == first["seed"]


@pytest.mark.parametrize("reply", [DROP, Reply(200, job(), cut=20), Reply(502, b"bad gateway")], ids=str)
def test_a_poll_that_breaks_is_repeated(reply: Reply) -> None:
    with StandIn(get=[reply]) as server:
        client(server).generate("calm")
    assert server.calls() == ["post", "get", *ROAD[1:]]


def test_music_that_breaks_off_is_fetched_again_and_never_given_in_part() -> None:
    with StandIn(audio=[Reply(200, WAV, audio_headers(), cut=len(WAV) // 2)]) as server:
        assert client(server).generate("calm").audio == WAV
    assert server.calls() == [*ROAD[:-1], "audio", "delete"]
    assert [request.query for request in server.requests if "keep" in request.query] == [{"keep": "true"}] * 2
    half = [Reply(200, WAV, audio_headers(), cut=len(WAV) // 2)] * 9
    with StandIn(audio=half) as server, pytest.raises(Unreachable):
        client(server, retries=1).generate("calm")
    assert server.calls()[-1] == "delete"


@pytest.mark.parametrize("where", ["get", "audio"])
def test_a_job_that_is_lost_is_made_again_with_its_seed(where: str) -> None:
    with StandIn(**{where: [error(404, "unknown_job")]}) as server:
        client(server).generate("calm")
    first, second = server.posted()
    assert first == second
    assert server.calls().count("delete") == 1  # there is nothing left to delete of the first


def test_a_server_that_loses_every_job_is_given_up() -> None:
    with StandIn(get=[error(404, "unknown_job")] * 9) as server, pytest.raises(UnknownJob):
        client(server, retries=1).generate("calm")
    assert server.calls() == ["post", "get"] * 2


def test_a_job_that_fails_in_passing_is_made_again_a_lasting_failure_is_not() -> None:
    with StandIn(get=[failed("shutting_down", retry_after=0.1)]) as server:
        client(server).generate("calm")
    first, second = server.posted()
    assert first == second
    with StandIn(get=[failed("shutting_down")]) as server, pytest.raises(ShuttingDown):
        client(server).generate("calm")


# ---- time


def test_a_timeout_ends_the_clip_on_the_server_too() -> None:
    never = threading.Event()
    began = time.monotonic()
    with StandIn(get=[Reply(200, job(), after=never)]) as server, pytest.raises(TimedOut):
        client(server).generate("calm", timeout=0.5)
    assert time.monotonic() - began < 3
    never.set()
    assert server.calls() == ["post", "get", "delete"]


def test_a_server_that_falls_silent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musicgen_bento.client.generation.READ_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("musicgen_bento.client.generation.POLL_SECONDS", 0.0)
    with StandIn(get=[Reply(200, job(), after=2.0)]) as server:
        client(server).generate("calm")
    assert server.calls() == ["post", "get", *ROAD[1:]]


# ---- leaving


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_whoever_leaves_deletes_the_job(kind: type[BaseException]) -> None:
    def leave(progress: Progress) -> None:
        if progress.state == "running":
            raise kind

    with StandIn() as server, pytest.raises(kind):
        client(server).generate("calm", progress=leave)
    assert server.calls() == ["post", "get", "delete"]
    assert server.requests[-1].path == "/jobs/j%2F1"


def test_another_thread_may_cancel() -> None:
    answer = threading.Event()
    with StandIn(get=[Reply(200, job("cancelled", 2), after=answer)]) as server:
        generation = client(server).start("calm")
        assert server.requests == []
        threading.Timer(0.2, lambda: (generation.cancel(), answer.set())).start()
        with pytest.raises(MusicGenError):
            generation.result()
        assert server.calls() == ["post", "get", "delete"]
        with pytest.raises(Cancelled):
            generation.result()


def test_a_pause_is_cancelled_at_once() -> None:
    with StandIn(post=[error(429, "queue_full", retry_after="60")]) as server:
        generation = client(server).start("calm")
        threading.Timer(0.2, generation.cancel).start()
        began = time.monotonic()
        with pytest.raises(Cancelled):
            generation.result()
    assert time.monotonic() - began < 2


# ---- models


def test_models_that_cannot_be_listed_are_an_error() -> None:
    with StandIn(models=[error(503, "unavailable")]) as server, pytest.raises(Unavailable):
        client(server).list_models()
    with StandIn(models=[Reply(200, {"models": [{"id": "demo"}]})]) as server, pytest.raises(InvalidResponse):
        client(server).list_models()


# ---- asyncio


def test_the_async_client_is_the_same_client() -> None:
    reports: list[tuple[bool, str]] = []

    async def record(progress: Progress) -> None:
        reports.append((threading.current_thread() is threading.main_thread(), progress.state))

    async def main() -> list[Clip]:
        async with AsyncMusicGenClient(server.url) as music:
            return await asyncio.gather(*(music.generate("calm", seed=seed, progress=record) for seed in (1,)))

    with StandIn() as server:
        [clip] = asyncio.run(main())
    assert (clip.audio, clip.seed) == (WAV, 1)
    assert reports == [(True, "queued"), (True, "running"), (True, "done")]


def test_a_cancelled_task_cancels_the_servers_work() -> None:
    answer = threading.Event()

    async def main() -> None:
        async with AsyncMusicGenClient(server.url) as music:
            task = asyncio.create_task(music.generate("calm"))
            await asyncio.to_thread(wait_until, lambda: "get" in server.calls(), 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert server.calls() == ["post", "get", "delete"]

    slow = Reply(200, job("cancelled", 2), after=1.0)
    with StandIn(get=[slow]) as server:
        asyncio.run(main())
    answer.set()


def test_a_task_that_is_cancelled_before_the_job_is_known_deletes_it_when_it_is() -> None:
    async def main() -> None:
        async with AsyncMusicGenClient(server.url) as music:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(music.generate("calm"), 0.2)

    with StandIn(post=[Reply(202, job(), after=0.6)]) as server:
        asyncio.run(main())
        wait_until(lambda: server.calls() == ["post", "delete"], 10)


def test_what_an_async_progress_raises_ends_the_clip() -> None:
    def leave(_: Progress) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        async with AsyncMusicGenClient(server.url) as music:
            with pytest.raises(ZeroDivisionError):
                await music.generate("calm", progress=leave)

    with StandIn(get=[Reply(200, job(), after=0.5)]) as server:
        asyncio.run(main())
        wait_until(lambda: "delete" in server.calls(), 10)


# ---- the package


def test_it_is_light() -> None:
    code = """
    import json, sys
    import musicgen_bento
    from musicgen_bento.client import AsyncMusicGenClient, MusicGenClient
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "scipy", "bentoml", "starlette", "transformers", "click", "pydantic_settings"}
    assert not heavy & set(json.loads(done.stdout))


def test_an_error_without_an_answer_has_no_status() -> None:
    kinds = (Unreachable, TimedOut, InvalidResponse, StreamTruncated, Cancelled)
    assert {kind.status for kind in kinds} == {0}
    assert len({kind.code for kind in kinds}) == len(kinds)


PROGRAM = """
import asyncio
from musicgen_bento import pipeline
from musicgen_bento.client import AsyncMusicGenClient, Clip, MusicGenClient, MusicGenError, Progress

def show(progress: Progress) -> None:
    print(progress.state, progress.position, progress.audio_seconds, progress.duration)

def main() -> int:
    client = MusicGenClient("http://localhost:8000", timeout=60)
    try:
        clip: Clip = client.generate("calm", model="demo", duration=2, seed=7, normalize="peak", progress=show)
    except MusicGenError as error:
        print(error.code, error.hint, error.field)
        return 1
    clip.save("calm.wav")
    names: list[str] = [model.id for model in client.list_models()]
    out = pipeline("demo")(["calm", "wild"], duration=1, top_k=10)
    rate: int = out.sample_rate
    length: int = out.audios[0].shape[1]
    return len(clip.audio) + rate + length + len(names)

async def later() -> Clip:
    async with AsyncMusicGenClient() as client:
        return await client.generate("calm", progress=show)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One where the package is installed as pip does it: types are taken from it only where there is a py.typed."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [site] = (folder / "lib").glob("python*/site-packages")
    (site / "musicgen_bento").symlink_to(ROOT / "musicgen_bento")
    (site / "others.pth").write_text(f"{Path(pydantic.__file__).parent.parent}\n")
    return folder


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (PROGRAM, "Success"),
        ("from musicgen_bento.client import MusicGenClient\nMusicGenClient().generate(5, top_k='9')", "str"),
    ],
    ids=["right", "wrong"],
)
def test_a_users_program_is_checked_by_its_types(environment: Path, program: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(program)
    python, cache = environment / "bin" / "python", environment / "cache"
    options = ["--strict", f"--python-executable={python}", f"--cache-dir={cache}", "--config-file=", "program.py"]
    command = [sys.executable, "-m", "mypy", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert says in done.stdout, done.stdout + done.stderr
    assert "import-untyped" not in done.stdout
    assert (done.returncode == 0) == (program is PROGRAM)


# ---- streams


def test_a_stream_gives_the_wav_with_a_running_position() -> None:
    states: list[str] = []
    with StandIn() as server:
        stream = client(server).stream(
            "calm", seed=7, duration=0.5, progress=lambda report: states.append(report.state)
        )
        about = (stream.seed, stream.model, stream.sample_rate, stream.channels, stream.duration, stream.position)
        assert about == (7, "café", 32_000, 1, 0.5, 0.0)
        pieces, positions = zip(*((piece, stream.position) for piece in stream), strict=True)
    assert b"".join(pieces) == WAV
    assert list(positions) == sorted(positions)
    assert len(pieces) > 5
    assert positions[-1] == 0.5
    assert states == ["queued", "running"]
    assert server.calls() == ["post", "get", "stream", "delete"]
    assert server.posted()[0]["normalize"] == "clip"


def test_the_samples_alone() -> None:
    with StandIn() as server, client(server).stream("calm", duration=0.5, format="pcm", normalize="none") as stream:
        assert b"".join(stream) == WAV[44:]
    assert server.posted()[0].keys() == {"prompt", "duration", "seed", "normalize"}


def test_a_stream_that_is_cut_raises_after_what_came() -> None:
    cut = Reply(200, WAV, audio_headers(), cut=10_000)
    with StandIn(stream=[cut]) as server:
        stream = client(server).stream("calm", seed=3)
        pieces: list[bytes] = []
        with pytest.raises(StreamTruncated, match=r"ended early, after 0\.\d of 0\.5 s.*seed 1 "):
            pieces.extend(stream)
    assert WAV.startswith(b"".join(pieces))
    assert server.calls()[-1] == "delete"


@pytest.mark.parametrize("read", [0, 1])
def test_a_stream_that_is_closed_cancels_the_clip(read: int) -> None:
    with StandIn() as server:
        with client(server).stream("calm") as stream:
            for _ in range(read):
                next(stream)
        assert server.calls()[-1] == "delete"
        assert list(stream) == []


def test_a_level_that_needs_the_whole_clip_is_no_stream() -> None:
    with StandIn() as server, pytest.raises(InvalidRequest, match="POST /generate") as caught:
        client(server).stream("calm", normalize="loudness")
    assert caught.value.field == "normalize"
    assert server.requests == []


def test_a_job_that_is_done_first_is_streamed_all_the_same() -> None:
    with StandIn(stream=[error(409, "not_ready")]) as server:
        assert b"".join(client(server).stream("calm")) == WAV
        assert server.calls() == ["post", "get", "stream", "audio", "delete"]
    with StandIn(get=[Reply(200, job("done", 3))]) as server:
        assert b"".join(client(server).stream("calm")) == WAV


def test_a_stream_that_cannot_begin_is_the_error() -> None:
    with StandIn(get=[failed("generation_failed")]) as server, pytest.raises(GenerationFailed):
        client(server).stream("calm")
    assert server.calls()[-1] == "delete"
    with StandIn(stream=[DROP], post=[error(503, "unavailable", retry_after="1")]) as server:
        assert b"".join(client(server).stream("calm")) == WAV


def test_a_stream_whose_job_fails_before_it_is_fetched_is_the_jobs_error() -> None:
    over = error(409, "not_ready")
    script = {"get": [Reply(200, job("running", 2)), failed("generation_failed")], "stream": [over], "audio": [over]}
    with StandIn(**script) as server, pytest.raises(GenerationFailed):
        client(server).stream("calm")
    assert server.calls() == ["post", "get", "stream", "audio", "get", "delete"]


def test_an_asynchronous_stream() -> None:
    async def main(server: StandIn) -> None:
        async with AsyncMusicGenClient(server.url) as music:
            stream = await music.stream("calm", seed=7)
            assert b"".join([piece async for piece in stream]) == WAV
            assert (stream.seed, stream.position) == (7, 0.5)

    with StandIn() as server:
        asyncio.run(main(server))
