"""CUDA graphs of one decoder: captured when they are first needed, replayed after that, forgotten all at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from musicgen_bento.log import exception_location, logger

MAX_GRAPHS = 64  # graphs of one decoder: each keeps what its kernels work in

_capturing = threading.Lock()  # torch captures one graph in a process at a time


class CudaGraphCache:
    """The graphs of one decoder, which is one thread's.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Its own: what libraries keep for a stream lies in the pool of the graphs captured on it.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._eager = False
        self.clear()

    def clear(self) -> None:
        """Forget all: what they have seen is about to move."""
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        # A pool whose graphs are all gone cannot always be captured into again (pytorch#175276).
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, kind: Hashable, work: Callable[[], Tensor]) -> Tensor:
        """What `work` gives, which reads and writes tensors that stay; replayed where this kind has been captured."""
        with torch.cuda.device(self._device):
            if self._eager:
                return work()
            if kind not in self._graphs:
                if len(self._graphs) == MAX_GRAPHS:
                    self.clear()
                drawn = work()  # libraries take what they need before the capture
                try:
                    self._graphs[kind] = self._captured(work)
                except RuntimeError as error:
                    # A capture that failed may leave the allocator unfit for another.
                    logger.warning(
                        "No CUDA graph could be captured; steps are slower from now on: %s", exception_location(error)
                    )
                    self._eager = True
                    self._graphs.clear()
                return drawn
            graph, drawn = self._graphs[kind]
            graph.replay()
            return drawn

    def _captured(self, work: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # The outer block brings the thread back to its stream where the inner one fails. Other threads may allocate
        # meanwhile, as one does that loads a model.
        with _capturing, torch.cuda.stream(torch.cuda.current_stream()):
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                drawn = work()
        return graph, drawn
