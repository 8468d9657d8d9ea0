"""Runs the image as people do, and says what became of each command: check.py [CHECK...], after image/build.

ENGINE is docker or podman. facebook/musicgen-small is a tiny stand-in with the released names, in a cache of the
check's own; everything runs in containers named musicgen-check-*, which are taken down.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENGINE = os.environ.get("ENGINE") or next((each for each in ("docker", "podman") if shutil.which(each)), "docker")
IMAGE, SMALL = "audiocraft:latest", "facebook/musicgen-small"
PORT = int(os.environ.get("PORT", "8001"))
PROMPT = "dark cinematic music"
# Where there is no GPU an engine refuses the option.
GPUS = ["--gpus", "all"] if shutil.which("nvidia-smi") else []
PYTHON = (
    "import json, urllib.request as u; r = u.urlopen(u.Request('http://127.0.0.1:8000/generate', method='POST', "
    "headers={'Content-Type': 'application/json'}, data=json.dumps({'prompt': 'calm', 'duration': 1}).encode())); "
    "print(r.headers['X-Model'], len(r.read()))"
)
# Put into every Python process of a container: what looks for another machine is written down.
WATCH = """import sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        to = args[1] if event != "socket.getaddrinfo" else args[0]
        if not isinstance(to, (str, bytes)) and to: to = to[0]
        if str(to) not in ("127.0.0.1", "::1", "localhost", "None", "0.0.0.0") and not str(to).startswith(("/", "b'")):
            with open("/tmp/outside", "a") as file: print(event, to, file=file)
sys.addaudithook(watch)
"""


class Failed(Exception):
    """A check that did not hold."""


def expect(holds: object, what: str) -> None:
    if not holds:
        raise Failed(what)


def engine(*args: str, check: bool = True, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([ENGINE, *args], capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise Failed(f"{ENGINE} {args[0]}: status {done.returncode}: {done.stderr.strip()[-400:]}")
    return done


class Container:
    """A server in a container: started, ready, looked into."""

    def __init__(self, name: str, *options: str, args: tuple[str, ...] = ()) -> None:
        self.name = f"musicgen-check-{name}"
        engine("rm", "-f", self.name, check=False)
        started = time.monotonic()
        engine("run", "-d", "--name", self.name, *options, IMAGE, *args)
        try:
            self._wait()
        except BaseException:
            self.remove()
            raise
        self.seconds = time.monotonic() - started

    def _wait(self) -> None:
        probe = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"
        deadline = time.monotonic() + 120
        while engine("exec", self.name, "python", "-c", probe, check=False).returncode:
            running = engine("inspect", "-f", "{{.State.Running}}", self.name).stdout.strip() == "true"
            expect(running and time.monotonic() < deadline, f"never ready: {self.log()[-600:]}")
            time.sleep(0.5)

    def log(self) -> str:
        done = engine("logs", self.name)
        return done.stdout + done.stderr

    def python(self, code: str) -> str:
        return engine("exec", self.name, "python", "-c", code).stdout.strip()

    def users(self) -> set[str]:
        code = (
            "import os, glob; me = str(os.getpid())\n"
            "for p in glob.glob('/proc/[0-9]*'):\n"
            "  if p != '/proc/' + me: print(os.stat(p).st_uid, open(p + '/stat').read().rsplit(') ')[1][0])"
        )
        rows = [line.split() for line in self.python(code).splitlines()]
        expect("Z" not in {state for _, state in rows}, "a zombie")
        return {user for user, _ in rows}

    def status(self) -> int:
        return int(engine("inspect", "-f", "{{.State.ExitCode}}", self.name).stdout)

    def stop(self) -> str:
        started = time.monotonic()
        engine("stop", "-t", "30", self.name)
        expect(self.status() == 0, f"stop: status {self.status()}: {self.log()[-400:]}")
        return f"stopped in {time.monotonic() - started:.1f} s with status 0"

    def remove(self) -> None:
        engine("rm", "-f", self.name, check=False)


@contextmanager
def server(name: str, *options: str) -> Iterator[Container]:
    container = Container(name, *options)
    try:
        yield container
    finally:
        container.remove()


def cli(*args: str, options: tuple[str, ...] = (), status: int = 0) -> subprocess.CompletedProcess[str]:
    done = engine("run", "--rm", *options, IMAGE, *args, check=False)
    expect(done.returncode == status, f"status {done.returncode}: {done.stderr.strip()[-400:]}")
    return done


def call(body: dict[str, Any]) -> tuple[Message, bytes]:
    request = urllib.request.Request(
        f"http://localhost:{PORT}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.headers, answer.read()


class Place:
    """Folders to mount."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._model = folder / "model"
        code = (
            "import pathlib, sys, tests.support.tiny_checkpoints as c; "
            "c.write_hub_cache(pathlib.Path(sys.argv[1]), sys.argv[2], c.RandomModelConfig())"
        )
        command = [sys.executable, "-c", code, str(self._model / "hub"), SMALL]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        for each in self._model.rglob("*"):  # as downloads are: everyone may read
            each.chmod(0o755 if each.is_dir() else 0o644)

    def cache(self, name: str, owner: int) -> str:
        """A cache with the stand-in in it, all of one owner."""
        path = self.folder / name
        shutil.copytree(self._model, path, symlinks=True)
        return self._owned(path, owner)

    def out(self, name: str, owner: int) -> str:
        (self.folder / name).mkdir()
        return self._owned(self.folder / name, owner)

    def _owned(self, path: Path, owner: int) -> str:
        for each in (path, *path.rglob("*")):
            os.chown(each, owner, owner, follow_symlinks=False)
        return str(path)


