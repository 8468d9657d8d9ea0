"""The songs that are learnt from: rendered once, in shards, on all cores.

A shard is two files, `songs-000.npy` with samples [SHARD, T] as int16 and `songs-000.json` with what each song is.
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

SECONDS = 10.0  # of a song; more than a window, so that windows begin anywhere
SHARD = 100


@lru_cache(maxsize=1)
def order(seed: int) -> tuple[Song, ...]:
    """Every song there is, as the seed shuffles them; which are learnt from are the first."""
    return tuple(SONGS[n] for n in np.random.default_rng(seed).permutation(len(SONGS)))


def _write_shard(folder: Path, seed: int, number: int) -> None:
    songs = list(order(seed)[number * SHARD : (number + 1) * SHARD])
    samples = np.stack([np.round(render(song, SECONDS) * 32_767).astype(np.int16) for song in songs])
    place = folder / f"songs-{number:03}.npy"
    with open(f"{place}.part", "wb") as file:
        np.save(file, samples)
    describe(place.with_suffix(".json"), songs)
    os.replace(f"{place}.part", place)  # last: a shard that is there is whole


def describe(place: Path, songs: list[Song]) -> None:
    """Write what the songs of a shard are."""
    place.write_text(json.dumps([asdict(song) for song in songs]), encoding="utf-8")


def described(place: Path) -> list[Song]:
    """Read it."""
    return [Song(**song) for song in json.loads(place.read_text(encoding="utf-8"))]


def write(folder: Path, songs: int, seed: int, clock: Clock) -> None:
    """Render what is not there yet, every song from its first beat on, as a clip begins.

    Raises:
        ValueError: they are not so many whole shards.
        OutOfTime: the clock ran out; call again.
    """
    if songs % SHARD:
        raise ValueError(f"{songs} songs are not so many times {SHARD}.")
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(songs // SHARD) if not (folder / f"songs-{n:03}.npy").exists()]
    with ProcessPoolExecutor() as pool:
        work = [pool.submit(_write_shard, folder, seed, shard) for shard in missing]
        try:
            for job in tqdm(work, desc=f"rendering, {SHARD} songs each", disable=None):
                job.result()
                clock.check()
        except OutOfTime:
            pool.shutdown(cancel_futures=True)
            raise


class Dataset:
    """All rendered songs: samples [N, T] and what they are.

    The samples are mapped, not read: a window of one song is all that is ever in memory.
    """

    def __init__(self, folder: Path) -> None:
        places = sorted(folder.glob("songs-*.npy"))
        self._shards = [np.load(place, mmap_mode="r") for place in places]
        self.songs = [song for place in places for song in described(place.with_suffix(".json"))]

    def __len__(self) -> int:
        return len(self.songs)

    def shard(self, number: int) -> NDArray[np.int16]:
        """The samples [SHARD, T] of a shard."""
        return np.asarray(self._shards[number])

    def window(self, number: int, begin: int, length: int) -> NDArray[np.float32]:
        """Samples [length] of a song, within ±1."""
        samples = self._shards[number // SHARD][number % SHARD, begin : begin + length]
        return np.asarray(samples, np.float32) / np.float32(32_767)
