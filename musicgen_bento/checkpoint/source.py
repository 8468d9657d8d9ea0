"""The files of one model: in a folder, in the hub's cache, or on the hub.

Errors of the hub's client are translated to this project's errors.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from musicgen_bento.checkpoint.download import DownloadProgress
from musicgen_bento.errors import InvalidCheckpoint, InvalidRequest, ModelUnavailable, MusicGenError, UnknownModel
from musicgen_bento.log import exception_location, logger

RETRY_AFTER_SECONDS = 30.0
MODEL_FILES = ("state_dict.bin", "compression_state_dict.bin")
T5 = "t5-base"  # text encoder of every released MusicGen
T5_SUBFOLDER = "t5"  # folder beside a model's files that may hold the text encoder
# The first two are required; the others are files of the tokenizer, of which some exist.
T5_FILES = ("config.json", "model.safetensors", "tokenizer*.json", "spiece.model", "special_tokens_map.json")
CODEC = "facebook/encodec_32khz"  # the codec that a reference names, see MAX_REFERENCE_BYTES
CODEC_FILES = ("config.json", "model.safetensors")
MAX_REFERENCE_BYTES = 100_000  # a codec file up to this size only names a codec on the hub

disable_progress_bars()  # download.py reports the progress

_FILES_HINT = "A MusicGen in AudioCraft's format consists of state_dict.bin and compression_state_dict.bin."


def cache_folder() -> str | None:
    """Return the value of AUDIOCRAFT_CACHE_DIR, AudioCraft's own setting; None means the hub's cache (HF_HOME)."""
    return os.environ.get("AUDIOCRAFT_CACHE_DIR")


def is_cached(repo: str, *filenames: str) -> bool:
    """Return whether the hub's cache has these files, without network access."""
    return all(_cached_path(repo, name) is not None for name in filenames)


def melody_not_supported(model: str) -> InvalidRequest:
    """Return the error for a model that is conditioned on a melody."""
    return InvalidRequest(
        f"{model} needs a melody, which is not supported yet.",
        hint="Use a model that is conditioned on text only, such as facebook/musicgen-medium.",
        field="model",
    )


@dataclass(frozen=True, slots=True)
class Source:
    """Where one model's files are.

    Attributes:
        name: the model's name in responses and errors.
        location: a folder as a Path, or a repository on the hub as a string, even if a folder has the same name.
    """

    name: str
    location: Path | str

    @property
    def is_local(self) -> bool:
        """Whether all files are on this machine. It neither uses the network nor reads files, so it may be wrong."""
        if isinstance(self.location, Path):
            codec_file = self.location / MODEL_FILES[1]
            if not codec_file.is_file():
                return True  # an incomplete folder: opening it fails without network access
            codec_bytes = codec_file.stat().st_size
            has_text_encoder = (self.location / T5_SUBFOLDER).is_dir()
            has_codec_folder = (self.location / CODEC.rpartition("/")[2]).is_dir()
        elif is_cached(self.location, *MODEL_FILES):
            codec_bytes = _cached_size(self.location, MODEL_FILES[1])
            has_text_encoder = has_codec_folder = False
        else:
            return False
        has_codec = codec_bytes > MAX_REFERENCE_BYTES or has_codec_folder
        return (has_text_encoder or is_cached(T5, *T5_FILES[:2])) and (has_codec or is_cached(CODEC, *CODEC_FILES))

    @property
    def state(self) -> str:
        """`cached` or `downloadable`."""
        return "cached" if self.is_local else "downloadable"

    def register_downloads(self, download: DownloadProgress) -> None:
        """Add the sizes of the files that are not on this machine to the expected bytes of a download.

        Raises:
            InvalidCheckpoint, UnknownModel, ModelUnavailable: as in `fetch_file`.
        """
        if not isinstance(self.location, Path):
            download.add_expected(_missing_sizes(self.location, MODEL_FILES) | _missing_sizes(T5, T5_FILES[:2]))

    def fetch_file(self, filename: str, download: DownloadProgress | None = None) -> Path:
        """Return the path of a file, such as `state_dict.bin`; download it if the hub's cache does not have it.

        Args:
            filename: the file's name.
            download: receives the progress of a download.

        Raises:
            InvalidCheckpoint: the folder or repository has no such file.
            UnknownModel: the hub has no such repository.
            ModelUnavailable: the hub cannot be reached, or the disk is full.
        """
        if isinstance(self.location, Path):
            path = self.location / filename
            if not path.is_file():
                raise InvalidCheckpoint(f"There is no {filename} in {self.name}.", hint=_FILES_HINT, field="model")
            return path
        return _fetch(self.location, filename, download)

    def fetch_dependency(
        self, repo: str, patterns: Sequence[str], *, subfolder: str, download: DownloadProgress | None = None
    ) -> Path:
        """Return the folder of another model that this model needs; download its files if necessary.

        Args:
            repo: the other model's name on the hub. It comes from this model's files and is never used as a path.
            patterns: names of its files. The first two are required and contain no wildcards.
            subfolder: a folder of this name beside this model's files is used instead of the hub.
            download: receives the progress of the first two files.

        Raises:
            UnknownModel, ModelUnavailable: as in `fetch_file`.
        """
        if isinstance(self.location, Path) and (self.location / subfolder).is_dir():
            return self.location / subfolder
        required = patterns[:2]
        if download is not None and not is_cached(repo, *required):
            download.add_expected(_missing_sizes(repo, required))
            for name in required:
                _fetch(repo, name, download)
        with _translate_hub_errors(repo, patterns[0]):
            folder = Path(snapshot_download(repo, allow_patterns=list(patterns), cache_dir=cache_folder()))
        if not all((folder / name).exists() for name in required):
            # Offline, snapshot_download succeeds with whatever part of the repository is in the cache.
            raise _unreachable(repo, f"{patterns[0]} and {patterns[1]}")
        return folder

    def checkpoint_error(self, filename: str, what: str) -> MusicGenError:
        """Return the error for a file that is damaged or unsupported; `what` continues "{filename} of {name}"."""
        return InvalidCheckpoint(
            f"{filename} of {self.name} {what}.",
            hint="Restore the released file. If it is in the hub's cache (HF_HOME), delete it there; it is downloaded "
            "again.",
            field="model",
        )


