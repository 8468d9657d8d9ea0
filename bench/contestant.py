"""The process of one contestant: `python -m bench.contestant NAME MODEL`.

It loads, says how long that took, and answers questions, a line of JSON each, until standard input ends. What cannot be
answered is answered with the reason; the process goes on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch

from bench import machine
from bench.machine import device
from bench.steps import Contestant, load_ours, measure, synchronize
from musicgen_bento.checkpoint.resolve import resolve_model
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.native import bindings
from musicgen_bento.native.mmap_tensor import MmapTensor
from musicgen_bento.precision import supported_precisions

OURS = ("ours float32", "ours bfloat16", "ours float16", "ours int8")
PEERS = ("audiocraft", "transformers float32", "transformers bfloat16")
BANDWIDTH = "bandwidth"  # no contestant: it reads memory as fast as the machine gives it


def names() -> tuple[str, ...]:
    """The contestants of this machine."""
    here = OURS if device().type == "cpu" else OURS[:-1]  # int8 is a CPU's
    return (*here, *PEERS)


def contestant(name: str, source: Source) -> Contestant:
    """The one of that name, loaded."""
    from bench.peers import AudioCraft, Transformers

    who, _, how = name.partition(" ")
    if who == "ours":
        return load_ours(source, supported_precisions(device())[how], device())
    if who == "audiocraft":
        return AudioCraft(source, device())
    return Transformers(source, getattr(torch, how), device())


def bandwidth() -> float:
    """Bytes a second of reading memory with all threads, the best of a few times: of 1 GB, or of 8 GB of a GPU's."""
    if device().type == "cuda":
        numbers = torch.ones(2**31, device=device())
        read: Callable[[], object] = numbers.sum
    else:
        numbers = MmapTensor(2**28, huge=True).tensor.fill_(1)  # as the matrices lie, and read as they are
        team = bindings.create_thread_pool(torch.get_num_threads())
        read = numbers.sum if team is None else partial(_read, team, numbers)
    found = []
    for _ in range(6):
        synchronize(device())
        began = time.perf_counter()
        read()
        synchronize(device())
        found.append(time.perf_counter() - began)
    return numbers.nbytes / min(found)


def _read(team: bindings.ThreadPool, numbers: torch.Tensor) -> None:
    bindings.library().kernel_read(team.handle, numbers.data_ptr(), numbers.nbytes)


def peak_gb() -> float:
    """Most memory so far: the process's, or on a GPU the tensors'."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return machine.peak_gb()


class Desk:
    """Answers the questions of one process."""

    def __init__(self, name: str, model: str) -> None:
        self._name, self._source = name, resolve_model(model, any_model=True)
        self._contestant = None if name == BANDWIDTH else contestant(name, self._source)

    def steps(self, batch: int, position: int) -> float:
        """Milliseconds of a step, the median of a turn."""
        assert self._contestant is not None
        return median(measure(self._contestant, batch, position))

    def memory(self) -> float:
        """GB, at most so far."""
        return peak_gb()

    def bandwidth(self) -> float:
        """Of memory, bytes a second."""
        return bandwidth()

    def profile(self, position: int) -> dict[str, Any]:
        """Of one step, with a model of its own, T5 and the codec included."""
        from bench.profile import profile

        self._contestant = None
        return profile(
            self._source, supported_precisions(device())[self._name.removeprefix("ours ")], device(), position
        )


def main(name: str, model: str) -> None:
    """Answer until nobody asks."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")  # where memory runs out, it is this one that goes
    desk: list[Desk] = []

    def load() -> float:
        began = time.perf_counter()
        desk.append(Desk(name, model))
        return time.perf_counter() - began

    _answer(replies, load)
    for line in sys.stdin if desk else ():
        asked = json.loads(line)
        _answer(replies, getattr(desk[0], asked.pop("do")), **asked)


def _answer(replies: IO[str], work: Callable[..., Any], **about: Any) -> None:
    try:
        reply = {"is": work(**about)}
    except Exception as error:
        text = " ".join(str(error).split())
        reply = {"error": f"{type(error).__name__}: {text[:120]}"}
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
