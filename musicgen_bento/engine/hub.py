"""Where a model's files come from: a folder, the hub's cache, or the hub. What goes wrong there, in plain words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from musicgen_bento.errors import BrokenCheckpoint, ModelUnavailable, MusicGenError, UnknownModel

RETRY_AFTER = 30.0


def cache_folder() -> str | None:
    """AudioCraft's own variable for the cache, where it is set; None means the hub's (HF_HOME)."""
    return os.environ.get("AUDIOCRAFT_CACHE_DIR")


def is_cached(repo: str, filename: str) -> bool:
    """Whether the hub's cache has this file, with no look at the network."""
    return isinstance(try_to_load_from_cache(repo, filename, cache_dir=cache_folder()), str)


def fetch(source: str, filename: str) -> Path:
    """One file of a model.

    Args:
        source: a folder, or a repository on the hub; the cache is asked first.
        filename: such as `state_dict.bin`.

    Raises:
        BrokenCheckpoint: the folder or repository has no such file.
        UnknownModel: the hub has no such repository.
        ModelUnavailable: the hub cannot be reached, or the disk is full.
    """
    if Path(source).is_dir():
        path = Path(source, filename)
        if not path.is_file():
            raise BrokenCheckpoint(f"There is no {filename} in {source}.", hint=_FILES, field="model")
        return path
    with _plain_words(source, filename):
        return Path(hf_hub_download(source, filename, cache_dir=cache_folder()))


def fetch_folder(source: str, patterns: list[str]) -> Path:
    """A folder with the files of a repository that match; a folder is taken as it is. Raises as `fetch`."""
    if Path(source).is_dir():
        return Path(source)
    with _plain_words(source, patterns[0]):
        folder = Path(snapshot_download(source, allow_patterns=patterns, cache_dir=cache_folder()))
    if not all(any(folder.glob(pattern)) for pattern in patterns[:2]):
        # offline, snapshot_download is content with whatever part of the repository is there
        raise _unreachable(source, f"{patterns[0]} and {patterns[1]}")
    return folder


_FILES = "A MusicGen in AudioCraft's format holds state_dict.bin and compression_state_dict.bin."


@contextmanager
def _plain_words(repo: str, filename: str) -> Iterator[None]:
    """Turn what the hub's client raises into this project's errors."""
    try:
        yield
    except GatedRepoError as error:
        raise ModelUnavailable(
            f"{repo} is closed to strangers.", hint="Set HF_TOKEN to a token that may read it.", field="model"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownModel(
            f"The hub has no model named {repo}.", hint="`musicgen-bento models` lists the known ones.", field="model"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        # a subclass of EntryNotFoundError: not in the cache, and the hub did not answer
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOSPC:
            raise _disk_full(repo) from error
        raise _unreachable(repo, filename) from error
    except EntryNotFoundError as error:
        raise BrokenCheckpoint(f"{repo} has no file {filename} on the hub.", hint=_FILES, field="model") from error
    except HfHubHTTPError as error:
        raise _unreachable(repo, filename) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(repo) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ModelUnavailable(
                f"The cache for {repo} cannot be written.",
                hint="Point HF_HOME to a folder that this user may write.",
                field="model",
                retry_after=RETRY_AFTER,
            ) from error
        raise _unreachable(repo, filename) from error


def _unreachable(repo: str, filename: str) -> MusicGenError:
    return ModelUnavailable(
        f"{filename} of {repo} is not in the cache, and the hub cannot be reached.",
        hint="Connect this machine to the hub once, or point HF_HOME to a cache that holds the model; "
        "the built-in model `demo` needs neither.",
        field="model",
        retry_after=RETRY_AFTER,
    )


def _disk_full(repo: str) -> MusicGenError:
    return ModelUnavailable(
        f"The disk is full: {repo} could not be stored.",
        hint="Free some space or point HF_HOME to a larger disk, then ask again.",
        field="model",
        retry_after=RETRY_AFTER,
    )
