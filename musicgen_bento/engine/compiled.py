"""A language model as two programs of ONNX Runtime: a prompt's keys and values, and one position of all clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicgen_bento.engine import integers
from musicgen_bento.engine.integers import LEVELS
from musicgen_bento.engine.onnx_graph import CONTRIB, Dims, Graph, Program
from musicgen_bento.engine.product import Dense, Product
from musicgen_bento.engine.weights import CrossAttention, Layer, LMShape, LMWeights, Norm
from musicgen_bento.precision import Precision, Size


@dataclass(frozen=True, slots=True)
class CompiledWeights:
    """See `LMWeights`. The matrices are in the programs alone.

    Attributes:
        prompt: text [L, 1, dim] → `keys_values_I` [L, 1, 2 dim] of each layer I; None where the text is prepended.
        scales: of the numbers that keys and values hold in 8 bits, by channel; None where they are float32.
        step: see `_step`.
    """

    shape: LMShape
    precision: Precision
    size: Size
    embeddings: Tensor  # [K, card + 1, dim]
    text_weight: Tensor  # [dim, text dim]
    text_bias: Tensor  # [dim]
    prompt: Program | None
    scales: Tensor | None  # [layers, 2, 1, H, 1, D]
    step: Program

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.embeddings.device


def compiled(
    weights: LMWeights, threads: int, forget: Callable[[], None] = lambda: None, profile_to: Path | None = None
) -> CompiledWeights:
    """Programs of a model, in its precision.

    Args:
        weights: with matrices as the file has them.
        threads: how many cores a run may use.
        forget: called again and again, when what was read of the file is not wanted any more.
        profile_to: a folder for the profile of the steps, see `Program.operators`.
    """
    int8 = weights.precision.matrices == torch.int8
    crosses = [layer.cross for layer in weights.layers if layer.cross is not None]
    prompt = _prompt(weights.shape, crosses, int8).program(threads) if crosses else None
    forget()
    scales = _wide_scales(weights) if weights.precision.cache == torch.int8 else None
    return CompiledWeights(
        shape=weights.shape,
        precision=weights.precision,
        size=weights.size,
        embeddings=weights.embeddings,
        text_weight=weights.text_weight,
        text_bias=weights.text_bias,
        prompt=prompt,
        scales=scales,
        step=_step(weights, int8, forget).program(threads, profile_to),
    )


def own_names(layers: int) -> Iterator[tuple[str, str]]:
    """Of the keys and the values of each layer's self-attention."""
    return ((f"own_keys_{i}", f"own_values_{i}") for i in range(layers))


def prompt_names(layers: int) -> Iterator[tuple[str, str]]:
    """Of the keys and the values of each layer's cross-attention."""
    return ((f"prompt_keys_{i}", f"prompt_values_{i}") for i in range(layers))


def scale_name(name: str) -> str:
    """Of what keys or values in 8 bits are multiplied with."""
    return f"{name}_scale"


def _wide_scales(weights: LMWeights) -> Tensor:
    """Scales that every key and value fits in, see `CompiledWeights` and `_farthest`."""
    shape, found = weights.shape, []
    for layer in weights.layers:
        matrix, norm = _stored(layer.query_key_value)[shape.dim :].float(), layer.norm1
        found.append((matrix * norm.weight).norm(dim=1) * shape.dim**0.5 + (matrix @ norm.bias).abs())
    return torch.stack(found).view(shape.layers, 2, 1, shape.heads, 1, shape.head_dim) / LEVELS


def _prompt(shape: LMShape, crosses: list[CrossAttention], int8: bool) -> Graph:
    graph = Graph()
    text = graph.input("text", torch.float32, ["L", 1, shape.dim])
    for index, cross in enumerate(crosses):
        made = _times(graph, text, cross.key_value, int8=int8)
        graph.output(f"keys_values_{index}", made, ["L", 1, 2 * shape.dim])
    return graph


