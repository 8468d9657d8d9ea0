"""`pull`: download models ahead of their first use, and check their files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from musicgen_bento.cli.generate import complete_model_name
from musicgen_bento.cli.progress import ProgressDisplay
from musicgen_bento.errors import ModelUnavailable
from musicgen_bento.units import format_bytes

if TYPE_CHECKING:
    from musicgen_bento.checkpoint.download import DownloadProgress
    from musicgen_bento.checkpoint.source import Source

DISPLAY_INTERVAL_SECONDS = 0.2
HELP = """Download models ahead of their first use, and check their files.

MODEL is an id, an alias or a folder. Without MODEL: the models of MUSICGEN_DEFAULT_MODEL and MUSICGEN_PRELOAD. Files
that are already on this machine are checked and not downloaded again. An interrupted download is continued.

\b
musicgen-bento pull facebook/musicgen-small
"""


@click.command(help=HELP)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model_name)
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
def pull(models: tuple[str, ...], quiet: bool) -> None:
    """Check all names before the first download, then download and check each model."""
    from musicgen_bento import config
    from musicgen_bento.checkpoint.resolve import resolve_model

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry, with URLs
    settings = config.load_settings()
    names = models or (settings.default_model, *settings.preload)
    sources = {source.name: source for source in (resolve_model(name, any_model=True, folders=True) for name in names)}
    display = ProgressDisplay(quiet)
    for source in sources.values():
        was_local = source.is_local
        size = _fetch(source, display)
        if not quiet:
            result = "already on this machine" if was_local else f"downloaded {format_bytes(size)}"
            click.echo(f"{source.name}: {result}, checked")


def _fetch(source: Source, display: ProgressDisplay) -> int:
    """Fetch and check one model, and return the size of the download in bytes.

    An interrupted download is continued as long as each attempt receives something.

    Raises:
        ModelUnavailable: the hub cannot be reached, or the disk is full.
        InvalidCheckpoint: the files are not those of a MusicGen.
    """
    from musicgen_bento.checkpoint import loading  # imports torch
    from musicgen_bento.checkpoint.download import DownloadProgress

    download = DownloadProgress()
    received_bytes = 0  # at the end of the last attempt
    with _display_download(source.name, download, display):
        while True:
            try:
                files = loading.open_files(source, download)
                break
            except ModelUnavailable:
                if download.received_bytes <= received_bytes:
                    raise
                received_bytes = download.received_bytes
    loading.check_text_encoder(files)
    return download.total_bytes


@contextmanager
def _display_download(name: str, download: DownloadProgress, display: ProgressDisplay) -> Iterator[None]:
    """Show the progress of a download, if there is one, until the end of the `with` block."""
    ended = threading.Event()

    def update_until_end() -> None:
        is_last = False
        while not is_last:
            is_last = ended.wait(DISPLAY_INTERVAL_SECONDS)
            if download.total_bytes:
                display.update_download(name, download.received_bytes, download.total_bytes)
        display.clear()

    thread = threading.Thread(target=update_until_end, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
