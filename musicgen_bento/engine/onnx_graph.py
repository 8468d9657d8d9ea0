"""ONNX graphs written operator by operator, and run by ONNX Runtime over torch's memory.

ONNX Runtime has what a CPU's step is made of as single operators, such as attention over a cache that grows in place. A
step is then one call, in place of a thousand of torch's operators.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from musicgen_bento.engine.weights import Norm

CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
SMALL = 64  # numbers; a constant smaller than this is a part of the graph
_KINDS: dict[torch.dtype, tuple[int, type]] = {
    torch.float32: (TensorProto.FLOAT, np.float32),
    torch.int8: (TensorProto.INT8, np.int8),
    torch.uint8: (TensorProto.UINT8, np.uint8),
    torch.int32: (TensorProto.INT32, np.int32),
    torch.int64: (TensorProto.INT64, np.int64),
}
Dims: TypeAlias = Sequence[int | str]


class Graph:
    """A graph in the making. Values are names; sizes are numbers, or names for what is known when it runs."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._given: dict[str, str] = {}
        self._small: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._named = 0

    def input(self, name: str, dtype: torch.dtype, size: Dims) -> str:
        """Something that is given to each run."""
        self._inputs.append(helper.make_tensor_value_info(name, _KINDS[dtype][0], size))
        return name

    def output(self, name: str, value: str, size: Dims, dtype: torch.dtype = torch.float32) -> None:
        """What a run gives, under a name."""
        self._outputs.append(helper.make_tensor_value_info(value, _KINDS[dtype][0], size))
        self._given[name] = value

    def constant(self, value: Tensor) -> str:
        """A tensor that stays as it is."""
        name, array = self._fresh(), value.detach().contiguous().numpy()
        if value.numel() < SMALL:
            self._small.append(numpy_helper.from_array(array, name))
        else:
            self._constants[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        return name

    def number(self, value: float) -> str:
        """A float32 that stays as it is."""
        return self.constant(torch.tensor(value))

    def node(self, kind: str, inputs: Sequence[str], outputs: int, domain: str = "", **settings: Any) -> list[str]:
        """An operator and its outputs; empty names are inputs left out."""
        names = [self._fresh() for _ in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **settings))
        return names

    def op(self, kind: str, *inputs: str, domain: str = "", **settings: Any) -> str:
        """An operator with one output."""
        return self.node(kind, inputs, 1, domain, **settings)[0]

    def norm(self, x: str, norm: Norm) -> str:
        """A layer norm over the last dimension."""
        weight, bias = self.constant(norm.weight), self.constant(norm.bias)
        return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=1e-5)

    def program(self, threads: int, profile_to: Path | None = None) -> Program:
        """What runs it.

        Args:
            threads: how many cores a run may use.
            profile_to: a folder, for `Program.operators`.
        """
        # a graph itself holds 2 GB at most, so that all but its own sizes is handed over beside it
        places = self._small + [_elsewhere(name, value) for name, value in self._constants.items()]
        graph = helper.make_graph(self._nodes, "graph", self._inputs, self._outputs, places)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False  # it keeps what the longest prompt took
        options.add_session_config_entry("session.force_spinning_stop", "1")  # between runs the cores are the codec's
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # what is rounded is meant to be
        options.log_severity_level = 3
        if profile_to is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile_to / "step")
        options.add_external_initializers(list(self._constants), list(self._constants.values()))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Program(session, self._given)

    def _fresh(self) -> str:
        self._named += 1
        return f"value_{self._named}"


class Program:
    """A graph that can be run."""

    def __init__(self, session: Any, given: dict[str, str]) -> None:
        self._session, self._given = session, given

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Run:
        """Over these tensors, which must stay where they are; outputs are written into theirs.

        An output may be the tensor of an input, where the operator writes in place.
        """
        binding = self._session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_input(name, *_place(tensor))
        for name, tensor in outputs.items():
            binding.bind_output(self._given[name], *_place(tensor))
        return Run(self._session, binding, (dict(inputs), dict(outputs)))

    def operators(self, runs: int) -> list[tuple[str, int, float]]:
        """Each kind, its calls and its milliseconds in the last runs. Of a program that profiles; once."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        spent: dict[tuple[str, str], list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                spent.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1000)
        found: dict[str, tuple[int, float]] = {}
        for (kind, _), each in spent.items():
            calls, ms = found.get(kind, (0, 0.0))
            found[kind] = calls + len(each[-runs:]), ms + sum(each[-runs:])
        return [(kind, *both) for kind, both in found.items()]


class Run:
    """A program over tensors; each call reads them as they are then."""

    def __init__(self, session: Any, binding: Any, kept: object) -> None:
        self._session, self._binding, self._kept = session, binding, kept

    def __call__(self) -> None:
        """Run it."""
        self._session.run_with_iobinding(self._binding)


def _place(tensor: Tensor) -> tuple[str, int, type, list[int], int]:
    """Device, its number, dtype, size and address."""
    return "cpu", 0, _KINDS[tensor.dtype][1], list(tensor.shape), tensor.data_ptr()


def _elsewhere(name: str, value: Any) -> Any:
    """The declaration of a constant that is handed over beside the graph."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.numpy().dtype)
    place = TensorProto(name=name, data_type=kind, dims=value.shape(), data_location=TensorProto.EXTERNAL)
    place.external_data.add(key="location", value="beside")
    return place
