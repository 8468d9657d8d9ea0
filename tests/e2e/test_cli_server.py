"""The command line as a client: statuses against a stand-in, the main road against the real service."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.support.fake_server import DROP, Reply, FakeServer, audio_headers, error_reply, job_body
from tests.support.server import Server
from tests.support.wait import wait_until
from tests.unit.cli.test_cli import CLI, ENVIRONMENT, one_error, run

CLIP = ("--prompt", "a secret", "--output", "out.wav")


# ---- the real service


def test_a_clip_of_a_server(server: Server, tmp_path: Path) -> None:
    done = run(*CLIP, "--duration", "1", "--seed", "7", "--server", server.url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == "Wrote out.wav: 1 s by demo, seed 7.\n"
    answer = server.generate(prompt="a secret", duration=1, seed=7)
    assert (tmp_path / "out.wav").read_bytes() == answer.content
    assert "secret" not in server.log.read_text()


def test_several_clips_of_a_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(["calm"] * 10))
    options = ("--prompts", "prompts.txt", "--output", "out.wav", "--duration", "0.5", "--server", server.url)
    done = run("generate", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.glob("out-*.wav"))
    assert [file.name for file in files] == [f"out-{number:02}.wav" for number in range(1, 11)]
    assert all(soundfile.info(file).frames == 16_000 for file in files)


def test_the_models_of_a_server(server: Server) -> None:
    done = run("models", "--server", server.url)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("demo ")]
    assert line.split()[:3] == ["demo", "loaded", "MIT"]


@pytest.mark.parametrize(
    ("progress", "says"),
    [
        ({"step": "downloading", "done_bytes": 500, "total_bytes": 2000}, "downloading, 25% "),
        ({"step": "waiting", "ahead": 2}, "waiting for memory, 2 ahead "),
        ({"step": "loading"}, "loading "),
    ],
)
def test_how_far_a_model_of_a_server_is(progress: dict[str, str | int], says: str) -> None:
    listed = {"aliases": [], "conditioning": ["text"], "note": "", "default": True, "memory_bytes": 3_100_000_000}
    body = {"models": [{"id": "small", "state": "loading", "progress": progress, **listed}]}
    with FakeServer(models=[Reply(200, body)]) as server:
        done = run("models", "--server", server.url)
    assert (done.returncode, done.stderr) == (0, "")
    head, line = done.stdout.splitlines()
    assert head.endswith("MEMORY")
    assert line.startswith(f"small  {says}")
    assert line.endswith("3.1 GB")


@pytest.mark.parametrize("count", [1, 3])
def test_ctrl_c_cancels_on_the_server(server: Server, count: int, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("calm\n" * count)
    options = ["--prompts", "prompts.txt", "--output", "out.wav", "--duration", "200", "--server", server.url]
    process = subprocess.Popen([*CLI, *options], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE)
    wait_until(lambda: server.slots_in_use() >= count, 150)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=100)
    assert (process.returncode, stderr.strip()) == (130, b"interrupted")
    assert os.listdir(tmp_path) == ["prompts.txt"]
    wait_until(lambda: not server.slots_in_use())


def test_on_a_terminal_there_is_a_bar(server: Server, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*CLI, *CLIP, "--duration", "3", "--server", server.url]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "of 3 s, running" in text
    assert "#" in text
    assert text.endswith("Wrote out.wav: 3 s by demo, seed " + text.rpartition("seed ")[2])


# ---- exit statuses


@pytest.mark.parametrize(
    ("reply", "status", "says"),
    [
        (error_reply(400, "unknown_model", field="model"), 2, "It is unknown_model. Do better."),
        (Reply(200, b"<html>"), 3, "could not be read"),
        (error_reply(429, "queue_full", retry_after="9999"), 4, "It is queue_full. Do better."),
        (error_reply(429, "job_storage_full", retry_after="9999"), 4, "It is job_storage_full. Do better."),
        (error_reply(503, "shutting_down"), 4, "It is shutting_down. Do better."),
        (error_reply(503, "model_unavailable"), 1, "It is model_unavailable. Do better."),
        (error_reply(500, "internal_error"), 1, "It is internal_error. Do better."),
    ],
    ids=lambda each: str(each.body) if isinstance(each, Reply) else str(each),
)
def test_a_status_for_each_way_it_can_end(reply: Reply, status: int, says: str, tmp_path: Path) -> None:
    with FakeServer(post=[reply], models=[reply]) as server:
        assert says in one_error(run(*CLIP, "--server", server.url, cwd=tmp_path), status)
        assert says in one_error(run("models", "--server", server.url), status)
    assert os.listdir(tmp_path) == []


def test_no_server_and_no_time(tmp_path: Path) -> None:
    with FakeServer(get=[Reply(200, job_body(), delay=5.0)]) as server:
        line = one_error(run(*CLIP, "--server", server.url, "--timeout", "1", cwd=tmp_path), 3)
        assert "within the timeout" in line
        assert server.calls()[-1] == "delete"
    assert "There is no server at" in one_error(run(*CLIP, "--server", server.url, cwd=tmp_path), 3)
    assert "There is no server at" in one_error(run("models", "--server", server.url), 3)


def test_one_of_several_that_fails_ends_all(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("calm\nwild\n")
    options = ("--prompts", "prompts.txt", "--output", "out.wav")
    with FakeServer(post=[error_reply(500, "internal_error")] * 2) as server:
        assert "It is internal_error" in one_error(run(*options, "--server", server.url, cwd=tmp_path), 1)
    assert os.listdir(tmp_path) == ["prompts.txt"]


def test_what_passes_is_mended_without_a_word(tmp_path: Path) -> None:
    with FakeServer(post=[DROP]) as server:
        done = run(*CLIP, "--server", server.url, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)


def test_what_was_not_given_is_left_to_the_server(tmp_path: Path) -> None:
    with FakeServer() as server:
        assert run(*CLIP, "--top-k", "250", "--server", server.url, cwd=tmp_path).returncode == 0
    [body] = server.posted_jobs()
    assert body.keys() == {"prompt", "seed", "top_k"}


# ---- completion


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        ("", {"generate", "models", "serve"}),
        ("--pro", {"--prompt", "--prompts"}),
        ("--prompt x --dur", {"--duration"}),
        ("generate --nor", {"--normalize"}),
        ("generate --model facebook/musicgen-s", {"facebook/musicgen-small", "facebook/musicgen-stereo-small"}),
    ],
)
def test_a_shell_completes(words: str, offers: set[str]) -> None:
    line = f"musicgen-bento {words}"
    count = len(line.split()) - (not line.endswith(" "))
    environment = {"COMP_WORDS": line, "COMP_CWORD": str(count), "_MUSICGEN_BENTO_COMPLETE": "bash_complete"}
    done = run(**environment)
    assert done.returncode == 0, done.stderr
    assert offers <= {each.partition(",")[2] for each in done.stdout.split()}


# ---- streams


STREAM = ("--prompt", "a secret", "--output", "-", "--stream", "--duration", "20", "--seed", "3")


@pytest.mark.parametrize("served", [True, False])
def test_a_stream_to_standard_output(server: Server, served: bool, tmp_path: Path) -> None:
    command = [*CLI, *STREAM, *(["--server", server.url] if served else [])]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, **pipes)
    assert process.stdout
    first = process.stdout.read(5000)
    if served:
        assert server.slots_in_use() == 1  # it is still being made
    rest, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.decode().splitlines()[-1] == "Wrote 20 s by demo, seed 3."
    whole = server.generate(prompt="a secret", duration=20, seed=3, normalize="clip").content
    assert first + rest == whole
    if served:
        samples = subprocess.run([*command, "--format", "pcm"], env=ENVIRONMENT, capture_output=True, check=True).stdout
        assert samples == whole[44:]


def test_a_player_that_ends_ends_the_stream(server: Server) -> None:
    command = [*CLI, *STREAM[:-4], "--duration", "200", "--server", server.url]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.read(1000)
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr
    assert b"standard output" in process.stderr.read()
    process.stderr.close()
    wait_until(lambda: not server.slots_in_use())


def test_how_a_stream_is_misused(tmp_path: Path) -> None:
    base = ("--prompt", "calm", "--stream", "--output")
    assert "goes with --output -" in one_error(run(*base, "out.wav", cwd=tmp_path), 2)
    line = one_error(run(*base, "-", "--normalize", "loudness", cwd=tmp_path), 2)
    assert "need the whole clip" in line
    assert "goes with --stream" in one_error(run("--prompt", "calm", "--output", "-", "--format", "pcm"), 2)
    assert "goes with --server" in one_error(run(*base, "-", "--timeout", "5"), 2)
    cut = Reply(200, b"RIFF" * 500, audio_headers(), cut_at=400)
    with FakeServer(stream=[cut]) as server:
        done = run(*base, "-", "--server", server.url, cwd=tmp_path)
    assert done.returncode == 3
    assert "ended early" in done.stderr
