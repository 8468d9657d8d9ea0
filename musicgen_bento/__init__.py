"""musicgen-bento: text to music with MusicGen, served by BentoML."""

__version__ = "0.1.0"