def _step(weights: LMWeights, int8: bool, forget: Callable[[], None]) -> Graph:
    """The next T positions of R rows, [R, T, 1, dim] → logits [R, T, 1, K * card].

    Its inputs are `x`, with the positions' embeddings; `last` [R], each row's last position; `total`, the positions of
    the row that has most; the caches [R, H, P, D], which are outputs too, and in 8 bits their scales [1, H, 1, D];
    and, with cross-attention, `hears` [B], the rows that hear a prompt, the prompts' keys and values [B, H, L, D], and
    `beyond` [B, 1, T, L], -inf where there is no prompt any more.
    """
    shape, graph = weights.shape, Graph()
    x = graph.input("x", torch.float32, ["R", "T", 1, shape.dim])
    graph.input("last", torch.int32, ["R"])
    graph.input("total", torch.int32, [])
    hears = ""
    if shape.text == "cross":
        hears = graph.input("hears", torch.int64, ["B"])
        hears = graph.op("Unsqueeze", hears, graph.constant(torch.tensor([1])))
        graph.input("beyond", torch.float32, ["B", 1, "T", "L"])
    names = zip(weights.layers, own_names(shape.layers), prompt_names(shape.layers), strict=True)
    for layer, own, prompt in names:
        x = graph.op("Add", x, _own(graph, weights, layer, x, own, int8))
        if layer.cross is not None:
            x = _heard(graph, shape, layer.cross, x, hears, prompt, int8)
        wide = graph.op("Gelu", _times(graph, x, layer.linear1, layer.norm2, int8=int8), domain=CONTRIB)
        x = graph.op("Add", x, _times(graph, wide, layer.linear2, int8=int8))
        forget()
    # not as a bounded row: what is not a number, anywhere in the model, is to be seen in the logits
    logits = _times(graph, graph.norm(x, weights.out_norm), weights.heads, int8=int8)
    graph.output("logits", logits, ["R", "T", 1, shape.codebooks * shape.card])
    return graph


def _own(graph: Graph, weights: LMWeights, layer: Layer, x: str, names: tuple[str, str], int8: bool) -> str:
    """What rows find in their own past, which grows by them in place."""
    shape, dtype = weights.shape, weights.precision.cache
    size: Dims = ["R", shape.heads, "P", shape.head_dim]
    for name in names:
        graph.input(name, dtype, size)
    scales: list[str] = []
    how: dict[str, Any] = {}
    if dtype == torch.int8:
        each: Dims = [1, shape.heads, 1, shape.head_dim]
        scales = ["", "", "", "", "", *(graph.input(scale_name(name), torch.float32, each) for name in names)]
        how = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    packed = _rows(graph, _times(graph, x, layer.query_key_value, layer.norm1, int8=int8))
    found, *caches = graph.node(
        "GroupQueryAttention",
        [packed, "", "", *names, "last", "total", *scales],
        3,
        CONTRIB,
        num_heads=shape.heads,
        kv_num_heads=shape.heads,
        **how,
    )
    for name, cache in zip(names, caches, strict=True):
        graph.output(name, cache, size, dtype)
    return _times(graph, _apart(graph, found), layer.out, int8=int8)


def _heard(
    graph: Graph, shape: LMShape, cross: CrossAttention, x: str, hears: str, names: tuple[str, str], int8: bool
) -> str:
    """All rows, those that hear a prompt with what they find in it."""
    for name in names:
        graph.input(name, torch.float32, ["B", shape.heads, "L", shape.head_dim])
    hearing = graph.op("Gather", x, "hears", axis=0)
    query = _rows(graph, _times(graph, hearing, cross.query, cross.norm, int8=int8))
    found = graph.op("MultiHeadAttention", query, *names, "", "", "beyond", domain=CONTRIB, num_heads=shape.heads)
    made = _times(graph, _apart(graph, found), cross.out, int8=int8)
    return graph.op("ScatterND", x, hears, made, reduction="add")


def _rows(graph: Graph, x: str) -> str:
    """[R, T, 1, width] → [R, T, width], as attention has them."""
    return graph.op("Reshape", x, graph.constant(torch.tensor([0, 0, -1])))


def _apart(graph: Graph, x: str) -> str:
    """[R, T, width] → [R, T, 1, width]: each of them a row of its own."""
    return graph.op("Reshape", x, graph.constant(torch.tensor([0, 0, 1, -1])))


def _times(graph: Graph, x: str, product: Product, norm: Norm | None = None, *, int8: bool) -> str:
    """Rows, normed first where there is a norm, with a matrix."""
    matrix = _stored(product)
    if norm is not None:
        x = graph.norm(x, norm)
    if not int8:
        return graph.op("MatMul", x, graph.constant(matrix.float().T))
    return integers.times(graph, x, matrix, None if norm is None else _farthest(norm))


def _farthest(norm: Norm) -> float:
    """What no number of a normed row exceeds: before weight and bias a row is as long as the root of its width."""
    return float((norm.weight.float().abs() * len(norm.weight) ** 0.5 + norm.bias.float().abs()).max())


def _stored(product: Product) -> Tensor:
    """The matrix [out, in], as the file has it."""
    assert isinstance(product, Dense)
    return product.weight
