"""Where a model's files come from: a folder, the hub's cache, or the hub. What goes wrong there, in plain words."""

from __future__ import annotations

import errno
import logging
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
from musicgen_bento.errors import InvalidCheckpoint, ModelUnavailable, MusicGenError, UnknownModel
from musicgen_bento.log import exception_location

RETRY_AFTER = 30.0
MODEL_FILES = ("state_dict.bin", "compression_state_dict.bin")
# What every released MusicGen hears its prompt through. The first two must be there, and some of the tokenizer's.
T5 = "t5-base"
T5_SUBFOLDER = "t5"  # the folder beside a model's files that may hold one
T5_FILES = ("config.json", "model.safetensors", "tokenizer*.json", "spiece.model", "special_tokens_map.json")
# What a codec file of a few bytes only names.
CODEC = "facebook/encodec_32khz"
CODEC_FILES = ("config.json", "model.safetensors")
MAX_REFERENCE_BYTES = 100_000

disable_progress_bars()  # download.py tells how far it is

_log = logging.getLogger("bentoml.musicgen")  # below BentoML's, which has a handler
_FILES = "A MusicGen in AudioCraft's format holds state_dict.bin and compression_state_dict.bin."


def cache_folder() -> str | None:
    """AudioCraft's own variable for the cache, where it is set; None means the hub's (HF_HOME)."""
    return os.environ.get("AUDIOCRAFT_CACHE_DIR")


def is_cached(repo: str, *filenames: str) -> bool:
    """Whether the hub's cache has these files, with no look at the network."""
    return all(isinstance(try_to_load_from_cache(repo, name, cache_dir=cache_folder()), str) for name in filenames)


def _size(repo: str, filename: str) -> int:
    """Bytes of a file in the cache."""
    return Path(str(try_to_load_from_cache(repo, filename, cache_dir=cache_folder()))).stat().st_size


@dataclass(frozen=True, slots=True)
class Source:
    """Where one model's files are.

    Attributes:
        name: what the model is called in answers and errors.
        place: a folder, as a Path; or a repository on the hub, as a string, whatever folders there may be.
    """

    name: str
    location: Path | str

    @property
    def is_local(self) -> bool:
        """Whether all it takes is on this machine, as far as can be said with no look at the network or into files."""
        if isinstance(self.location, Path):
            codec = self.location / MODEL_FILES[1]
            if not codec.is_file():  # which is found out with no look at the network either
                return True
            text = (self.location / T5_SUBFOLDER).is_dir()
            whole = codec.stat().st_size > MAX_REFERENCE_BYTES or (self.location / CODEC.rpartition("/")[2]).is_dir()
        elif is_cached(self.location, *MODEL_FILES):
            text, whole = False, _size(self.location, MODEL_FILES[1]) > MAX_REFERENCE_BYTES
        else:
            return False
        return (text or is_cached(T5, *T5_FILES[:2])) and (whole or is_cached(CODEC, *CODEC_FILES))

    @property
    def state(self) -> str:
        """`cached` or `downloadable`."""
        return "cached" if self.is_local else "downloadable"

    def register_downloads(self, download: DownloadProgress) -> None:
        """Ask the hub for the sizes of what is not here.

        Raises:
            BrokenCheckpoint, UnknownModel, ModelUnavailable: as `file`.
        """
        if not isinstance(self.location, Path):
            download.add_expected(_sizes(self.location, MODEL_FILES) | _sizes(T5, T5_FILES[:2]))

    def file(self, filename: str, download: DownloadProgress | None = None) -> Path:
        """One file, such as `state_dict.bin`; from the hub's cache if it is there.

        Args:
            filename: which.
            download: told what comes, where it has to be fetched.

        Raises:
            BrokenCheckpoint: the folder or repository has no such file.
            UnknownModel: the hub has no such repository.
            ModelUnavailable: the hub cannot be reached, or the disk is full.
        """
        if isinstance(self.location, Path):
            path = self.location / filename
            if not path.is_file():
                raise InvalidCheckpoint(f"There is no {filename} in {self.name}.", hint=_FILES, field="model")
            return path
        return _fetch(self.location, filename, download)

    def dependency(
        self, repo: str, patterns: Sequence[str], *, subfolder: str, download: DownloadProgress | None = None
    ) -> Path:
        """A folder with another model that this one needs; the first two patterns, which are names, must be there.

        Args:
            repo: its name on the hub, as this model's files have it. It is never taken for a path.
            patterns: which of its files.
            beside: the name of a folder beside this model's files that holds it; the hub is asked otherwise.
            download: told what comes of the first two, where they have to be fetched.

        Raises:
            UnknownModel, ModelUnavailable: as `file`.
        """
        if isinstance(self.location, Path) and (self.location / subfolder).is_dir():
            return self.location / subfolder
        needed = patterns[:2]
        if download is not None and not is_cached(repo, *needed):
            download.add_expected(_sizes(repo, needed))
            for name in needed:
                _fetch(repo, name, download)
        with _plain_words(repo, patterns[0]):
            folder = Path(snapshot_download(repo, allow_patterns=list(patterns), cache_dir=cache_folder()))
        if not all((folder / name).exists() for name in needed):
            # offline, snapshot_download is content with whatever part of the repository is there
            raise _unreachable(repo, f"{patterns[0]} and {patterns[1]}")
        return folder

    def checkpoint_error(self, filename: str, what: str) -> MusicGenError:
        """What is wrong with a file, and the way out."""
        return InvalidCheckpoint(
            f"{filename} of {self.name} {what}.",
            hint="Put back the file as it was released; from the hub's cache (HF_HOME) remove it, and it is "
            "fetched anew.",
            field="model",
        )


