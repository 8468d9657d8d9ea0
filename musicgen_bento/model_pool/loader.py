"""Loads models into memory: fetches files, estimates sizes, builds engines, and releases cached memory."""

from __future__ import annotations

import ctypes
import gc
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
from musicgen_bento.log import exception_location, exception_summary, logger
from musicgen_bento.model_catalog import DEMO_FOLDER, find_model
from musicgen_bento.model_pool import self_test


class Loader:
    """Loads models onto one device, as the settings say.

    Attributes:
        device: the device.
        precision: precision of the language models.
        budget: bytes that all models and requests may use together.

    Args:
        settings: the operator's settings.

    Raises:
        LoadFailed: the device does not support the precision.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.device = resolve_device(settings.device)
        self.precision = select_precision(self.device, settings)
        self.budget = memory_budget(self.device, settings)
        self._threads = torch.get_num_threads()

    def fetch(self, source: Source, download: DownloadProgress) -> CheckpointFiles:
        """Open a model's files, and download them first if needed. A catalogue model that cannot fit is not downloaded.

        Raises:
            ModelTooLarge: the model is larger than the memory budget.
            MusicGenError: the files cannot be fetched or opened; see `loading.open_files`.
        """
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise LoadFailed(
                f"Device {self.device} is not available for {source.name}.", hint="Set MUSICGEN_DEVICE to auto or cpu."
            )
        card = find_model(source.name)
        if card is not None:
            check_fits_budget(source.name, card.memory_bytes(self.precision, self._settings.max_duration), self.budget)
        files = loading.open_files(source, download)
        check_fits_budget(source.name, self.memory_requirements(files)[0], self.budget)
        return files

    def memory_requirements(self, files: CheckpointFiles) -> tuple[int, int]:
        """Bytes of the model in memory with the largest allowed request, and bytes of that request."""
        request_bytes = files.max_request_bytes(self.precision, self._settings.max_duration)
        return files.model_bytes(self.precision) + request_bytes, request_bytes

    def build(
        self, files: CheckpointFiles, *, wake: Callable[[], None], reserve_memory: Callable[[int], bool]
    ) -> Engine:
        """Read a model into memory and create its engine. The built-in model runs its self-test.

        Args:
            files: the model's files.
            wake: see `Engine`.
            reserve_memory: see `Engine`.

        Raises:
            MusicGenError: the model cannot be loaded; see `loading.build`.
        """
        engine = Engine(
            loading.build(files, self.device, self.precision),
            max_slots=max_slots(self.device, self._settings),
            max_queue=self._settings.max_queue,
            deterministic=self._settings.deterministic,
            threads=self._threads,
            wake=wake,
            reserve_memory=reserve_memory,
        )
        if self.device.type == "cpu":
            files.release_pages()  # only now: the engine packs the codec too
            _trim(0)
        if files.source.location == DEMO_FOLDER:
            self_test.run_self_test(engine)
        return engine

    def release_cached_memory(self) -> None:
        """Return unused memory to the system; torch and the C library both keep freed memory for reuse."""
        gc.collect()
        if self.device.type == "cuda":
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:  # a broken device; waiting requests must still be failed
                logger.error("Cached GPU memory could not be released: %s", exception_location(error))
        else:
            _trim(0)


def as_load_error(name: str, error: Exception) -> MusicGenError:
    """Convert an exception to an error without a traceback, which would keep a half-loaded model in memory."""
    if isinstance(error, MusicGenError):
        return error.without_traceback()
    logger.error("Loading %s failed: %s", name, exception_location(error))
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return LoadFailed(f"{name} does not fit into memory.", hint="Choose a smaller model.", field="model")
    return LoadFailed(f"{name} could not be loaded ({exception_summary(error)}).", field="model")


def _no_trim(_: int) -> int:
    return 0


# glibc keeps freed memory until malloc_trim; other C libraries do not need the function and do not have it.
_trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", _no_trim)
