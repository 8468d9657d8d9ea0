"""Reads one file of AudioCraft's released format: a dict of tensors (`best_state`) and a configuration (`xp.cfg`)."""

from __future__ import annotations

import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from musicgen_bento.checkpoint.download import DownloadProgress
from musicgen_bento.checkpoint.source import Source

_KEY_REFERENCE = re.compile(r"\$\{[\w.]+\}", re.ASCII)


def read_package(source: Source, filename: str, download: DownloadProgress) -> dict[str, Any]:
    """Read one `.bin` file. Its tensors are mapped, not read; it may hold tensors and plain values only.

    Args:
        source: the model.
        filename: the file's name in the source.
        download: receives the progress, if the file is downloaded.

    Raises:
        InvalidCheckpoint: the file is missing, truncated or in another format.
        ModelUnavailable: the hub cannot be reached, or the disk is full.
    """
    path = source.fetch_file(filename, download)
    try:
        if not _has_native_byte_order(path):
            raise source.checkpoint_error(filename, f"has the wrong byte order: this machine is {sys.byteorder}-endian")
        package = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise source.checkpoint_error(filename, "is truncated or is not a checkpoint") from error
    if not isinstance(package, dict):
        raise source.checkpoint_error(filename, "does not hold a dict, as a MusicGen checkpoint does")
    return package


def read_config(source: Source, filename: str, package: dict[str, Any]) -> Any:
    """Return the configuration (`xp.cfg`) of a package as an OmegaConf object.

    Raises:
        InvalidCheckpoint: the package lacks `best_state` or `xp.cfg`, or the configuration cannot be read.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(package.get("best_state"), dict) or not isinstance(package.get("xp.cfg"), str):
        raise source.checkpoint_error(filename, "is not in AudioCraft's released format (best_state and xp.cfg)")
    try:
        # yaml.safe_load runs no code of the file, and without resolvers OmegaConf reads nothing outside of it.
        return OmegaConf.create(_without_resolvers(yaml.safe_load(package["xp.cfg"])))
    except (OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        raise source.checkpoint_error(filename, "has a configuration (xp.cfg) that cannot be read") from error


@contextmanager
def config_errors(source: Source, filename: str) -> Iterator[None]:
    """Turn errors from a missing key or an impossible value of the configuration into InvalidCheckpoint."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (OmegaConfBaseException, AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise source.checkpoint_error(filename, "has a configuration (xp.cfg) that is not a MusicGen's") from error


def _has_native_byte_order(path: Path) -> bool:
    """Return whether a file's tensors have this machine's byte order; torch would swap the mapped bytes otherwise."""
    with zipfile.ZipFile(path) as file:
        orders = [file.read(name) for name in file.namelist() if name.endswith("/byteorder")]
    return all(order.decode(errors="replace") == sys.byteorder for order in orders)


def _without_resolvers(value: Any) -> Any:
    """Replace values that call a resolver, such as `${oc.env:SECRET}`, by "???"; keep references `${key}`.

    A resolver may read the environment. "???" is OmegaConf's mark of a missing value.
    """
    if isinstance(value, dict):
        return {key: _without_resolvers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_resolvers(item) for item in value]
    if isinstance(value, str) and "${" in _KEY_REFERENCE.sub("", value):
        return "???"
    return value
