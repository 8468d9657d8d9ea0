"""What `bentoml serve` and `bentoml build` find; the service itself is musicgen_bento/service.py."""

from musicgen_bento.service import MusicGenRunner, MusicGenService

__all__ = ["MusicGenRunner", "MusicGenService"]