# ---- the checks: each says its command, and returns what came of it


def image(place: Place) -> tuple[str, str]:
    labels = json.loads(engine("image", "inspect", IMAGE).stdout)[0]["Config"]["Labels"]
    keys = ("title", "description", "licenses", "version")
    expect(all(labels.get(f"org.opencontainers.image.{key}") for key in keys), f"labels: {labels}")
    look = "command -v gcc cc g++ make git ruff pytest mypy uv; find {} -type f -size +0 2>/dev/null; true"
    caches = "/root/.cache /var/cache/apt /var/lib/apt/lists /tmp"
    tools = engine("run", "--rm", "--entrypoint", "sh", IMAGE, "-c", look.format(caches))
    expect(not tools.stdout.strip(), tools.stdout)
    expect("MIT License" in cli("cat", "/usr/share/licenses/musicgen-bento/LICENSE").stdout, "no licence")
    names = [f"musicgen-bento:{labels['org.opencontainers.image.version']}", "musicgen-bento:latest", IMAGE]
    ids = {engine("image", "inspect", "-f", "{{.Id}}", name).stdout for name in names}
    expect(len(ids) == 1, f"{names} are not one image")
    return "make image", f"one image, {' = '.join(names)}; labels, licence; no compiler, git, caches or test tools"


def row_2(place: Place) -> tuple[str, str]:
    cache = place.cache("row2", 0)
    options = ("-p", f"{PORT}:8000", "-v", f"{cache}:/app/cache")
    with server("row2", *GPUS, *options) as container:
        with urllib.request.urlopen(f"http://localhost:{PORT}/", timeout=10) as page:
            expect(b"<html" in page.read(), "no page")
        first = time.monotonic()
        headers, wav = call({"prompt": PROMPT, "duration": 2})
        second = time.monotonic()
        call({"prompt": PROMPT, "duration": 2})
        took = f"first call {second - first:.1f} s, second {time.monotonic() - second:.1f} s"
        expect(headers["X-Model"] == SMALL and wav[:4] == b"RIFF" and len(wav) > 120_000, str(headers))
        expect(container.users() == {"1034"}, f"users {container.users()}")
        expect(Path(cache).stat().st_uid == 1034 and Path(cache, "hub").stat().st_uid == 1034, "the cache is root's")
        log = container.log()
        expect("listening on 0.0.0.0: everyone" in log and "running on c" in log, f"log: {log}")
        expect(PROMPT not in log, "the prompt is in the log")
        changed = [line.split()[1] for line in engine("diff", container.name).stdout.splitlines()]
        kept = [path for path in changed if not path.startswith(("/tmp", "/app", "/run", "/etc"))]
        expect(not kept and not [path for path in changed if path.endswith(".wav")], f"changed {kept}")
        [found] = [line.split("] ")[-1] for line in log.splitlines() if "running on c" in line]
        stopped = container.stop()
    return (
        f"run -d --rm{' --gpus all' if GPUS else ''} -p {PORT}:8000 -v .cache:/app/cache --name audiocraft {IMAGE}",
        f"ready in {container.seconds:.1f} s; page; WAV by {SMALL}, {took}; user 1034, no zombie; nothing kept; "
        f'"{found}"; {stopped}',
    )


def row_2_user(place: Place) -> tuple[str, str]:
    cache = place.cache("row2user", 1000)
    os.chown(Path(cache, "hub"), 0, 0)  # left by a service that worked as root
    with server("row2user", "-p", f"{PORT}:8000", "-v", f"{cache}:/app/cache") as container:
        expect(call({"prompt": "calm", "duration": 1})[0]["X-Model"] == SMALL, "another model")
        expect(container.users() == {"1000"}, f"users {container.users()}")
        expect(Path(cache, "hub").stat().st_uid == 1000, "what was root's is still root's")
        stopped = container.stop()
    return "the same, .cache owned by uid 1000, root's folders in it", f"works as 1000; {stopped}"


