"""Models into memory and out of it: what one will take, an engine made of its files, and the memory given back."""

from __future__ import annotations

import ctypes
import gc
import logging
from collections.abc import Callable
from typing import Any

import torch

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.download import DownloadProgress
from musicgen_bento.checkpoint.loading import CheckpointFiles
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.config import Settings
from musicgen_bento.device import check_fits_budget, max_slots, memory_budget, resolve_device, select_precision
from musicgen_bento.engine.engine import Engine
from musicgen_bento.errors import LoadFailed, MusicGenError
from musicgen_bento.log import exception_location, exception_summary
from musicgen_bento.model_catalog import DEMO_FOLDER, find_model
from musicgen_bento.model_pool import self_test

_log = logging.getLogger("bentoml.musicgen")  # below BentoML's, which has a handler


class Loader:
    """For one device, as the settings have it.

    Attributes:
        device: where models will be.
        precision: what their language models' numbers are held in.
        budget: bytes that models and clips may take together.

    Args:
        settings: the operator's.

    Raises:
        LoadFailed: the device has no such precision.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.device = resolve_device(settings.device)
        self.precision = select_precision(self.device, settings)
        self.budget = memory_budget(self.device, settings)
        self._threads = torch.get_num_threads()

    def fetch(self, source: Source, download: DownloadProgress) -> CheckpointFiles:
        """A model's files, fetched where they are not here. A model that cannot fit is not fetched.

        Raises:
            ModelTooLarge: it takes more than all models may.
            MusicGenError: as `loading.open_files`.
        """
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise LoadFailed(
                f"There is no {self.device} for {source.name}.", hint="Set MUSICGEN_DEVICE to auto or cpu."
            )
        card = find_model(source.name)
        if card is not None:
            check_fits_budget(source.name, card.memory_bytes(self.precision, self._settings.max_duration), self.budget)
        files = loading.open_files(source, download)
        check_fits_budget(source.name, self.sizes(files)[0], self.budget)
        return files

    def sizes(self, files: CheckpointFiles) -> tuple[int, int]:
        """Bytes of the model in memory with the largest clip that may be asked of it, and of that clip."""
        clip = files.max_request_bytes(self.precision, self._settings.max_duration)
        return files.model_bytes(self.precision) + clip, clip

    def build(self, files: CheckpointFiles, *, wake: Callable[[], None], room: Callable[[int], bool]) -> Engine:
        """The engine of a model, in memory. The built-in one has been heard by then.

        Raises:
            MusicGenError: as `loading.build`.
        """
        engine = Engine(
            loading.build(files, self.device, self.precision),
            max_slots=max_slots(self.device, self._settings),
            max_queue=self._settings.max_queue,
            deterministic=self._settings.deterministic,
            threads=self._threads,
            wake=wake,
            reserve_memory=room,
        )
        if self.device.type == "cpu":
            files.release_pages()  # the codec has been packed too
            _trim(0)
        if files.source.location == DEMO_FOLDER:
            self_test.run_self_test(engine)
        return engine

    def release_cached_memory(self) -> None:
        """What is not used any more, to the system: torch and the C library both keep it for a next time."""
        gc.collect()
        if self.device.type == "cuda":
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:  # a device that is broken; whoever waits is to be told all the same
                _log.error("memory is not given back: %s", exception_location(error))
        else:
            _trim(0)


def as_load_error(name: str, error: Exception) -> MusicGenError:
    """What went wrong with a model, as an error that holds on to nothing: a traceback would keep half a model."""
    if isinstance(error, MusicGenError):
        return error.without_traceback()
    _log.error("%s: %s", name, exception_location(error))
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return LoadFailed(f"{name} does not fit into memory.", hint="Take a smaller model.", field="model")
    return LoadFailed(f"{name} could not be loaded ({exception_summary(error)}).", field="model")


def _no_trim(_: int) -> int:
    return 0


# glibc's; other C libraries have none, and need none.
_trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", _no_trim)
