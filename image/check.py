"""Run the image as users do and print the result of each command: check.py [CHECK...], after image/build.

ENGINE is docker or podman. A tiny random model in a separate cache replaces facebook/musicgen-small. All containers are
named musicgen-check-*, and are removed at the end.
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
ENGINE = os.environ.get("ENGINE") or next((name for name in ("docker", "podman") if shutil.which(name)), "docker")
IMAGE, SMALL = "audiocraft:latest", "facebook/musicgen-small"
PORT = int(os.environ.get("PORT", "8001"))
PROMPT = "dark cinematic music"
# Without a GPU the engine rejects the option.
GPUS = ["--gpus", "all"] if shutil.which("nvidia-smi") else []
GENERATE_CODE = (
    "import json, urllib.request as u; r = u.urlopen(u.Request('http://127.0.0.1:8000/generate', method='POST', "
    "headers={'Content-Type': 'application/json'}, data=json.dumps({'prompt': 'calm', 'duration': 1}).encode())); "
    "print(r.headers['X-Model'], len(r.read()))"
)
# Loaded by every Python process of a container: it records attempts to reach another machine.
RECORD_CONNECTIONS = """import sys
def record(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        to = args[1] if event != "socket.getaddrinfo" else args[0]
        if not isinstance(to, (str, bytes)) and to: to = to[0]
        if str(to) not in ("127.0.0.1", "::1", "localhost", "None", "0.0.0.0") and not str(to).startswith(("/", "b'")):
            with open("/tmp/outside", "a") as file: print(event, to, file=file)
sys.addaudithook(record)
"""


class CheckFailed(Exception):
    """An expectation of a check that does not hold."""


def expect(condition: object, message: str) -> None:
    """Raise CheckFailed unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


def engine(*args: str, check: bool = True, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    """Run a command of docker or podman."""
    result = subprocess.run([ENGINE, *args], capture_output=True, text=True, timeout=timeout, check=False)
    if check and result.returncode:
        raise CheckFailed(f"{ENGINE} {args[0]}: status {result.returncode}: {result.stderr.strip()[-400:]}")
    return result


class Container:
    """A server that runs in a container and is ready."""

    def __init__(self, name: str, *options: str, args: tuple[str, ...] = ()) -> None:
        self.name = f"musicgen-check-{name}"
        engine("rm", "-f", self.name, check=False)
        started = time.monotonic()
        engine("run", "-d", "--name", self.name, *options, IMAGE, *args)
        try:
            self._wait_until_ready()
        except BaseException:
            self.remove()
            raise
        self.startup_seconds = time.monotonic() - started

    def _wait_until_ready(self) -> None:
        probe = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"
        deadline = time.monotonic() + 120
        while engine("exec", self.name, "python", "-c", probe, check=False).returncode:
            running = engine("inspect", "-f", "{{.State.Running}}", self.name).stdout.strip() == "true"
            expect(running and time.monotonic() < deadline, f"not ready: {self.log()[-600:]}")
            time.sleep(0.5)

    def log(self) -> str:
        result = engine("logs", self.name)
        return result.stdout + result.stderr

    def python(self, code: str) -> str:
        """Run Python code in the container, and return its output."""
        return engine("exec", self.name, "python", "-c", code).stdout.strip()

    def users(self) -> set[str]:
        """Return the user ids of all processes, and check that none of them is a zombie."""
        code = (
            "import os, glob; me = str(os.getpid())\n"
            "for p in glob.glob('/proc/[0-9]*'):\n"
            "  if p != '/proc/' + me: print(os.stat(p).st_uid, open(p + '/stat').read().rsplit(') ')[1][0])"
        )
        rows = [line.split() for line in self.python(code).splitlines()]
        expect("Z" not in {state for _, state in rows}, "there is a zombie process")
        return {user for user, _ in rows}

    def exit_status(self) -> int:
        return int(engine("inspect", "-f", "{{.State.ExitCode}}", self.name).stdout)

    def stop(self) -> str:
        """Stop the server, check its exit status, and return a description."""
        started = time.monotonic()
        engine("stop", "-t", "30", self.name)
        expect(self.exit_status() == 0, f"stop: status {self.exit_status()}: {self.log()[-400:]}")
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


def run_image(*args: str, options: tuple[str, ...] = (), status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the image with these arguments and check the exit status."""
    result = engine("run", "--rm", *options, IMAGE, *args, check=False)
    expect(result.returncode == status, f"status {result.returncode}: {result.stderr.strip()[-400:]}")
    return result


def generate(body: dict[str, Any]) -> tuple[Message, bytes]:
    """Send a request to the server, and return the headers and the WAV file."""
    request = urllib.request.Request(
        f"http://localhost:{PORT}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.headers, response.read()


class Folders:
    """The folders to mount into containers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._model = root / "model"
        code = (
            "import pathlib, sys, tests.support.tiny_checkpoints as c; "
            "c.write_hub_cache(pathlib.Path(sys.argv[1]), sys.argv[2], c.RandomModelConfig())"
        )
        command = [sys.executable, "-c", code, str(self._model / "hub"), SMALL]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        for path in self._model.rglob("*"):  # like downloads: readable by all users
            path.chmod(0o755 if path.is_dir() else 0o644)

    def cache(self, name: str, owner: int) -> str:
        """Create a cache with the tiny model, and return its path. All files have one owner."""
        path = self.root / name
        shutil.copytree(self._model, path, symlinks=True)
        return self._set_owner(path, owner)

    def out(self, name: str, owner: int) -> str:
        """Create a folder for clips, and return its path."""
        (self.root / name).mkdir()
        return self._set_owner(self.root / name, owner)

    def _set_owner(self, folder: Path, owner: int) -> str:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner, owner, follow_symlinks=False)
        return str(folder)


# ---- the checks: each returns the command that it runs, and the result


def image(folders: Folders) -> tuple[str, str]:
    labels = json.loads(engine("image", "inspect", IMAGE).stdout)[0]["Config"]["Labels"]
    keys = ("title", "description", "licenses", "version")
    expect(all(labels.get(f"org.opencontainers.image.{key}") for key in keys), f"labels: {labels}")
    search = "command -v gcc cc g++ make git ruff pytest mypy uv; find {} -type f -size +0 2>/dev/null; true"
    caches = "/root/.cache /var/cache/apt /var/lib/apt/lists /tmp"
    tools = engine("run", "--rm", "--entrypoint", "sh", IMAGE, "-c", search.format(caches))
    expect(not tools.stdout.strip(), tools.stdout)
    expect(
        "MIT License" in run_image("cat", "/usr/share/licenses/musicgen-bento/LICENSE").stdout, "the licence is missing"
    )
    names = [f"musicgen-bento:{labels['org.opencontainers.image.version']}", "musicgen-bento:latest", IMAGE]
    ids = {engine("image", "inspect", "-f", "{{.Id}}", name).stdout for name in names}
    expect(len(ids) == 1, f"{names} are not the same image")
    return "make image", f"one image, {' = '.join(names)}; labels, licence; no compiler, git, caches or test tools"


def server_with_cache_of_root(folders: Folders) -> tuple[str, str]:
    cache = folders.cache("root-cache", 0)
    options = ("-p", f"{PORT}:8000", "-v", f"{cache}:/app/cache")
    with server("root-cache", *GPUS, *options) as container:
        with urllib.request.urlopen(f"http://localhost:{PORT}/", timeout=10) as page:
            expect(b"<html" in page.read(), "no page")
        first_started = time.monotonic()
        headers, wav = generate({"prompt": PROMPT, "duration": 2})
        second_started = time.monotonic()
        generate({"prompt": PROMPT, "duration": 2})
        durations = (
            f"first call {second_started - first_started:.1f} s, second {time.monotonic() - second_started:.1f} s"
        )
        expect(headers["X-Model"] == SMALL and wav[:4] == b"RIFF" and len(wav) > 120_000, str(headers))
        expect(container.users() == {"1034"}, f"users {container.users()}")
        expect(
            Path(cache).stat().st_uid == 1034 and Path(cache, "hub").stat().st_uid == 1034,
            "the cache still belongs to root",
        )
        log = container.log()
        expect("listening on 0.0.0.0: anyone" in log and "running on c" in log, f"log: {log}")
        expect(PROMPT not in log, "the prompt is in the log")
        changed = [line.split()[1] for line in engine("diff", container.name).stdout.splitlines()]
        unexpected = [path for path in changed if not path.startswith(("/tmp", "/app", "/run", "/etc"))]
        expect(not unexpected and not [path for path in changed if path.endswith(".wav")], f"changed {unexpected}")
        [device_line] = [line.split("] ")[-1] for line in log.splitlines() if "running on c" in line]
        stopped = container.stop()
    return (
        f"run -d --rm{' --gpus all' if GPUS else ''} -p {PORT}:8000 -v .cache:/app/cache --name audiocraft {IMAGE}",
        f"ready in {container.startup_seconds:.1f} s; page; WAV by {SMALL}, {durations}; user 1034, no zombie; "
        f'no other file changed; "{device_line}"; {stopped}',
    )


def server_with_cache_of_user(folders: Folders) -> tuple[str, str]:
    cache = folders.cache("user-cache", 1000)
    os.chown(Path(cache, "hub"), 0, 0)  # as a server that ran as root left it
    with server("user-cache", "-p", f"{PORT}:8000", "-v", f"{cache}:/app/cache") as container:
        expect(generate({"prompt": "calm", "duration": 1})[0]["X-Model"] == SMALL, "the clip is from another model")
        expect(container.users() == {"1000"}, f"users {container.users()}")
        expect(Path(cache, "hub").stat().st_uid == 1000, "the folder still belongs to root")
        stopped = container.stop()
    return "the same, .cache owned by uid 1000, with folders of root", f"runs as 1000; {stopped}"


def clip_in_mounted_folder(folders: Folders) -> tuple[str, str]:
    out, cache = folders.out("out", 1000), folders.cache("out-cache", 1000)
    options = (*GPUS, "-v", f"{out}:/out", "-v", f"{cache}:/app/cache")
    result = run_image("--prompt", PROMPT, "--duration", "3", "--output", "/out/output.wav", options=options)
    file = Path(out, "output.wav")
    expect(file.stat().st_uid == 1000 and file.stat().st_size > 190_000, "there is no WAV of uid 1000")
    expect(f"No --model was given: using {SMALL}." in result.stderr, result.stderr)
    return f'run --rm -v .:/out audiocraft --prompt "{PROMPT}" --duration 3 --output /out/output.wav', (
        f"status 0; the WAV belongs to uid 1000; {result.stderr.splitlines()[0]}"
    )


def clip_in_folder_of_root(folders: Folders) -> tuple[str, str]:
    out, cache = folders.out("root-out", 0), folders.cache("root-out-cache", 1000)
    run_image(
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


def clip_without_model(folders: Folders) -> tuple[str, str]:
    out = folders.out("no-model", 1000)
    args = ("--prompt", PROMPT, "--output", "/out/output.wav")
    result = run_image(*args, options=("--network", "none", "-v", f"{out}:/out"), status=1)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    expect(len(lines) == 1 and "Traceback" not in result.stderr and not list(Path(out).iterdir()), result.stderr)
    return "the same with --network none and no model", f"status 1: {lines[0][:90]}..."


def clip_with_relative_output(folders: Folders) -> tuple[str, str]:
    out, cache = folders.out("relative", 1000), folders.cache("relative-cache", 1000)
    args = ("--model", SMALL, "--prompt", "ambient cinematic music", "--duration", "2", "--output", "output.wav")
    run_image(*args, options=("-v", f"{out}:/out", "-v", f"{cache}:/app/cache"))
    expect(Path(out, "output.wav").stat().st_uid == 1000, "the WAV is not in /out, or has another owner")
    return f"run --rm -v .:/out audiocraft {shlex.join(args)}", "the WAV is in /out, of uid 1000"


def commands(folders: Folders) -> tuple[str, str]:
    expect("musicgen-bento, version" in run_image("--version").stdout, "--version")
    expect(SMALL in run_image("models").stdout and "--prompt" in run_image("--help").stdout, "models, --help")
    expect("uid=1034" in run_image("id").stdout, "id")
    run_image("nonsense", status=127)
    return "run --rm audiocraft --version | --help | models | id | nonsense", "the CLI; id: 1034; nonsense: status 127"


def hardened(folders: Folders) -> tuple[str, str]:
    cache = folders.cache("hardened", 1034)
    flags = "--user 1034 --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges"
    with server("hardened", *flags.split(), "-p", f"{PORT}:8000", "-v", f"{cache}:/app/cache") as container:
        expect(generate({"prompt": "calm", "duration": 1})[0]["X-Model"] == SMALL, "the clip is from another model")
        stopped = container.stop()
    return f"run {flags}", f"ready in {container.startup_seconds:.1f} s, WAV, {stopped}"


def no_network(folders: Folders) -> tuple[str, str]:
    cache = folders.cache("offline", 0)
    recorder = folders.root / "recorder"
    recorder.mkdir()
    (recorder / "sitecustomize.py").write_text(RECORD_CONNECTIONS)
    path = "/recorder:/home/bentoml/bento/src"
    mounts = ("-v", f"{cache}:/app/cache:ro", "-v", f"{recorder}:/recorder:ro", "-e", f"PYTHONPATH={path}")
    with server("offline", "--network", "none", *mounts) as container:
        generated = container.python(GENERATE_CODE)
        outside = container.python(
            "import pathlib as p; f = p.Path('/tmp/outside'); print(f.exists() and f.read_text())"
        )
        expect(generated.startswith(SMALL), generated)
        expect(outside == "False", f"connections to other machines: {outside}")
        container.python("import socket, contextlib as c\nwith c.suppress(OSError): socket.getaddrinfo('test-host', 1)")
        expect(container.python("print(open('/tmp/outside').read())").strip(), "the recorder missed a connection")
        stopped = container.stop()
    return "run --network none -v .cache:/app/cache:ro", (
        f"ready in {container.startup_seconds:.1f} s, WAV by {generated.split()[0]}, "
        f"no connection to another machine was attempted; {stopped}"
    )


def baked(folders: Folders) -> tuple[str, str]:
    name = "musicgen-check-baked"
    environment = {**os.environ, "HF_HOME": folders.cache("baking", 0), "NAME": name, "ALIASES": ""}
    command = [str(ROOT / "image" / "build")]
    uncached = subprocess.run(
        [*command, "facebook/musicgen-large"], env=environment, capture_output=True, text=True, check=False
    )
    expect(uncached.returncode and "is not in the cache of this machine" in uncached.stderr, uncached.stderr[-300:])
    result = subprocess.run([*command, SMALL], env=environment, capture_output=True, text=True, check=False)
    expect(result.returncode == 0, result.stderr[-400:])
    global IMAGE
    IMAGE, default_image = f"{name}:latest", IMAGE
    try:
        with server("baked", "--network", "none") as container:
            generated = container.python(GENERATE_CODE)
            expect(generated.startswith(SMALL), generated)
            stopped = container.stop()
    finally:
        IMAGE = default_image
        engine("rmi", "-f", f"{name}:latest", check=False)
    return (
        f"make image MODELS={SMALL}; run --network none",
        f"WAV by {generated.split()[0]}; {stopped}; a model that is not cached: one line",
    )


def killed_runner(folders: Folders) -> tuple[str, str]:
    with server("killed") as container:
        code = (
            "import os, glob\n"
            "for p in glob.glob('/proc/[0-9]*/cmdline'):\n"
            "  if b'--service-name\\0MusicGenRunner' in open(p, 'rb').read(): os.kill(int(p.split('/')[2]), 9)"
        )
        container.python(code)
        started = time.monotonic()
        engine("wait", container.name, timeout=60)
        status = container.exit_status()
    expect(status == 1, f"status {status}")
    return (
        "kill -9 of the runner",
        f"the container ends after {time.monotonic() - started:.1f} s with status 1 (BentoML does not restart it)",
    )


def interrupted(folders: Folders) -> tuple[str, str]:
    with server("interrupted") as container:
        engine("kill", "-s", "INT", container.name)
        engine("wait", container.name, timeout=60)
        expect(container.exit_status() == 0, f"status {container.exit_status()}: {container.log()[-400:]}")
    out, name = folders.out("interrupted", 1000), "musicgen-check-cli"
    args = ("--model", "demo", "--prompt", "calm", "--duration", "300", "--output", "o.wav")
    engine("run", "-d", "--name", name, "-v", f"{out}:/out", IMAGE, *args)
    try:
        time.sleep(8)
        started = time.monotonic()
        engine("stop", "-t", "20", name)
        seconds = time.monotonic() - started
        status = engine("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip()
        expect(
            status == "130" and seconds < 10 and not list(Path(out).iterdir()), f"CLI: status {status}, {seconds:.1f} s"
        )
    finally:
        engine("rm", "-f", name, check=False)
    return (
        "Ctrl-C (SIGINT) to the server; stop of a running CLI",
        f"status 0; status 130 in {seconds:.1f} s, no file remains",
    )


def no_setuid(folders: Folders) -> tuple[str, str]:
    result = run_image(options=("--cap-drop", "SETUID", "--cap-drop", "SETGID"), status=1)
    expect(len(result.stderr.strip().splitlines()) == 1, result.stderr)
    return "run --cap-drop SETUID --cap-drop SETGID", f"status 1: {result.stderr.strip()[:80]}..."


CHECKS: tuple[Callable[[Folders], tuple[str, str]], ...] = (
    *(image, server_with_cache_of_root, server_with_cache_of_user),
    *(clip_in_mounted_folder, clip_in_folder_of_root, clip_without_model, clip_with_relative_output),
    *(commands, hardened, no_network, baked, killed_runner, interrupted, no_setuid),
)


def main(names: list[str]) -> int:
    """Run the named checks, or all of them, and return the exit status."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    checks = [check for check in CHECKS if not names or check.__name__ in names]
    passed = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        folders = Folders(Path(folder))
        for check in checks:
            try:
                command, outcome = check(folders)
            except Exception as error:
                print(f"FAILED  {check.__name__}: {type(error).__name__}: {error}", flush=True)
            else:
                passed += 1
                print(f"ok      {command}\n        -> {outcome}", flush=True)
    image_gigabytes = 0.0
    with suppress(CheckFailed):
        image_gigabytes = int(engine("image", "inspect", "-f", "{{.Size}}", IMAGE).stdout) / 1e9
    start_time = float(os.environ.get("START_TIME", "0")) or time.time() - (time.monotonic() - started)
    gpu = "with" if GPUS else "without"
    seconds = time.time() - start_time
    print(f"{passed} of {len(checks)} passed, {gpu} a GPU; image {image_gigabytes:.2f} GB; {seconds:.0f} s")
    return 0 if passed == len(checks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
