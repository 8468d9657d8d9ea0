"""The command line."""

from musicgen_bento.cli.program import main

__all__ = ["main"]