def row_3(place: Place) -> tuple[str, str]:
    out, cache = place.out("row3", 1000), place.cache("row3cache", 1000)
    options = (*GPUS, "-v", f"{out}:/out", "-v", f"{cache}:/app/cache")
    done = cli("--prompt", PROMPT, "--duration", "3", "--output", "/out/output.wav", options=options)
    file = Path(out, "output.wav")
    expect(file.stat().st_uid == 1000 and file.stat().st_size > 190_000, "no WAV of uid 1000")
    expect(f"No --model was given: taking {SMALL}." in done.stderr, done.stderr)
    return f'run --rm -v .:/out audiocraft --prompt "{PROMPT}" --duration 3 --output /out/output.wav', (
        f"status 0; the WAV belongs to uid 1000; {done.stderr.splitlines()[0]}"
    )


def row_3_root(place: Place) -> tuple[str, str]:
    out, cache = place.out("row3root", 0), place.cache("row3rootcache", 1000)
    cli(
        "--prompt",
        PROMPT,
        "--duration",
        "1",
        "--output",
        "/out/o.wav",
        options=("-v", f"{out}:/out", "-v", f"{cache}:/app/cache:ro"),
    )
    owners = {Path(out).stat().st_uid, Path(out, "o.wav").stat().st_uid}
    expect(owners == {1034}, f"owners {owners}")
    return "the same, the folder owned by root, the cache read-only", "the folder and the WAV belong to 1034"


def row_3_missing(place: Place) -> tuple[str, str]:
    out = place.out("row3missing", 1000)
    args = ("--prompt", PROMPT, "--output", "/out/output.wav")
    done = cli(*args, options=("--network", "none", "-v", f"{out}:/out"), status=1)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    expect(len(lines) == 1 and "Traceback" not in done.stderr and not list(Path(out).iterdir()), done.stderr)
    return "the same with --network none and no model", f"status 1: {lines[0][:90]}..."


def row_4(place: Place) -> tuple[str, str]:
    out, cache = place.out("row4", 1000), place.cache("row4cache", 1000)
    args = ("--model", SMALL, "--prompt", "ambient cinematic music", "--duration", "2", "--output", "output.wav")
    cli(*args, options=("-v", f"{out}:/out", "-v", f"{cache}:/app/cache"))
    expect(Path(out, "output.wav").stat().st_uid == 1000, "not in /out, or another's")
    return f"run --rm -v .:/out audiocraft {shlex.join(args)}", "the WAV is in /out, of uid 1000"


def commands(place: Place) -> tuple[str, str]:
    expect("musicgen-bento, version" in cli("--version").stdout, "--version")
    expect(SMALL in cli("models").stdout and "--prompt" in cli("--help").stdout, "models, --help")
    expect("uid=1034" in cli("id").stdout, "id")
    cli("nonsense", status=127)
    return "run --rm audiocraft --version | --help | models | id | nonsense", "the CLI; id: 1034; nonsense: status 127"


def hardened(place: Place) -> tuple[str, str]:
    cache = place.cache("hardened", 1034)
    flags = "--user 1034 --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges"
    with server("hardened", *flags.split(), "-p", f"{PORT}:8000", "-v", f"{cache}:/app/cache") as container:
        expect(call({"prompt": "calm", "duration": 1})[0]["X-Model"] == SMALL, "another model")
        stopped = container.stop()
    return f"run {flags}", f"ready in {container.seconds:.1f} s, WAV, {stopped}"


def no_network(place: Place) -> tuple[str, str]:
    cache = place.cache("offline", 0)
    watch = place.folder / "watch"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH)
    path = "/watch:/home/bentoml/bento/src"
    mounts = ("-v", f"{cache}:/app/cache:ro", "-v", f"{watch}:/watch:ro", "-e", f"PYTHONPATH={path}")
    with server("offline", "--network", "none", *mounts) as container:
        made = container.python(PYTHON)
        outside = container.python(
            "import pathlib as p; f = p.Path('/tmp/outside'); print(f.exists() and f.read_text())"
        )
        expect(made.startswith(SMALL), made)
        expect(outside == "False", f"calls outside: {outside}")
        container.python("import socket, contextlib as c\nwith c.suppress(OSError): socket.getaddrinfo('planted', 1)")
        expect(container.python("print(open('/tmp/outside').read())").strip(), "a planted call was not seen")
        stopped = container.stop()
    return "run --network none -v .cache:/app/cache:ro", (
        f"ready in {container.seconds:.1f} s, WAV by {made.split()[0]}, no call to another machine was tried; {stopped}"
    )


