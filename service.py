"""What `bentoml serve` and `bentoml build` find; the service itself is musicgen_bento/server/service.py."""

from musicgen_bento.server.service import MusicGenRunner, MusicGenService

__all__ = ["MusicGenRunner", "MusicGenService"]
