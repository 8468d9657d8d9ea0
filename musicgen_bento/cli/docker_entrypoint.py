"""What the image starts: chooses the user, then the server, the command line, or any other program.

It starts as root, to become the owner of the folder that was mounted, and never works as root. Started as another
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

ROOT = 0
USER = 1034  # where the mounted folder is root's, or nothing is mounted
CACHE, OUT = Path("/app/cache"), Path("/out")
NET = Path("/proc/net")
PROGRAM = "musicgen-bento"
NOT_FOUND = 127


@dataclass(frozen=True)
class Plan:
    """What to run, as the owner of which folder."""

    kind: str  # serve, cli or program
    args: tuple[str, ...]
    folder: Path


def plan(args: Sequence[str], *, out_is_there: bool) -> Plan:
    """What these arguments of the image mean. The service's own commands and options win over programs."""
    first = args[0] if args else "serve"
    if first == PROGRAM:
        return plan(args[1:] or ["--help"], out_is_there=out_is_there)
    if first == "serve":
        given = {each.partition("=")[0] for each in args}
        host = () if "--host" in given else ("--host", "0.0.0.0")
        return Plan("serve", ("serve", *host, *args[1:]), CACHE)
    folder = OUT if out_is_there else CACHE
    if first.startswith("-") or first in program.commands():
        return Plan("cli", tuple(args), folder)
    return Plan("program", tuple(args), folder)


def main(args: Sequence[str]) -> NoReturn:
    """Become who and what is wanted. Ends with one line where that cannot be."""
    # The first process of a container has no default for it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = plan(args, out_is_there=OUT.is_dir())
    if os.getuid() == ROOT:
        uid, gid = _owner(chosen.folder)
        _become(uid, gid, chosen.folder)
    os.environ.update(HOME=tempfile.gettempdir() if _has_room() else "/", USER="bentoml", LOGNAME="bentoml")
    if chosen.kind == "program":
        _exec(chosen.args)
    if not _has_room():
        _fail("There is no folder for temporary files. Add --tmpfs /tmp.")
    if not os.access(CACHE, os.W_OK):
        _say(f"warning: {CACHE} cannot be written by user {os.getuid()}: only models that are in it can be had.")
    if not _has_network():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        _say("There is no network: only models that are in the cache can be had.")
    if chosen.kind == "serve":
        sys.exit(_attend([sys.executable, "-m", "musicgen_bento.cli", *chosen.args]))
    if chosen.folder == OUT:
        os.chdir(OUT)  # where a relative --output goes
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no part of a file stays
    program.main(list(chosen.args))


def _owner(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return (found.st_uid, found.st_gid) if found.st_uid != ROOT else (USER, USER)


def _become(uid: int, gid: int, folder: Path) -> None:
    """Another user, for good, who can write the cache and the folder."""
    for each in {folder, CACHE}:
        _hand_over(each, uid, gid, all_of_it=each == CACHE)
    if not os.path.ismount(CACHE):  # the image's own
        with suppress(OSError):
            os.chown(CACHE, uid, gid)
    # What was given by --group-add stays; root's group goes. The cache's lets two users share it.
    groups = {CACHE.stat().st_gid, *os.getgroups()} - {ROOT}
    try:
        os.setgroups(sorted(groups))
        os.setgid(gid)
        os.setuid(uid)
    except PermissionError:
        _fail(
            f"Started as root, without the right to become user {uid} (the capabilities SETUID and SETGID). "
            f"Start it as that user: --user {uid}."
        )
    os.umask(0o002)


def _hand_over(folder: Path, uid: int, gid: int, *, all_of_it: bool) -> None:
    """Give what is root's to the user; what cannot be given stays root's, and may still be read."""
    for _, folders, files, here in os.fwalk(folder, follow_symlinks=False):
        for name in (".", *folders, *files) if all_of_it else (".",):
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            linked = name in files and found.st_nlink > 1  # perhaps to a file outside
            if found.st_uid == ROOT and not linked:
                try:
                    os.chown(name, uid, gid, dir_fd=here, follow_symlinks=False)
                except OSError:  # read-only, or without the capability CHOWN
                    return
        if not all_of_it:
            return


def _attend(command: list[str]) -> int:
    """Run the server below this process, which as a container's first one passes signals on and clears up the dead."""
    # In a group of its own: Ctrl-C in a terminal would reach it twice, and the second means "now".
    child = subprocess.Popen(command, process_group=0)

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(child.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, pass_on)
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _exec(args: Sequence[str]) -> NoReturn:
    if shutil.which(args[0]) is None:
        _fail(f"There is no command {args[0]}. See --help.", NOT_FOUND)
    sys.stdout.flush()
    os.execvp(args[0], list(args))


def _has_network() -> bool:
    """Whether there is a way to anywhere but this machine."""
    six = NET / "ipv6_route"
    try:
        routes = (NET / "route").read_text().splitlines()[1:]
        lines = six.read_text().splitlines() if six.exists() else []
    except OSError:
        return True
    return bool(routes) or any(line.split()[-1] != "lo" for line in lines)


def _has_room() -> bool:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return False
    return True


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _fail(line: str, status: int = program.FAILED) -> NoReturn:
    _say(f"error: {line}")
    sys.exit(status)
