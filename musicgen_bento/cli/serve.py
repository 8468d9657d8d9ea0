"""`serve`: start the HTTP server, private and on this machine unless the settings say otherwise."""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from musicgen_bento.errors import InvalidRequest, MusicGenError
from musicgen_bento.model_catalog import find_model

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from musicgen_bento.config import Settings

SERVICE = "musicgen_bento.server.service:MusicGenService"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
def serve(host: str, port: int) -> None:
    """Start the HTTP server and its web page."""
    from musicgen_bento import config

    settings = config.load_settings()
    address = _parse_address(host)
    _check_exposure(host, address, settings)
    _check_dependencies()
    _check_memory(settings)
    _replace_process(address, port)


def _parse_address(host: str) -> IPv4Address | IPv6Address:
    """Return the IP address to listen on. BentoML accepts addresses, not names.

    Raises:
        InvalidRequest: the host is neither an IP address nor localhost.
    """
    import ipaddress

    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise InvalidRequest(f"{host} is not an IP address.", hint="Use 127.0.0.1, ::1 or 0.0.0.0.") from None


def _check_exposure(host: str, address: IPv4Address | IPv6Address, settings: Settings) -> None:
    """Require MUSICGEN_ALLOW_ANONYMOUS for an address that other machines can reach, and warn even then.

    Raises:
        InvalidRequest: the setting is off.
    """
    if address.is_loopback:
        return
    if not settings.allow_anonymous:
        raise InvalidRequest(
            f"{host} is reachable from other machines, and the server has no access control.",
            hint="Set MUSICGEN_ALLOW_ANONYMOUS=1 to allow anonymous access.",
        )
    print(  # noqa: T201
        f"warning: listening on {address}: anyone who can reach this address can use the server.",
        file=sys.stderr,
        flush=True,
    )


def _check_dependencies() -> None:
    """Check that the packages of the extra `serve` are installed, without importing them.

    Raises:
        ModuleNotFoundError: one of them is missing.
    """
    for name in ("bentoml", "torch"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(name, name=name)


def _check_memory(settings: Settings) -> None:
    """Check that the preloaded models fit into the memory budget.

    Without a budget the built-in model always fits; skipping it saves the import of torch, which takes seconds.

    Raises:
        ModelTooLarge: the models do not fit.
    """
    only_built_in = all((card := find_model(model)) and card.folder for model in settings.preload)
    if settings.memory_budget or not only_built_in:
        from musicgen_bento import device  # imports torch

        device.check_preloaded_fit_budget(settings)


def _replace_process(address: IPv4Address | IPv6Address, port: int) -> NoReturn:
    """Replace this process by `bentoml serve`, so that signals reach it directly."""
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", str(address), "--port", str(port)]
    environment = _server_environment(port)
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def _server_environment(port: int) -> dict[str, str]:
    """Return the environment of the server: no telemetry, its own folder, and the project's configuration."""
    # The folder that contains the package. A plain `bentoml serve` finds the same service and configuration there.
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.setdefault("BENTOML_HOME", str(_bentoml_home(port)))
    if (root / "configuration.yaml").is_file():
        environment.setdefault("BENTOML_CONFIG", str(root / "configuration.yaml"))
    paths = [str(root), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def _bentoml_home(port: int) -> Path:
    """Return a private folder for this user and port: at start BentoML deletes all metrics in its folder.

    Raises:
        MusicGenError: the folder for temporary files cannot be used.
    """
    home = Path(tempfile.gettempdir(), f"musicgen-bento-{os.getuid()}-{port}")
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        status = home.lstat()
    except OSError as error:
        raise MusicGenError(f"Cannot use {home}: {error.strerror}.", hint="Set BENTOML_HOME to a folder.") from None
    is_private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    if not is_private:  # another user created it
        return Path(tempfile.mkdtemp(prefix="musicgen-bento-"))
    return home
