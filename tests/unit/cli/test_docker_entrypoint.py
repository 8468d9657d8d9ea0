"""The entry point of the image, without an image: arguments, users, signals and exit statuses."""

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
    ("args", "kind", "planned_args"),
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
def test_arguments_select_what_to_run(args: list[str], kind: str, planned_args: tuple[str, ...] | None) -> None:
    chosen = plan(args, has_out=True)
    assert (chosen.kind, chosen.args) == (kind, tuple(args) if planned_args is None else planned_args)
    assert chosen.folder == (CACHE if kind == "serve" else OUT)
    assert plan(args, has_out=False).folder == CACHE


def test_a_folder_of_root_selects_the_default_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path.stat()
    monkeypatch.setattr(docker_entrypoint, "ROOT_UID", status.st_uid)
    assert docker_entrypoint._owner(tmp_path) == (1034, 1034)
    monkeypatch.setattr(docker_entrypoint, "ROOT_UID", status.st_uid + 1)
    assert docker_entrypoint._owner(tmp_path) == (status.st_uid, status.st_gid)


@pytest.fixture
def changed_owner(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names whose owner would change, and change none."""
    names: list[str] = []
    monkeypatch.setattr(docker_entrypoint, "ROOT_UID", os.getuid())
    monkeypatch.setattr(os, "chown", lambda name, *args, **rest: names.append(name))
    return names


def test_files_of_root_in_the_cache_change_their_owner(tmp_path: Path, changed_owner: list[str]) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "blob").touch()
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "one").touch()
    os.link(tmp_path / "one", tmp_path / "two")  # a hard link, which could be to a file of the system
    docker_entrypoint._change_owner(tmp_path, 1034, 1034, recursive=True)
    assert set(changed_owner) == {".", "hub", "blob", "link"}


def test_only_the_folder_for_clips_itself_changes_its_owner(tmp_path: Path, changed_owner: list[str]) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "file").touch()
    docker_entrypoint._change_owner(tmp_path, 1034, 1034, recursive=False)
    assert changed_owner == ["."]


def test_a_failed_change_of_owner_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **rest: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(docker_entrypoint, "ROOT_UID", os.getuid())
    monkeypatch.setattr(os, "chown", refuse)
    docker_entrypoint._change_owner(tmp_path, 1034, 1034, recursive=True)


def test_root_without_capabilities_is_one_error_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(docker_entrypoint, "CACHE", tmp_path)
    monkeypatch.setattr(os, "chown", lambda *args, **rest: None)
    monkeypatch.setattr(os, "setgroups", refuse)
    with pytest.raises(SystemExit) as exit_info:
        docker_entrypoint._switch_user(1000, 1000, tmp_path)
    line = capsys.readouterr().err
    assert exit_info.value.code == 1
    assert line.count("\n") == 1
    assert "SETUID" in line
    assert "--user 1000" in line


def run_as_server(code: str) -> subprocess.Popen[str]:
    """Start an entry point whose server is a process that runs the code."""
    program = (
        "import sys\nfrom musicgen_bento.cli.docker_entrypoint import _run_server\n"
        f"sys.exit(_run_server([sys.executable, '-c', {code!r}]))"
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("code", "status"), [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_exit_status_is_that_of_the_server(code: str, status: int) -> None:
    with run_as_server(code) as process:
        assert process.wait(30) == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_forwarded_to_the_server_once(number: signal.Signals) -> None:
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: print('signal', flush=True))\n"
        "print('up', flush=True)\nfor _ in range(20): time.sleep(0.05)"
    )
    process = run_as_server(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "signal\n"
    assert process.returncode == 0


def test_sigterm_ends_a_server_without_a_signal_handler() -> None:
    process = run_as_server("print('up', flush=True); import time; time.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    started = time.monotonic()
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert time.monotonic() - started < 20
    process.stdout.close()


def test_an_unknown_command_is_one_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        docker_entrypoint._exec(["no-such-command"])
    assert exit_info.value.code == 127
    assert capsys.readouterr().err == "error: There is no command no-such-command. See --help.\n"


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "has_network"),
    [
        ("Iface Destination\n", "", False),
        ("Iface Destination\n", "00000000 00 0 00 0 ffffffff 1 0 00200200 lo\n", False),
        ("Iface Destination\neth0 00000000 0101A8C0\n", "", True),
        ("Iface Destination\n", "00000000 00 0 00 0 ffffffff 1 0 00200200 eth0\n", True),
        (None, None, True),  # the files cannot be read
    ],
)
def test_a_network_is_detected_by_its_routes(
    ipv4: str | None, ipv6: str | None, has_network: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("route", ipv4), ("ipv6_route", ipv6)):
        if text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(docker_entrypoint, "PROC_NET", tmp_path)
    assert docker_entrypoint._has_network() is has_network
