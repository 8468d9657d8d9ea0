"""`serve`: the HTTP service and its page."""

from __future__ import annotations

import click


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
def serve(host: str, port: int) -> None:
    """Start the HTTP service and its page."""
    from musicgen_bento.cli import launch

    launch.serve(host, port)
