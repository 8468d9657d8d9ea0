"""`pull`: models fetched ahead of time, and looked into."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from musicgen_bento.cli.generate import names
from musicgen_bento.cli.progress import ProgressDisplay
from musicgen_bento.errors import ModelUnavailable

if TYPE_CHECKING:
    from musicgen_bento.checkpoint.download import DownloadProgress
    from musicgen_bento.checkpoint.source import Source

TELL_SECONDS = 0.2
HELP = """Download models ahead, and check them.

By id, other spelling or folder; without a name those of MUSICGEN_DEFAULT_MODEL and MUSICGEN_PRELOAD. What is here
already is checked and not fetched again, and a download that broke off goes on where it was.

\b
musicgen-bento pull facebook/musicgen-small
"""


@click.command(help=HELP)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=names)
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but errors.")
def pull(models: tuple[str, ...], quiet: bool) -> None:
    """Look at all names before anything is fetched."""
    from musicgen_bento import config
    from musicgen_bento.checkpoint.resolve import resolve_model

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every attempt, with addresses
    chosen = config.load_settings()
    asked = models or (chosen.default_model, *chosen.preload)
    sources = {source.name: source for source in (resolve_model(name, any_model=True, folders=True) for name in asked)}
    bar = ProgressDisplay(quiet)
    for source in sources.values():
        here, size = source.is_local, _fetch(source, bar)
        if not quiet:
            click.echo(f"{source.name}: {'here already' if here else f'fetched {size / 1e9:.2f} GB'}, checked")


def _fetch(source: Source, bar: ProgressDisplay) -> int:
    """Fetch and check one model; the bytes that it took. A download that broke off goes on as long as it gets on.

    Raises:
        ModelUnavailable: the hub cannot be reached, or the disk is full.
        BrokenCheckpoint: what came is no MusicGen.
    """
    from musicgen_bento.checkpoint import loading  # brings torch
    from musicgen_bento.checkpoint.download import DownloadProgress

    download, best = DownloadProgress(), 0
    with _telling(source.name, download, bar):
        while True:
            try:
                files = loading.open_files(source, download)
                break
            except ModelUnavailable:
                if download.received_bytes <= best:
                    raise
                best = download.received_bytes
    loading.check_text_encoder(files)
    return download.total_bytes


@contextmanager
def _telling(name: str, download: DownloadProgress, bar: ProgressDisplay) -> Iterator[None]:
    """Tell of a download while it lasts, if there is one."""
    over = threading.Event()

    def tell() -> None:
        last = False
        while not last:
            last = over.wait(TELL_SECONDS)
            if download.total_bytes:
                bar.fetch(name, download.received_bytes, download.total_bytes)
        bar.clear()

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
