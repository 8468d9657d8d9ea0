"""The first process of the container image: switches the user, then runs the server, the command line or a program.

It starts as root only to become the owner of the mounted folder, and does nothing else as root. Started as another
user (`--user`), it stays that user.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from musicgen_bento.cli import program

ROOT_UID = 0
DEFAULT_UID = 1034  # if the mounted folder belongs to root, or nothing is mounted
CACHE, OUT = Path("/app/cache"), Path("/out")
PROC_NET = Path("/proc/net")
PROGRAM_NAME = "musicgen-bento"
COMMAND_NOT_FOUND = 127
SIGNAL_STATUS_BASE = 128  # a process that a signal ends has this status plus the signal's number
GROUP_WRITABLE_UMASK = 0o002
FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class Plan:
    """The process to run, and the folder whose owner runs it.

    Attributes:
        kind: serve, cli or program.
        args: arguments of the command line, or the program and its arguments.
        folder: the cache, or the folder for clips.
    """

    kind: str
    args: tuple[str, ...]
    folder: Path


def plan(args: Sequence[str], *, has_out: bool) -> Plan:
    """Interpret the arguments of the image. Commands and options of `musicgen-bento` come before programs.

    Args:
        args: arguments of the image.
        has_out: whether a folder for clips is mounted.
    """
    first = args[0] if args else "serve"
    if first == PROGRAM_NAME:
        return plan(args[1:] or ["--help"], has_out=has_out)
    if first == "serve":
        options = {arg.partition("=")[0] for arg in args}
        host = () if "--host" in options else ("--host", "0.0.0.0")
        return Plan("serve", ("serve", *host, *args[1:]), CACHE)
    folder = OUT if has_out else CACHE
    if first.startswith("-") or first in program.commands():
        return Plan("cli", tuple(args), folder)
    return Plan("program", tuple(args), folder)


def main(args: Sequence[str]) -> NoReturn:
    """Switch the user, check the container and run the process that the arguments select. An error is one line."""
    # The first process of a container has no default action for SIGTERM.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(SIGNAL_STATUS_BASE + number))
    chosen = plan(args, has_out=OUT.is_dir())
    if os.getuid() == ROOT_UID:
        uid, gid = _owner(chosen.folder)
        _switch_user(uid, gid, chosen.folder)
    has_temporary_folder = _has_temporary_folder()
    home = tempfile.gettempdir() if has_temporary_folder else "/"
    os.environ.update(HOME=home, USER="bentoml", LOGNAME="bentoml")
    if chosen.kind == "program":
        _exec(chosen.args)
    if not has_temporary_folder:
        _fail("There is no folder for temporary files. Add --tmpfs /tmp.")
    _check_cache_and_network()
    if chosen.kind == "serve":
        sys.exit(_run_server([sys.executable, "-m", "musicgen_bento.cli", *chosen.args]))
    if chosen.folder == OUT:
        os.chdir(OUT)  # for a relative --output
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: removes incomplete files
    program.main(list(chosen.args))


def _check_cache_and_network() -> None:
    """Warn if models cannot be downloaded, and set the hub's offline mode if there is no network."""
    if not os.access(CACHE, os.W_OK):
        _log(f"warning: user {os.getuid()} cannot write {CACHE}: only models in the cache are available.")
    if not _has_network():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        _log("There is no network: only models in the cache are available.")


def _owner(folder: Path) -> tuple[int, int]:
    """Return the user and group to run as: the folder's, or the image's if the folder belongs to root."""
    status = folder.stat()
    return (status.st_uid, status.st_gid) if status.st_uid != ROOT_UID else (DEFAULT_UID, DEFAULT_UID)


def _switch_user(uid: int, gid: int, folder: Path) -> None:
    """Become another user for good, and make the cache and the folder writable for that user before."""
    for path in {folder, CACHE}:
        _change_owner(path, uid, gid, recursive=path == CACHE)
    if not os.path.ismount(CACHE):  # the folder of the image
        with suppress(OSError):
            os.chown(CACHE, uid, gid)
    # Keep groups of --group-add, drop root's group. The cache's group lets two users share the cache.
    groups = {CACHE.stat().st_gid, *os.getgroups()} - {ROOT_UID}
    try:
        os.setgroups(sorted(groups))
        os.setgid(gid)
        os.setuid(uid)
    except PermissionError:
        _fail(
            f"Started as root without permission to become user {uid} (capabilities SETUID and SETGID). "
            f"Start the container as that user: --user {uid}."
        )
    os.umask(GROUP_WRITABLE_UMASK)


def _change_owner(folder: Path, uid: int, gid: int, *, recursive: bool) -> None:
    """Change the owner of a folder, and of all files in it if recursive, from root to the user.

    A failure ends the change silently: the files stay readable.
    """
    for _, folders, files, folder_fd in os.fwalk(folder, follow_symlinks=False):
        for name in (".", *folders, *files) if recursive else (".",):
            status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
            has_other_links = name in files and status.st_nlink > 1  # perhaps a file outside this folder
            if status.st_uid == ROOT_UID and not has_other_links:
                try:
                    os.chown(name, uid, gid, dir_fd=folder_fd, follow_symlinks=False)
                except OSError:  # a read-only mount, or no capability CHOWN
                    return
        if not recursive:
            return


def _run_server(command: list[str]) -> int:
    """Run the server as a child and return its exit status. Forward signals, and reap orphaned processes."""
    # A process group of its own: otherwise Ctrl-C in a terminal reaches the server twice, and the second one kills it.
    child = subprocess.Popen(command, process_group=0)

    def forward(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # the server has just exited
            os.kill(child.pid, number)

    for number in FORWARDED_SIGNALS:
        signal.signal(number, forward)
    while True:
        pid, wait_status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(wait_status)
            return code if code >= 0 else SIGNAL_STATUS_BASE - code


def _exec(args: Sequence[str]) -> NoReturn:
    """Replace this process by a program."""
    if shutil.which(args[0]) is None:
        _fail(f"There is no command {args[0]}. See --help.", COMMAND_NOT_FOUND)
    sys.stdout.flush()
    os.execvp(args[0], list(args))


def _has_network() -> bool:
    """Return whether the container has a route to another machine; True if that cannot be read."""
    ipv6_file = PROC_NET / "ipv6_route"
    try:
        ipv4_routes = (PROC_NET / "route").read_text().splitlines()[1:]
        ipv6_routes = ipv6_file.read_text().splitlines() if ipv6_file.exists() else []
    except OSError:
        return True
    return bool(ipv4_routes) or any(route.split()[-1] != "lo" for route in ipv6_routes)


def _has_temporary_folder() -> bool:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return False
    return True


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _fail(line: str, status: int = program.FAILED) -> NoReturn:
    _log(f"error: {line}")
    sys.exit(status)
