"""`models`: a table of the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from musicgen_bento import model_catalog
from musicgen_bento.units import format_bytes

if TYPE_CHECKING:
    from musicgen_bento.schemas import ModelInfo


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    state: str
    license: str
    download_bytes: int | None
    memory_bytes: int | None
    note: str


@click.command()
@click.option("--server", metavar="URL", help="List the models of the server at this address, not of this machine.")
def models(server: str | None) -> None:
    """List the models by name, with their licences."""
    click.echo(_table(_local_rows() if server is None else _server_rows(server)))


def _local_rows() -> list[_Row]:
    from musicgen_bento.checkpoint.source import Source

    def state(card: model_catalog.ModelCard) -> str:
        return "built in" if card.folder else Source(card.id, card.id).state

    return [
        # No memory_bytes: it depends on the device, and only torch can name the device.
        _Row(card.id, state(card), card.license, card.download_bytes, None, card.note)
        for card in model_catalog.CATALOG
    ]


def _server_rows(url: str) -> list[_Row]:
    from musicgen_bento.client.sync_client import MusicGenClient

    return [
        _Row(model.id, _state(model), model.license or "-", model.download_bytes, model.memory_bytes, model.note)
        for model in MusicGenClient(url).list_models()
    ]


def _state(model: ModelInfo) -> str:
    """Return the state of a model of a server, with the progress of loading it."""
    from musicgen_bento.schemas import LoadProgress

    match model.progress:
        case LoadProgress(step="downloading", done_bytes=int(done), total_bytes=int(total)) if total:
            return f"downloading, {100 * done // total}%"
        case LoadProgress(step="waiting", ahead=int(ahead)):
            return f"waiting for memory, {ahead} ahead"
        case _:
            return model.state


def _table(rows: list[_Row]) -> str:
    """Format rows as columns, and the notes below. The column MEMORY is left out if it is empty."""
    lines: list[tuple[str, ...]] = [("MODEL", "STATE", "LICENCE", "DOWNLOAD", "MEMORY")]
    lines += [(row.id, row.state, row.license, _size(row.download_bytes), _size(row.memory_bytes)) for row in rows]
    if not any(row.memory_bytes for row in rows):
        lines = [line[:-1] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*table, "", *(f"{row.id}: {row.note}" for row in rows if row.note)]).rstrip()


def _size(size: int | None) -> str:
    return format_bytes(size) if size else "-"