def _fetch(repo: str, filename: str, download: DownloadProgress | None) -> Path:
    bar: Any = (download or DownloadProgress()).progress_bar_class(f"{repo}/{filename}")
    with _plain_words(repo, filename):
        return Path(hf_hub_download(repo, filename, cache_dir=cache_folder(), tqdm_class=bar))


def _sizes(repo: str, filenames: Sequence[str]) -> dict[str, int]:
    """Bytes of those files that are not in the cache."""
    sizes = {}
    for name in filenames:
        if not is_cached(repo, name):
            with _plain_words(repo, name):
                found = hf_hub_download(repo, name, cache_dir=cache_folder(), dry_run=True)
            sizes[f"{repo}/{name}"] = found.file_size or 0
    return sizes


@contextmanager
def _plain_words(repo: str, filename: str) -> Iterator[None]:
    """Around one call of the hub's client: what it raises, as this project's errors."""
    try:
        yield
    except GatedRepoError as error:
        raise ModelUnavailable(
            f"{repo} is closed to strangers.",
            hint="Set HF_TOKEN to a token that may read it.",
            field="model",
            retry_after=RETRY_AFTER,
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownModel(
            f"The hub has no model named {repo}.", hint="`musicgen-bento models` lists the known ones.", field="model"
        ) from error
    except Exception as error:
        # Whatever else: no network, a connection that broke off, a disk. The client, its HTTP library and its
        # storage library each have exceptions of their own for these; what they rest on is an OSError, if any.
        reason = _errno(error)
        if reason in (errno.ENOSPC, errno.EDQUOT):
            raise _unstorable(repo, "The disk is full", "Free some space") from error
        if reason in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _unstorable(repo, "The cache cannot be written", "Let this user write there") from error
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise InvalidCheckpoint(f"{repo} has no file {filename} on the hub.", hint=_FILES, field="model") from error
        if not isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            _log.warning("fetching %s of %s failed: %s", filename, repo, exception_location(error))
        raise _unreachable(repo, filename) from error


def _errno(error: BaseException | None) -> int | None:
    """The system's reason, from wherever in the chain of causes there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _unreachable(repo: str, filename: str) -> MusicGenError:
    return ModelUnavailable(
        f"{filename} of {repo} is not in the cache, and could not be fetched from the hub.",
        hint="Ask again: a download goes on where it broke off. Without a network, point HF_HOME to a cache that "
        "holds the model; the built-in model `demo` needs neither.",
        field="model",
        retry_after=RETRY_AFTER,
    )


def _unstorable(repo: str, what: str, way_out: str) -> MusicGenError:
    return ModelUnavailable(
        f"{what}: {repo} could not be stored.",
        hint=f"{way_out}, or point HF_HOME to another folder, then ask again.",
        field="model",
        retry_after=RETRY_AFTER,
    )
