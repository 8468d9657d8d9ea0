"""Assembles the audio of one request from its events."""

from __future__ import annotations

import numpy as np

from musicgen_bento.engine.types import AudioChunk, Event, Samples, Started


class AudioAssembler:
    """Copies the chunks of a request into one array.

    Attributes:
        started: the request's Started event; None before it.
        samples: the audio [C, T], zeros where no chunk has arrived yet; None before Started.
    """

    def __init__(self) -> None:
        self.started: Started | None = None
        self.samples: Samples | None = None

    def on_event(self, event: Event) -> None:
        """Take the format from Started and the samples from AudioChunk; ignore other events."""
        if isinstance(event, Started):
            self.started = event
            self.samples = np.zeros((event.channels, event.samples), dtype=np.float32)
        elif isinstance(event, AudioChunk) and self.samples is not None:
            self.samples[:, event.start : event.start + event.samples.shape[1]] = event.samples