def baked(place: Place) -> tuple[str, str]:
    name = "musicgen-check-baked"
    environment = {**os.environ, "HF_HOME": place.cache("baking", 0), "NAME": name, "ALIASES": ""}
    command = [str(ROOT / "image" / "build")]
    bad = subprocess.run(
        [*command, "facebook/musicgen-large"], env=environment, capture_output=True, text=True, check=False
    )
    expect(bad.returncode and "is not in the cache of this machine" in bad.stderr, bad.stderr[-300:])
    done = subprocess.run([*command, SMALL], env=environment, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, done.stderr[-400:])
    global IMAGE
    IMAGE, kept = f"{name}:latest", IMAGE
    try:
        with server("baked", "--network", "none") as container:
            made = container.python(PYTHON)
            expect(made.startswith(SMALL), made)
            stopped = container.stop()
    finally:
        IMAGE = kept
        engine("rmi", "-f", f"{name}:latest", check=False)
    return (
        f"make image MODELS={SMALL}; run --network none",
        f"WAV by {made.split()[0]}; {stopped}; a model not cached: one line",
    )


def killed_runner(place: Place) -> tuple[str, str]:
    with server("killed") as container:
        code = (
            "import os, glob\n"
            "for p in glob.glob('/proc/[0-9]*/cmdline'):\n"
            "  if b'--service-name\\0MusicGenRunner' in open(p, 'rb').read(): os.kill(int(p.split('/')[2]), 9)"
        )
        container.python(code)
        started = time.monotonic()
        engine("wait", container.name, timeout=60)
        status = container.status()
    expect(status == 1, f"status {status}")
    return (
        "kill -9 of the runner",
        f"the container ends after {time.monotonic() - started:.1f} s with status 1 (BentoML starts no other there)",
    )


def interrupted(place: Place) -> tuple[str, str]:
    with server("interrupted") as container:
        engine("kill", "-s", "INT", container.name)
        engine("wait", container.name, timeout=60)
        expect(container.status() == 0, f"status {container.status()}: {container.log()[-400:]}")
    out, name = place.out("interrupted", 1000), "musicgen-check-cli"
    args = ("--model", "demo", "--prompt", "calm", "--duration", "300", "--output", "o.wav")
    engine("run", "-d", "--name", name, "-v", f"{out}:/out", IMAGE, *args)
    try:
        time.sleep(8)
        started = time.monotonic()
        engine("stop", "-t", "20", name)
        took = time.monotonic() - started
        status = engine("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip()
        expect(status == "130" and took < 10 and not list(Path(out).iterdir()), f"CLI: status {status}, {took:.1f} s")
    finally:
        engine("rm", "-f", name, check=False)
    return "Ctrl-C (SIGINT) to the server; stop of a CLI at work", f"status 0; status 130 in {took:.1f} s, no file left"


def no_setuid(place: Place) -> tuple[str, str]:
    done = cli(options=("--cap-drop", "SETUID", "--cap-drop", "SETGID"), status=1)
    expect(len(done.stderr.strip().splitlines()) == 1, done.stderr)
    return "run --cap-drop SETUID --cap-drop SETGID", f"status 1: {done.stderr.strip()[:80]}..."


CHECKS: tuple[Callable[[Place], tuple[str, str]], ...] = (
    *(image, row_2, row_2_user, row_3, row_3_root, row_3_missing, row_4, commands, hardened, no_network, baked),
    *(killed_runner, interrupted, no_setuid),
)


def main(wanted: list[str]) -> int:
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    checks = [check for check in CHECKS if not wanted or check.__name__ in wanted]
    passed = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = Place(Path(folder))
        for check in checks:
            try:
                command, outcome = check(place)
            except Exception as error:
                print(f"FAILED  {check.__name__}: {type(error).__name__}: {error}", flush=True)
            else:
                passed += 1
                print(f"ok      {command}\n        -> {outcome}", flush=True)
    size = 0.0
    with suppress(Failed):
        size = int(engine("image", "inspect", "-f", "{{.Size}}", IMAGE).stdout) / 1e9
    since = float(os.environ.get("BEGAN", "0")) or time.time() - (time.monotonic() - began)
    gpu = "with" if GPUS else "without"
    print(f"{passed} of {len(checks)} passed, {gpu} a GPU; image {size:.2f} GB; {time.time() - since:.0f} s")
    return 0 if passed == len(checks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