def _cached_path(repo: str, filename: str) -> Path | None:
    """Return the path of a file in the hub's cache; None if the cache does not have it."""
    path = try_to_load_from_cache(repo, filename, cache_dir=cache_folder())
    return Path(path) if isinstance(path, str) else None


def _cached_size(repo: str, filename: str) -> int:
    """Return the size in bytes of a file in the hub's cache."""
    path = _cached_path(repo, filename)
    assert path is not None
    return path.stat().st_size


def _fetch(repo: str, filename: str, download: DownloadProgress | None) -> Path:
    bar_class: Any = (download or DownloadProgress()).progress_bar_class(f"{repo}/{filename}")
    with _translate_hub_errors(repo, filename):
        return Path(hf_hub_download(repo, filename, cache_dir=cache_folder(), tqdm_class=bar_class))


def _missing_sizes(repo: str, filenames: Sequence[str]) -> dict[str, int]:
    """Return the sizes in bytes of the files that the hub's cache does not have, by `repo/filename`."""
    sizes = {}
    for name in filenames:
        if not is_cached(repo, name):
            with _translate_hub_errors(repo, name):
                file_info = hf_hub_download(repo, name, cache_dir=cache_folder(), dry_run=True)
            sizes[f"{repo}/{name}"] = file_info.file_size or 0
    return sizes


@contextmanager
def _translate_hub_errors(repo: str, filename: str) -> Iterator[None]:
    """Translate what one call of the hub's client raises into this project's errors."""
    try:
        yield
    except GatedRepoError as error:
        raise ModelUnavailable(
            f"{repo} is gated.",
            hint="Set HF_TOKEN to a token that has access to it.",
            field="model",
            retry_after=RETRY_AFTER_SECONDS,
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownModel(
            f"The hub has no model named {repo}.", hint="Run `musicgen-bento models` for a list.", field="model"
        ) from error
    except Exception as error:
        # No network, an interrupted connection, a full disk: the hub's client, its HTTP library and its storage
        # library each have their own exceptions for these. If there is a cause in the system, it is an OSError.
        code = _errno(error)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise _cannot_store(repo, "The disk is full", "Free some space") from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _cannot_store(repo, "The cache cannot be written", "Give this user write access") from error
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise InvalidCheckpoint(
                f"{repo} has no file {filename} on the hub.", hint=_FILES_HINT, field="model"
            ) from error
        if not isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            logger.warning("Downloading %s of %s failed: %s", filename, repo, exception_location(error))
        raise _unreachable(repo, filename) from error


def _errno(error: BaseException | None) -> int | None:
    """Return the first error number in an exception's chain of causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _unreachable(repo: str, filename: str) -> MusicGenError:
    return ModelUnavailable(
        f"{filename} of {repo} is not in the cache and could not be fetched from the hub.",
        hint="Retry: a download resumes where it stopped. Without a network, set HF_HOME to a cache that contains the "
        "model, or use the built-in model `demo`.",
        field="model",
        retry_after=RETRY_AFTER_SECONDS,
    )


def _cannot_store(repo: str, reason: str, remedy: str) -> MusicGenError:
    return ModelUnavailable(
        f"{reason}: {repo} could not be stored.",
        hint=f"{remedy}, or set HF_HOME to another folder; then retry.",
        field="model",
        retry_after=RETRY_AFTER_SECONDS,
    )
