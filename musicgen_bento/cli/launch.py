"""Starts the server the way the project means it: private, on this machine, reporting to nobody."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from musicgen_bento import config
from musicgen_bento.errors import InvalidRequest, MusicGenError
from musicgen_bento.model_catalog import find_model

SERVICE = "musicgen_bento.server.service:MusicGenService"


def serve(host: str, port: int) -> NoReturn:
    """Become `bentoml serve` for the service, so that signals reach it directly.

    Raises:
        InvalidRequest: the address is refused, or a setting is out of its range.
        ModelTooLarge: the preloaded models do not fit into memory.
    """
    chosen = config.load_settings()
    address = _address(host)
    if not address.is_loopback and not chosen.allow_anonymous:
        raise InvalidRequest(
            f"{host} can be reached from other machines, and everyone there could use the service.",
            hint="Set MUSICGEN_ALLOW_ANONYMOUS=1 if that is what you want.",
        )
    if not address.is_loopback:
        print(  # noqa: T201
            f"warning: listening on {address}: everyone who can reach it can use the service.",
            file=sys.stderr,
            flush=True,
        )
    for name in ("bentoml", "torch"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(name, name=name)
    built_in = all((card := find_model(model)) and card.folder for model in chosen.preload)
    if chosen.memory_budget or not built_in:
        from musicgen_bento import device  # brings torch: seconds, which a real model takes anyway

        device.check_preloaded_fit_budget(chosen)
    # The folder above the package: there the bare `bentoml serve` finds the same service, and its configuration.
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.setdefault("BENTOML_HOME", str(_home(port)))
    if (root / "configuration.yaml").is_file():
        environment.setdefault("BENTOML_CONFIG", str(root / "configuration.yaml"))
    paths = [str(root), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", str(address), "--port", str(port)]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """BentoML listens on addresses, not on names."""
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise InvalidRequest(f"{host} is no IP address.", hint="Take 127.0.0.1, ::1 or 0.0.0.0.") from None


def _home(port: int) -> Path:
    """A folder of this user's for this port: BentoML clears the metrics in it at start, those of others too."""
    home = Path(tempfile.gettempdir(), f"musicgen-bento-{os.getuid()}-{port}")
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        found = home.lstat()
    except OSError as error:
        raise MusicGenError(f"Cannot use {home}: {error.strerror}.", hint="Set BENTOML_HOME to a folder.") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        return Path(tempfile.mkdtemp(prefix="musicgen-bento-"))  # someone else put something there
    return home
