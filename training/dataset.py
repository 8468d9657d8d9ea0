"""The training songs, rendered once into shards on all cores.

A shard has two files: `songs-000.npy` with samples [SHARD_SONGS, T] as int16, and `songs-000.json` with the songs.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.loop import Clock, OutOfTime
from training.render import render
from training.songs import SONGS, Song

SECONDS = 10.0  # of a song; more than a window, so that windows can start anywhere
SHARD_SONGS = 100


@lru_cache(maxsize=1)
def shuffled_songs(seed: int) -> tuple[Song, ...]:
    """Return all songs in the order of the seed; the first ones are the training songs."""
    return tuple(SONGS[n] for n in np.random.default_rng(seed).permutation(len(SONGS)))


def _write_shard(folder: Path, seed: int, number: int) -> None:
    songs = list(shuffled_songs(seed)[number * SHARD_SONGS : (number + 1) * SHARD_SONGS])
    samples = np.stack([np.round(render(song, SECONDS) * 32_767).astype(np.int16) for song in songs])
    path = folder / f"songs-{number:03}.npy"
    with open(f"{path}.part", "wb") as file:
        np.save(file, samples)
    write_songs(path.with_suffix(".json"), songs)
    os.replace(f"{path}.part", path)  # last, so that an existing shard is complete


def write_songs(path: Path, songs: list[Song]) -> None:
    """Write the songs of a shard as JSON."""
    path.write_text(json.dumps([asdict(song) for song in songs]), encoding="utf-8")


def read_songs(path: Path) -> list[Song]:
    """Read the songs of a shard."""
    return [Song(**song) for song in json.loads(path.read_text(encoding="utf-8"))]


def write(folder: Path, songs: int, seed: int, clock: Clock) -> None:
    """Render the missing shards. Every song starts at its first beat, as a clip does.

    Raises:
        ValueError: the number of songs is not a multiple of a shard.
        OutOfTime: the time limit is reached; call again.
    """
    if songs % SHARD_SONGS:
        raise ValueError(f"The number of songs, {songs}, is not a multiple of {SHARD_SONGS}.")
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(songs // SHARD_SONGS) if not (folder / f"songs-{n:03}.npy").exists()]
    with ProcessPoolExecutor() as pool:
        work = [pool.submit(_write_shard, folder, seed, shard) for shard in missing]
        try:
            for job in tqdm(work, desc=f"rendering, {SHARD_SONGS} songs each", disable=None):
                job.result()
                clock.check()
        except OutOfTime:
            pool.shutdown(cancel_futures=True)
            raise


class Dataset:
    """All rendered songs and their samples [N, T].

    Samples are memory-mapped, so only a window of one song is in memory at a time.

    Attributes:
        songs: by number.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("songs-*.npy"))
        self._shards = [np.load(path, mmap_mode="r") for path in paths]
        self.songs = [song for path in paths for song in read_songs(path.with_suffix(".json"))]

    def __len__(self) -> int:
        return len(self.songs)

    def shard(self, number: int) -> NDArray[np.int16]:
        """Return the samples [SHARD_SONGS, T] of a shard."""
        return np.asarray(self._shards[number])

    def window(self, number: int, begin: int, length: int) -> NDArray[np.float32]:
        """Return samples [length] of a song, within ±1."""
        samples = self._shards[number // SHARD_SONGS][number % SHARD_SONGS, begin : begin + length]
        return np.asarray(samples, np.float32) / np.float32(32_767)
