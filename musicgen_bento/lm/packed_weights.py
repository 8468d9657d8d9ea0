"""The weights of the language model as the C kernel reads them: matrices packed in int8 or float32."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Array
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from musicgen_bento.lm.linear import DenseLinear, Linear
from musicgen_bento.lm.weights import (
    LayerNorm,
    LayerWeights,
    LMShape,
    LMWeights,
    sinusoidal_embeddings,
    wavelengths,
)
from musicgen_bento.model_catalog import MAX_PROMPT_TOKENS
from musicgen_bento.native import bindings
from musicgen_bento.native.bindings import K_BLOCK, LANES, round_up
from musicgen_bento.native.mmap_tensor import MmapTensor
from musicgen_bento.precision import ModelSize, Precision

CHUNK_ELEMENTS = 2**20  # elements of a matrix that are converted to float32 and packed at a time


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """The weights of the language model, packed for the C kernel; see `LMWeights` for the fields not listed here.

    Attributes:
        model: the C structure, which points to the packed matrices.
        pos_embeddings: embeddings of the positions of a window, [positions, dim].
        keepalive: the objects that own the memory that `model` points to.
    """

    shape: LMShape
    precision: Precision
    size: ModelSize
    embeddings: Tensor  # [K, codebook_size + 1, dim]
    text_weight: Tensor  # [dim, text dim]
    text_bias: Tensor  # [dim]
    model: bindings.Model
    pos_embeddings: Tensor
    keepalive: tuple[Any, ...]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embeddings.device


def is_supported(shape: LMShape) -> bool:
    """Whether the kernel supports a model of this shape; it supports all released ones."""
    is_aligned = shape.dim % LANES == shape.hidden % LANES == shape.head_dim % LANES == 0
    return is_aligned and shape.head_dim <= bindings.MAX_HEAD_DIM and bindings.available()


def pack_weights(weights: LMWeights, release_pages: Callable[[], None] = lambda: None) -> PackedWeights:
    """Pack the matrices of a model.

    Args:
        weights: the weights, with matrices as in the file.
        release_pages: called after each layer; it releases the pages of the file that were read so far.
    """
    shape, packer = weights.shape, _Packer(weights)
    layers: Array[bindings.Layer] = (bindings.Layer * shape.layers)()
    for index, layer in enumerate(weights.layers):
        layers[index] = _pack_layer(layer, packer)
        release_pages()
    embeddings = weights.embeddings.float().contiguous()
    prefix = MAX_PROMPT_TOKENS if shape.text_conditioning == "prepend" else 0
    positions = prefix + shape.pattern.last_position(shape.window) + 1
    pos_embeddings = sinusoidal_embeddings(torch.arange(positions), wavelengths(shape.dim, embeddings.device))
    model = bindings.Model(
        dim=shape.dim,
        hidden=shape.hidden,
        heads=shape.heads,
        num_layers=shape.layers,
        layers=layers,
        out_norm=packer.pack_norm(weights.out_norm),
        logits=packer.pack(weights.output_heads),
        codebooks=shape.codebooks,
        codebook_size=shape.codebook_size,
        embeddings=embeddings.data_ptr(),
        pos_embeddings=pos_embeddings.data_ptr(),
    )
    release_pages()
    return PackedWeights(
        shape=shape,
        precision=weights.precision,
        size=weights.size,
        embeddings=embeddings,
        text_weight=weights.text_weight,
        text_bias=weights.text_bias,
        model=model,
        pos_embeddings=pos_embeddings,
        keepalive=(layers, *packer.keepalive),
    )


def _pack_layer(layer: LayerWeights, packer: _Packer) -> bindings.Layer:
    """Pack the matrices of a layer, in the order in which a step reads them."""
    packed = bindings.Layer(
        norm1=packer.pack_norm(layer.norm1),
        query_key_value=packer.pack(layer.query_key_value),
        out=packer.pack(layer.out),
    )
    if (cross := layer.cross) is not None:
        packed.norm_cross = packer.pack_norm(cross.norm)
        packed.query = packer.pack(cross.query)
        packed.out_cross = packer.pack(cross.out)
        packed.key_value = packer.pack(cross.key_value)  # after the others: a step does not read it
    packed.norm2 = packer.pack_norm(layer.norm2)
    packed.linear1 = packer.pack(layer.linear1)
    packed.linear2 = packer.pack(layer.linear2)
    return packed


class _Packer:
    """Packs matrices side by side into memory of huge pages, which a processor reads faster.

    Attributes:
        keepalive: the objects that own the packed matrices, scales and norms.
    """

    def __init__(self, weights: LMWeights) -> None:
        self._threads = bindings.ThreadPool(torch.get_num_threads())
        self._is_int8 = weights.precision.weight_dtype == torch.int8
        num_bytes = sum(self._packed_bytes(linear) for linear in _linear_layers(weights))
        pages = MmapTensor(num_bytes, dtype=torch.uint8, huge=True)
        self._next_address = pages.tensor.data_ptr()
        # One buffer for all matrices: memory that the C library gets back of a large tensor seldom fits the next one.
        self._chunk = torch.empty(max(CHUNK_ELEMENTS, LANES * max(weights.shape.dim, weights.shape.hidden)))
        self.keepalive: list[Any] = [pages]

    def pack_norm(self, norm: LayerNorm) -> bindings.Norm:
        """Convert a layer norm to float32."""
        weight, bias = norm.weight.float().contiguous(), norm.bias.float().contiguous()
        self.keepalive += (weight, bias)
        return bindings.Norm(weight.data_ptr(), bias.data_ptr())

    def pack(self, linear: Linear) -> bindings.Matrix:
        """Pack the matrix of a linear layer after the previous one, chunk by chunk."""
        assert isinstance(linear, DenseLinear)
        matrix, begin = linear.weight, self._next_address
        outputs, width = matrix.shape
        inputs, scales = self._packed_inputs(width), torch.zeros(round_up(outputs, LANES))
        step = max(1, CHUNK_ELEMENTS // width // LANES) * LANES
        for first in range(0, outputs, step):
            rows = matrix[first : first + step]
            self._chunk[: rows.numel()].view(rows.shape).copy_(rows)
            address = begin + first * inputs * self._bytes_per_weight
            scales_address = scales[first:].data_ptr() if self._is_int8 else None
            bindings.library().pack_matrix(
                self._threads.handle, self._chunk.data_ptr(), len(rows), width, inputs, address, scales_address
            )
        self.keepalive.append(scales)
        self._next_address += self._packed_bytes(linear)
        return bindings.Matrix(begin, scales.data_ptr() if self._is_int8 else None, len(scales), inputs)

    @property
    def _bytes_per_weight(self) -> int:
        return 1 if self._is_int8 else 4

    def _packed_inputs(self, width: int) -> int:
        return round_up(width, K_BLOCK) if self._is_int8 else width

    def _packed_bytes(self, linear: Linear) -> int:
        width = linear.num_params // linear.out_features
        return round_up(linear.out_features, LANES) * self._packed_inputs(width) * self._bytes_per_weight


def _linear_layers(weights: LMWeights) -> list[Linear]:
    """All linear layers of a model."""
    linear_layers = [weights.output_heads]
    for layer in weights.layers:
        linear_layers += [layer.query_key_value, layer.out, layer.linear1, layer.linear2]
        if layer.cross is not None:
            linear_layers += [layer.cross.query, layer.cross.key_value, layer.cross.out]
    return linear_layers
