"""A language model as two programs of ONNX Runtime: a prompt's keys and values, and one position of all clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from musicgen_bento.engine.onnx_graph import CONTRIB, Dims, Graph, Program
from musicgen_bento.engine.product import Dense, Product
from musicgen_bento.engine.weights import CrossAttention, Layer, LMShape, LMWeights
from musicgen_bento.precision import Precision, Size


@dataclass(frozen=True, slots=True)
class CompiledWeights:
    """See `LMWeights`. The matrices are in the programs alone.

    Attributes:
        prompt: text [L, dim] → `keys_values_I` [L, 2 dim] of each layer I; None where the text is prepended.
        step: see `_step`.
    """

    shape: LMShape
    precision: Precision
    size: Size
    embeddings: Tensor  # [K, card + 1, dim]
    text_weight: Tensor  # [dim, text dim]
    text_bias: Tensor  # [dim]
    prompt: Program | None
    step: Program

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.embeddings.device


def compiled(weights: LMWeights, threads: int, profile_to: Path | None = None) -> CompiledWeights:
    """Programs of a model, in its precision.

    Args:
        weights: with matrices as the file has them.
        threads: how many cores a run may use.
        profile_to: a folder for the profile of the steps, see `Program.operators`.
    """
    int8 = weights.precision.matrices == torch.int8
    crosses = [layer.cross for layer in weights.layers if layer.cross is not None]
    return CompiledWeights(
        shape=weights.shape,
        precision=weights.precision,
        size=weights.size,
        embeddings=weights.embeddings,
        text_weight=weights.text_weight,
        text_bias=weights.text_bias,
        prompt=_prompt(weights.shape, crosses, int8).program(threads) if crosses else None,
        step=_step(weights, int8).program(threads, profile_to),
    )


def own_names(layers: int) -> Iterator[tuple[str, str]]:
    """Of the keys and the values of each layer's self-attention."""
    return ((f"own_keys_{i}", f"own_values_{i}") for i in range(layers))


def prompt_names(layers: int) -> Iterator[tuple[str, str]]:
    """Of the keys and the values of each layer's cross-attention."""
    return ((f"prompt_keys_{i}", f"prompt_values_{i}") for i in range(layers))


def _prompt(shape: LMShape, crosses: list[CrossAttention], int8: bool) -> Graph:
    graph = Graph()
    text = graph.input("text", torch.float32, ["L", shape.dim])
    for index, cross in enumerate(crosses):
        made = graph.times(text, _stored(cross.key_value), int8=int8)
        graph.output(f"keys_values_{index}", made, ["L", 2 * shape.dim])
    return graph


def _step(weights: LMWeights, int8: bool) -> Graph:
    """The next T positions of R rows, [R, T, dim] → logits [R, T, K * card].

    Its inputs are `x`, with the positions' embeddings; `last` [R], each row's last position; `total`, the positions of
    the row that has most; the caches [R, H, P, D], which are outputs too; and, with cross-attention, `hears` [B], the
    rows that hear a prompt, the prompts' keys and values [B, H, L, D], and `beyond` [B, 1, T, L], -inf where there is
    no prompt any more.

    In int8 the rows of the heads and of the feed-forward are multiplied with what their rounding leaves over: there it
    makes the most difference (docs/performance.md).
    """
    shape, graph = weights.shape, Graph()
    x = graph.input("x", torch.float32, ["R", "T", shape.dim])
    graph.input("last", torch.int32, ["R"])
    graph.input("total", torch.int32, [])
    hears = ""
    if shape.text == "cross":
        hears = graph.input("hears", torch.int64, ["B"])
        hears = graph.op("Unsqueeze", hears, graph.constant(torch.tensor([1])))
        graph.input("beyond", torch.float32, ["B", 1, "T", "L"])
    names = zip(weights.layers, own_names(shape.layers), prompt_names(shape.layers), strict=True)
    for layer, own, prompt in names:
        x = graph.op("Add", x, _own(graph, shape, layer, x, own, int8))
        if layer.cross is not None:
            x = _heard(graph, shape, layer.cross, x, hears, prompt, int8)
        wide = graph.times(graph.norm(x, layer.norm2), _stored(layer.linear1), int8=int8, fine=True)
        narrow = graph.times(graph.op("Gelu", wide, domain=CONTRIB), _stored(layer.linear2), int8=int8, fine=True)
        x = graph.op("Add", x, narrow)
    logits = graph.times(graph.norm(x, weights.out_norm), _stored(weights.heads), int8=int8, fine=True)
    graph.output("logits", logits, ["R", "T", shape.codebooks * shape.card])
    return graph


def _own(graph: Graph, shape: LMShape, layer: Layer, x: str, names: tuple[str, str], int8: bool) -> str:
    """What rows find in their own past, which grows by them in place."""
    size: Dims = ["R", shape.heads, "P", shape.head_dim]
    for name in names:
        graph.input(name, torch.float32, size)
    packed = graph.times(graph.norm(x, layer.norm1), _stored(layer.query_key_value), int8=int8)
    found, *caches = graph.node(
        "GroupQueryAttention",
        [packed, "", "", *names, "last", "total"],
        3,
        CONTRIB,
        num_heads=shape.heads,
        kv_num_heads=shape.heads,
    )
    for name, cache in zip(names, caches, strict=True):
        graph.output(name, cache, size)
    return graph.times(found, _stored(layer.out), int8=int8)


def _heard(
    graph: Graph, shape: LMShape, cross: CrossAttention, x: str, hears: str, names: tuple[str, str], int8: bool
) -> str:
    """All rows, those that hear a prompt with what they find in it."""
    for name in names:
        graph.input(name, torch.float32, ["B", shape.heads, "L", shape.head_dim])
    hearing = graph.op("Gather", x, "hears", axis=0)
    query = graph.times(graph.norm(hearing, cross.norm), _stored(cross.query), int8=int8)
    found = graph.op("MultiHeadAttention", query, *names, "", "", "beyond", domain=CONTRIB, num_heads=shape.heads)
    return graph.op("ScatterND", x, hears, graph.times(found, _stored(cross.out), int8=int8), reduction="add")


def _stored(product: Product) -> Tensor:
    """The matrix [out, in], as the file has it."""
    assert isinstance(product, Dense)
    return product.weight
