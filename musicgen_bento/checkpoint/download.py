"""How much of a model's files has come from the hub, as the hub's client counts it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import ClassVar


class DownloadProgress:
    """Bytes of the files that one model lacks. Any thread may read, while others fetch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        self._come: dict[str, int] = {}

    def add_expected(self, sizes: Mapping[str, int]) -> None:
        """Files that will be fetched, and the bytes of each."""
        with self._lock:
            self._sizes.update(sizes)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files that are expected."""
        with self._lock:
            return sum(self._sizes.values())

    @property
    def received_bytes(self) -> int:
        """Bytes of them that are here, those of an earlier attempt included."""
        with self._lock:
            return sum(min(come, self._sizes.get(file, come)) for file, come in self._come.items())

    def progress_bar_class(self, file: str) -> type[_Bar]:
        """What the hub's client takes for the class of its progress bars."""
        return type("Bar", (_Bar,), {"download": self, "file": file})

    def set_received(self, file: str, come: int) -> None:
        """So much of a file is here."""
        with self._lock:
            self._come[file] = come

    def add_received(self, file: str, come: int) -> None:
        """So much more of it; less where the client has to begin again."""
        with self._lock:
            self._come[file] = self._come.get(file, 0) + come


class _Bar:
    """Has what the hub's client uses of tqdm, and shows nothing."""

    download: ClassVar[DownloadProgress]
    file: ClassVar[str]

    def __init__(self, *_: object, total: float | None = None, initial: float = 0, **__: object) -> None:
        self.total = total
        if total:
            self.download.add_expected({self.file: int(total)})
        self.download.set_received(self.file, int(initial))

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def update(self, count: float | None = 1) -> None:
        """Bytes that are on the disk."""
        self.download.add_received(self.file, int(count or 0))

    def update_transfer(self, count: float | None = 1) -> None:
        """Bytes that have come, of which some are not on the disk yet; with this method the client makes one bar."""

    def refresh(self, *_: object, **__: object) -> None:
        """How a bar looks is nobody's business here."""

    set_postfix_str = set_transfer_postfix_str = refresh

    def close(self) -> None:
        """It is over, well or not."""
