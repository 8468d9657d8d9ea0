"""The command line as a client: exit statuses with a fake server, the rest with the real server."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.support.command_line import COMMAND, ENVIRONMENT, error_line, run
from tests.support.fake_server import DROP, FakeServer, Reply, audio_headers, error_reply, job_body
from tests.support.server import Server
from tests.support.wait import wait_until

CLIP = ("--prompt", "a secret", "--output", "out.wav")


# ---- the real server


def test_generate_writes_the_clip_of_a_server(server: Server, tmp_path: Path) -> None:
    result = run(*CLIP, "--duration", "1", "--seed", "7", "--server", server.url, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr == "Wrote out.wav: 1 s by demo, seed 7.\n"
    answer = server.generate(prompt="a secret", duration=1, seed=7)
    assert (tmp_path / "out.wav").read_bytes() == answer.content
    assert "secret" not in server.log.read_text()


def test_several_prompts_write_the_clips_of_a_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(["calm"] * 10))
    options = ("--prompts", "prompts.txt", "--output", "out.wav", "--duration", "0.5", "--server", server.url)
    result = run("generate", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    files = sorted(tmp_path.glob("out-*.wav"))
    assert [file.name for file in files] == [f"out-{number:02}.wav" for number in range(1, 11)]
    assert all(soundfile.info(file).frames == 16_000 for file in files)


def test_models_lists_those_of_a_server(server: Server) -> None:
    result = run("models", "--server", server.url)
    assert result.returncode == 0, result.stderr
    [line] = [line for line in result.stdout.splitlines() if line.startswith("demo ")]
    assert line.split()[:3] == ["demo", "loaded", "MIT"]


@pytest.mark.parametrize(
    ("progress", "state"),
    [
        ({"step": "downloading", "done_bytes": 500, "total_bytes": 2000}, "downloading, 25% "),
        ({"step": "waiting", "ahead": 2}, "waiting for memory, 2 ahead "),
        ({"step": "loading"}, "loading "),
    ],
)
def test_models_shows_the_load_progress(progress: dict[str, str | int], state: str) -> None:
    model = {"aliases": [], "conditioning": ["text"], "note": "", "default": True, "memory_bytes": 3_100_000_000}
    body = {"models": [{"id": "small", "state": "loading", "progress": progress, **model}]}
    with FakeServer(models=[Reply(200, body)]) as server:
        result = run("models", "--server", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    head, line = result.stdout.splitlines()
    assert head.endswith("MEMORY")
    assert line.startswith(f"small  {state}")
    assert line.endswith("3.1 GB")


@pytest.mark.parametrize("count", [1, 3])
def test_ctrl_c_cancels_on_the_server(server: Server, count: int, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("calm\n" * count)
    options = ["--prompts", "prompts.txt", "--output", "out.wav", "--duration", "200", "--server", server.url]
    process = subprocess.Popen([*COMMAND, *options], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE)
    wait_until(lambda: server.slots_in_use() >= count, 150)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=100)
    assert (process.returncode, stderr.strip()) == (130, b"interrupted")
    assert os.listdir(tmp_path) == ["prompts.txt"]
    wait_until(lambda: not server.slots_in_use())


def test_a_terminal_shows_a_progress_bar(server: Server, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    command = [*COMMAND, *CLIP, "--duration", "3", "--server", server.url]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=slave)
    os.close(slave)
    shown = b""
    try:
        while output := os.read(master, 4096):
            shown += output
    except OSError:  # the other side is closed
        pass
    os.close(master)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "of 3 s, running" in text
    assert "#" in text
    assert text.endswith("Wrote out.wav: 3 s by demo, seed " + text.rpartition("seed ")[2])


# ---- exit statuses


@pytest.mark.parametrize(
    ("reply", "status", "message"),
    [
        (error_reply(400, "unknown_model", field="model"), 2, "It is unknown_model. Do better."),
        (Reply(200, b"<html>"), 3, "could not be read"),
        (error_reply(429, "queue_full", retry_after="9999"), 4, "It is queue_full. Do better."),
        (error_reply(429, "job_storage_full", retry_after="9999"), 4, "It is job_storage_full. Do better."),
        (error_reply(503, "shutting_down"), 4, "It is shutting_down. Do better."),
        (error_reply(503, "model_unavailable"), 1, "It is model_unavailable. Do better."),
        (error_reply(500, "internal_error"), 1, "It is internal_error. Do better."),
    ],
    ids=lambda argument: str(argument.body) if isinstance(argument, Reply) else str(argument),
)
def test_each_error_has_its_exit_status(reply: Reply, status: int, message: str, tmp_path: Path) -> None:
    with FakeServer(post=[reply], models=[reply]) as server:
        assert message in error_line(run(*CLIP, "--server", server.url, cwd=tmp_path), status)
        assert message in error_line(run("models", "--server", server.url), status)
    assert os.listdir(tmp_path) == []


def test_no_server_and_a_timeout_have_the_status_unreachable(tmp_path: Path) -> None:
    with FakeServer(get=[Reply(200, job_body(), delay=5.0)]) as server:
        line = error_line(run(*CLIP, "--server", server.url, "--timeout", "1", cwd=tmp_path), 3)
        assert "within the timeout" in line
        assert server.calls()[-1] == "delete"
    assert "There is no server at" in error_line(run(*CLIP, "--server", server.url, cwd=tmp_path), 3)
    assert "There is no server at" in error_line(run("models", "--server", server.url), 3)


def test_an_error_in_one_of_several_clips_cancels_all(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("calm\nwild\n")
    options = ("--prompts", "prompts.txt", "--output", "out.wav")
    with FakeServer(post=[error_reply(500, "internal_error")] * 2) as server:
        assert "It is internal_error" in error_line(run(*options, "--server", server.url, cwd=tmp_path), 1)
    assert os.listdir(tmp_path) == ["prompts.txt"]


def test_a_temporary_failure_is_retried_without_a_message(tmp_path: Path) -> None:
    with FakeServer(post=[DROP]) as server:
        result = run(*CLIP, "--server", server.url, cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (0, 1)


def test_options_that_are_not_given_are_not_sent(tmp_path: Path) -> None:
    with FakeServer() as server:
        assert run(*CLIP, "--top-k", "250", "--server", server.url, cwd=tmp_path).returncode == 0
    [body] = server.posted_jobs()
    assert body.keys() == {"prompt", "seed", "top_k"}


# ---- completion


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("", {"generate", "models", "serve"}),
        ("--pro", {"--prompt", "--prompts"}),
        ("--prompt x --dur", {"--duration"}),
        ("generate --nor", {"--normalize"}),
        ("generate --model facebook/musicgen-s", {"facebook/musicgen-small", "facebook/musicgen-stereo-small"}),
    ],
)
def test_a_shell_completes_commands_options_and_models(words: str, completions: set[str]) -> None:
    line = f"musicgen-bento {words}"
    count = len(line.split()) - (not line.endswith(" "))
    environment = {"COMP_WORDS": line, "COMP_CWORD": str(count), "_MUSICGEN_BENTO_COMPLETE": "bash_complete"}
    result = run(**environment)
    assert result.returncode == 0, result.stderr
    assert completions <= {line.partition(",")[2] for line in result.stdout.split()}


# ---- streams


STREAM = ("--prompt", "a secret", "--output", "-", "--stream", "--duration", "20", "--seed", "3")


@pytest.mark.parametrize("on_server", [True, False])
def test_stream_is_written_to_standard_output_during_generation(
    server: Server, on_server: bool, tmp_path: Path
) -> None:
    command = [*COMMAND, *STREAM, *(["--server", server.url] if on_server else [])]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, **pipes)
    assert process.stdout
    first = process.stdout.read(5000)
    if on_server:
        assert server.slots_in_use() == 1  # the clip is not finished yet
    rest, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert stderr.decode().splitlines()[-1] == "Wrote 20 s by demo, seed 3."
    whole = server.generate(prompt="a secret", duration=20, seed=3, normalize="clip").content
    assert first + rest == whole
    if on_server:
        samples = subprocess.run([*command, "--format", "pcm"], env=ENVIRONMENT, capture_output=True, check=True).stdout
        assert samples == whole[44:]


def test_a_closed_pipe_cancels_the_stream(server: Server) -> None:
    command = [*COMMAND, *STREAM[:-4], "--duration", "200", "--server", server.url]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.read(1000)
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr
    assert b"standard output" in process.stderr.read()
    process.stderr.close()
    wait_until(lambda: not server.slots_in_use())


def test_stream_rejects_invalid_options_and_reports_truncation(tmp_path: Path) -> None:
    base = ("--prompt", "calm", "--stream", "--output")
    assert "requires --output -" in error_line(run(*base, "out.wav", cwd=tmp_path), 2)
    line = error_line(run(*base, "-", "--normalize", "loudness", cwd=tmp_path), 2)
    assert "need the whole clip" in line
    assert "requires --stream" in error_line(run("--prompt", "calm", "--output", "-", "--format", "pcm"), 2)
    assert "requires --server" in error_line(run(*base, "-", "--timeout", "5"), 2)
    cut = Reply(200, b"RIFF" * 500, audio_headers(), cut_at=400)
    with FakeServer(stream=[cut]) as server:
        result = run(*base, "-", "--server", server.url, cwd=tmp_path)
    assert result.returncode == 3
    assert "ended early" in result.stderr
