"""The CUDA graphs of one decoder: captured at first use, replayed afterwards, discarded all at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from musicgen_bento.log import exception_location, logger

MAX_GRAPHS = 64  # of one decoder; each graph keeps the scratch memory of its kernels

_capture_lock = threading.Lock()  # torch captures one graph in a process at a time


class CudaGraphCache:
    """The CUDA graphs of one decoder by key. All methods are called from one thread.

    Args:
        device: A GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Captures have a stream of their own: the pool of the graphs also holds what libraries keep for their stream.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._eager = False
        self.clear()

    def clear(self) -> None:
        """Discard all graphs, before the tensors that they read or write move."""
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        # torch cannot always capture into a pool again after its graphs are gone (pytorch#175276).
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, key: Hashable, work: Callable[[], Tensor]) -> Tensor:
        """Run `work`, by replaying its graph if one was captured for the key.

        Args:
            key: two calls with equal keys run the same operations on the same addresses.
            work: reads and writes only tensors whose addresses stay.

        Returns:
            The result of `work`.
        """
        with torch.cuda.device(self._device):
            if self._eager:
                return work()
            if key not in self._graphs:
                if len(self._graphs) == MAX_GRAPHS:
                    self.clear()
                result = work()  # before the capture, so that libraries allocate their memory outside of it
                try:
                    self._graphs[key] = self._capture(work)
                except RuntimeError as error:
                    # A failed capture may leave the allocator unusable for another one.
                    logger.warning(
                        "A CUDA graph cannot be captured, so steps are slower from now on: %s",
                        exception_location(error),
                    )
                    self._eager = True
                    self._graphs.clear()
                return result
            graph, result = self._graphs[key]
            graph.replay()
            return result

    def _capture(self, work: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # The outer stream block returns the thread to its stream if the inner block fails. Other threads may allocate
        # during the capture, for example to load a model.
        with _capture_lock, torch.cuda.stream(torch.cuda.current_stream()):
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = work()
        return graph, result
