"""The services for `bentoml serve` and `bentoml build`, which are defined in musicgen_bento/server/service.py."""

from musicgen_bento.server.service import MusicGenRunner, MusicGenService

__all__ = ["MusicGenRunner", "MusicGenService"]
