"""`models`: the table of models."""

from __future__ import annotations

from dataclasses import dataclass

import click

from musicgen_bento import catalogue


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    state: str
    license: str
    download_bytes: int
    note: str


@click.command()
@click.option("--server", metavar="URL", help="Those of the server at this address, instead of this machine's.")
def models(server: str | None) -> None:
    """List the models by name, with their licences."""
    click.echo(_table(_here() if server is None else _there(server)))


def _here() -> list[_Row]:
    from musicgen_bento.engine.hub import Source

    def state(card: catalogue.ModelCard) -> str:
        return "built in" if card.folder else Source(card.id, card.id).state

    return [_Row(card.id, state(card), card.license, card.download_bytes, card.note) for card in catalogue.CATALOGUE]


def _there(url: str) -> list[_Row]:
    from musicgen_bento.client import MusicGenClient

    return [
        _Row(model.id, model.state, model.license or "-", model.download_bytes or 0, model.note)
        for model in MusicGenClient(url).list_models()
    ]


def _table(rows: list[_Row]) -> str:
    lines = [("MODEL", "STATE", "LICENCE", "DOWNLOAD")]
    for row in rows:
        size = f"{row.download_bytes / 1e9:.1f} GB" if row.download_bytes else "-"
        lines.append((row.id, row.state, row.license, size))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*table, "", *(f"{row.id}: {row.note}" for row in rows if row.note)]).rstrip()
