"""The image's entry, without an image: what arguments mean, who works, how signals and statuses pass."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from musicgen_bento.cli import docker_entrypoint
from musicgen_bento.cli.docker_entrypoint import CACHE, OUT, plan

SERVE = ("serve", "--host", "0.0.0.0")


@pytest.mark.parametrize(
    ("args", "kind", "becomes"),
    [
        ([], "serve", SERVE),
        (["serve"], "serve", SERVE),
        (["serve", "--port", "9000"], "serve", (*SERVE, "--port", "9000")),
        (["serve", "--host", "127.0.0.1"], "serve", ("serve", "--host", "127.0.0.1")),
        (["serve", "--host=::"], "serve", ("serve", "--host=::")),
        (["--prompt", "calm", "--output", "o.wav"], "cli", None),
        (["models"], "cli", None),
        (["--help"], "cli", None),
        (["--version"], "cli", None),
        (["musicgen-bento", "models"], "cli", ("models",)),
        (["musicgen-bento"], "cli", ("--help",)),
        (["musicgen-bento", "serve"], "serve", SERVE),
        (["bash", "-c", "true"], "program", None),
    ],
)
def test_what_arguments_mean(args: list[str], kind: str, becomes: tuple[str, ...] | None) -> None:
    found = plan(args, out_is_there=True)
    assert (found.kind, found.args) == (kind, tuple(args) if becomes is None else becomes)
    assert found.folder == (CACHE if kind == "serve" else OUT)
    assert plan(args, out_is_there=False).folder == CACHE


def test_a_folder_of_roots_is_the_images_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path.stat()
    monkeypatch.setattr(docker_entrypoint, "ROOT", mine.st_uid)
    assert docker_entrypoint._owner(tmp_path) == (1034, 1034)
    monkeypatch.setattr(docker_entrypoint, "ROOT", mine.st_uid + 1)
    assert docker_entrypoint._owner(tmp_path) == (mine.st_uid, mine.st_gid)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is given away, by name; nothing is."""
    names: list[str] = []
    monkeypatch.setattr(docker_entrypoint, "ROOT", os.getuid())
    monkeypatch.setattr(os, "chown", lambda name, *args, **rest: names.append(name))
    return names


def test_what_is_roots_in_the_cache_is_handed_over(tmp_path: Path, given: list[str]) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "blob").touch()
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "one").touch()
    os.link(tmp_path / "one", tmp_path / "two")  # the same file; it could be one of the system's
    docker_entrypoint._hand_over(tmp_path, 1034, 1034, all_of_it=True)
    assert set(given) == {".", "hub", "blob", "link"}


def test_of_the_folder_for_clips_only_itself_and_its_files(tmp_path: Path, given: list[str]) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "file").touch()
    docker_entrypoint._hand_over(tmp_path, 1034, 1034, all_of_it=False)
    assert given == ["."]


def test_what_cannot_be_handed_over_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **rest: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(docker_entrypoint, "ROOT", os.getuid())
    monkeypatch.setattr(os, "chown", refuse)
    docker_entrypoint._hand_over(tmp_path, 1034, 1034, all_of_it=True)


def test_root_that_may_not_change_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(docker_entrypoint, "CACHE", tmp_path)
    monkeypatch.setattr(os, "chown", lambda *args, **rest: None)
    monkeypatch.setattr(os, "setgroups", refuse)
    with pytest.raises(SystemExit) as ended:
        docker_entrypoint._become(1000, 1000, tmp_path)
    line = capsys.readouterr().err
    assert ended.value.code == 1
    assert line.count("\n") == 1
    assert "SETUID" in line
    assert "--user 1000" in line


def attended(code: str) -> subprocess.Popen[str]:
    """A process that attends to another one, which runs the code."""
    program = (
        f"import sys\nfrom musicgen_bento.entry import _attend\nsys.exit(_attend([sys.executable, '-c', {code!r}]))"
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("code", "status"), [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_servers_status_is_the_containers(code: str, status: int) -> None:
    with attended(code) as process:
        assert process.wait(30) == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_server_once(number: signal.Signals) -> None:
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: print('told', flush=True))\n"
        "print('up', flush=True)\nfor _ in range(20): time.sleep(0.05)"
    )
    process = attended(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "told\n"
    assert process.returncode == 0


def test_a_stop_before_the_server_listens_to_signals_ends_it() -> None:
    process = attended("print('up', flush=True); import time; time.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 20
    process.stdout.close()


def test_a_command_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        docker_entrypoint._exec(["no-such-command"])
    assert ended.value.code == 127
    assert capsys.readouterr().err == "error: There is no command no-such-command. See --help.\n"


@pytest.mark.parametrize(
    ("routes", "six", "there"),
    [
        ("Iface Destination\n", "", False),
        ("Iface Destination\n", "00000000 00 0 00 0 ffffffff 1 0 00200200 lo\n", False),
        ("Iface Destination\neth0 00000000 0101A8C0\n", "", True),
        ("Iface Destination\n", "00000000 00 0 00 0 ffffffff 1 0 00200200 eth0\n", True),
        (None, None, True),  # not to be known
    ],
)
def test_whether_there_is_a_network(
    routes: str | None, six: str | None, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("route", routes), ("ipv6_route", six)):
        if text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(docker_entrypoint, "NET", tmp_path)
    assert docker_entrypoint._has_network() is there
