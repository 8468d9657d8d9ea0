"""Progress of a model's download, as the hub's client reports it to a progress bar."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import ClassVar


class DownloadProgress:
    """Progress of the files that are missing on this machine. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected_bytes: dict[str, int] = {}
        self._received_bytes: dict[str, int] = {}

    def add_expected(self, sizes: Mapping[str, int]) -> None:
        """Add files that will be downloaded, with the size of each in bytes."""
        with self._lock:
            self._expected_bytes.update(sizes)

    @property
    def total_bytes(self) -> int:
        """Size of all expected files."""
        with self._lock:
            return sum(self._expected_bytes.values())

    @property
    def received_bytes(self) -> int:
        """Bytes of the expected files on this machine, including those of an earlier attempt."""
        with self._lock:
            return sum(
                min(received, self._expected_bytes.get(file, received))
                for file, received in self._received_bytes.items()
            )

    def progress_bar_class(self, file: str) -> type[_SilentProgressBar]:
        """Return a progress bar class for the hub's client, which reports the file's progress here."""
        return type("ProgressBar", (_SilentProgressBar,), {"download": self, "file": file})

    def set_received(self, file: str, count: int) -> None:
        """Set the number of received bytes of a file."""
        with self._lock:
            self._received_bytes[file] = count

    def add_received(self, file: str, count: int) -> None:
        """Add to the received bytes of a file; the count is negative if the client starts the file again."""
        with self._lock:
            self._received_bytes[file] = self._received_bytes.get(file, 0) + count


class _SilentProgressBar:
    """The part of tqdm's interface that the hub's client uses. It displays nothing."""

    download: ClassVar[DownloadProgress]
    file: ClassVar[str]

    def __init__(self, *_: object, total: float | None = None, initial: float = 0, **__: object) -> None:
        self.total = total
        if total:
            self.download.add_expected({self.file: int(total)})
        self.download.set_received(self.file, int(initial))

    def __enter__(self) -> _SilentProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def update(self, count: float | None = 1) -> None:
        """Count bytes that were written to the disk."""
        self.download.add_received(self.file, int(count or 0))

    def update_transfer(self, count: float | None = 1) -> None:
        """Ignore received bytes that are not on the disk yet. This method makes the client use one bar for both."""

    def refresh(self, *_: object, **__: object) -> None:
        """Do nothing."""

    set_postfix_str = set_transfer_postfix_str = refresh

    def close(self) -> None:
        """Do nothing."""
