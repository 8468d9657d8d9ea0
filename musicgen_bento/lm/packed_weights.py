"""A language model as the kernel multiplies with it: its matrices packed, in bytes or in float32."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Array
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from musicgen_bento.lm.linear import DenseLinear, Linear
from musicgen_bento.lm.weights import (
    MAX_PROMPT_TOKENS,
    LayerNorm,
    LayerWeights,
    LMShape,
    LMWeights,
    sinusoidal_embeddings,
    wavelengths,
)
from musicgen_bento.native import bindings
from musicgen_bento.native.bindings import K_BLOCK, LANES, round_up
from musicgen_bento.native.mmap_tensor import MmapTensor
from musicgen_bento.precision import ModelSize, Precision

AT_ONCE = 2**20  # numbers that are packed at a time


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """See `LMWeights`. The matrices are where the model points to.

    Attributes:
        model: as the kernel has it.
        places: embeddings of the positions of a window, [positions, dim].
        kept: all that it points to.
    """

    shape: LMShape
    precision: Precision
    size: ModelSize
    embeddings: Tensor  # [K, card + 1, dim]
    text_weight: Tensor  # [dim, text dim]
    text_bias: Tensor  # [dim]
    model: bindings.Model
    pos_embeddings: Tensor
    keepalive: tuple[Any, ...]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.embeddings.device


def is_supported(shape: LMShape) -> bool:
    """Whether the kernel has a model of these sizes; of all released ones it has."""
    whole = shape.dim % LANES == shape.hidden % LANES == shape.head_dim % LANES == 0
    return whole and shape.head_dim <= bindings.MAX_HEAD_DIM and bindings.available()


def pack_weights(weights: LMWeights, forget: Callable[[], None] = lambda: None) -> PackedWeights:
    """A model with its matrices packed.

    Args:
        weights: with matrices as the file has them.
        forget: called again and again, when what was read of the file is not wanted any more.
    """
    shape, pack = weights.shape, _Packer(weights)
    layers: Array[bindings.Layer] = (bindings.Layer * shape.layers)()
    for index, layer in enumerate(weights.layers):
        layers[index] = _layer(layer, pack)
        forget()
    embeddings = weights.embeddings.float().contiguous()
    prefix = MAX_PROMPT_TOKENS if shape.text_conditioning == "prepend" else 0
    positions = prefix + shape.pattern.last_position(shape.window) + 1
    places = sinusoidal_embeddings(torch.arange(positions), wavelengths(shape.dim, embeddings.device))
    model = bindings.Model(
        dim=shape.dim,
        hidden=shape.hidden,
        heads=shape.heads,
        num_layers=shape.layers,
        layers=layers,
        out_norm=pack.norm(weights.out_norm),
        logits=pack(weights.output_heads),
        codebooks=shape.codebooks,
        codebook_size=shape.codebook_size,
        embeddings=embeddings.data_ptr(),
        pos_embeddings=places.data_ptr(),
    )
    forget()
    return PackedWeights(
        shape=shape,
        precision=weights.precision,
        size=weights.size,
        embeddings=embeddings,
        text_weight=weights.text_weight,
        text_bias=weights.text_bias,
        model=model,
        pos_embeddings=places,
        keepalive=(layers, *pack.kept),
    )


def _layer(layer: LayerWeights, pack: _Packer) -> bindings.Layer:
    """In the order in which a step reads them."""
    made = bindings.Layer(
        norm1=pack.norm(layer.norm1), query_key_value=pack(layer.query_key_value), out=pack(layer.out)
    )
    if (cross := layer.cross) is not None:
        made.norm_cross = pack.norm(cross.norm)
        made.query, made.out_cross, made.key_value = pack(cross.query), pack(cross.out), pack(cross.key_value)
    made.norm2, made.linear1, made.linear2 = pack.norm(layer.norm2), pack(layer.linear1), pack(layer.linear2)
    return made


class _Packer:
    """Puts matrices side by side into memory of large pages, which a processor reads faster.

    Attributes:
        kept: that memory, scales and norms.
    """

    def __init__(self, weights: LMWeights) -> None:
        self._team = bindings.ThreadPool(torch.get_num_threads())
        self._bytes = weights.precision.weight_dtype == torch.int8
        pages = MmapTensor(sum(map(self._size, _products(weights))), dtype=torch.uint8, huge=True)
        self._next = pages.tensor.data_ptr()
        # one for all: what the C library gets back of a large tensor seldom fits the next one
        self._floats = torch.empty(max(AT_ONCE, LANES * max(weights.shape.dim, weights.shape.hidden)))
        self.kept: list[Any] = [pages]

    def norm(self, norm: LayerNorm) -> bindings.Norm:
        both = norm.weight.float().contiguous(), norm.bias.float().contiguous()
        self.kept += both
        return bindings.Norm(*(each.data_ptr() for each in both))

    def __call__(self, product: Linear) -> bindings.Matrix:
        assert isinstance(product, DenseLinear)
        matrix, begin = product.weight, self._next
        outputs, width = matrix.shape
        inputs, scales = self._inputs(width), torch.zeros(round_up(outputs, LANES))
        step = max(1, AT_ONCE // width // LANES) * LANES
        for first in range(0, outputs, step):
            some = matrix[first : first + step]
            self._floats[: some.numel()].view(some.shape).copy_(some)
            to = begin + first * inputs * self._width
            scale = scales[first:].data_ptr() if self._bytes else None
            bindings.library().pack_matrix(
                self._team.handle, self._floats.data_ptr(), len(some), width, inputs, to, scale
            )
        self.kept.append(scales)
        self._next += self._size(product)
        return bindings.Matrix(begin, scales.data_ptr() if self._bytes else None, len(scales), inputs)

    @property
    def _width(self) -> int:
        return 1 if self._bytes else 4

    def _inputs(self, width: int) -> int:
        return round_up(width, K_BLOCK) if self._bytes else width

    def _size(self, product: Linear) -> int:
        width = product.num_params // product.out_features
        return round_up(product.out_features, LANES) * self._inputs(width) * self._width


def _products(weights: LMWeights) -> list[Linear]:
    found = [weights.output_heads]
    for layer in weights.layers:
        found += [layer.query_key_value, layer.out, layer.linear1, layer.linear2]
        if layer.cross is not None:
            found += [layer.cross.query, layer.cross.key_value, layer.cross.out]
    return found
