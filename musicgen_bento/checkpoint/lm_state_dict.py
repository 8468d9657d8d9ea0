"""The language model out of AudioCraft's released format: configuration checked, tensors taken by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from musicgen_bento.checkpoint.source import Source
from musicgen_bento.errors import InvalidRequest
from musicgen_bento.lm.delay_pattern import DelayPattern
from musicgen_bento.lm.linear import Linear, make_linear
from musicgen_bento.lm.weights import CrossAttentionWeights, LayerNorm, LayerWeights, LMShape, LMWeights
from musicgen_bento.precision import Precision

# Every released MusicGen's; the codec must have the same.
FRAME_RATE = 50


def read_shape(source: Source, config: Any) -> LMShape:
    """The sizes, after making sure that the model is built as every released MusicGen is."""
    lm = config.transformer_lm
    conditioners = set(config.get("conditioners") or {}) - {"args"}
    if conditioners - {"description"}:
        raise InvalidRequest(
            f"{source.name} listens to a melody, which this version does not serve yet.",
            hint="Take a model that is conditioned on text alone, such as facebook/musicgen-medium.",
            field="model",
        )
    fuser, delay = config.fuser, config.codebooks_pattern.delay
    description = config.conditioners.description
    text = "cross" if "description" in fuser.cross else "prepend" if "description" in fuser.prepend else ""
    # What is left out of a configuration is what AudioCraft's classes have as their default.
    expected = {
        "lm_model": (config.lm_model, "transformer_lm"),
        "conditioners": (conditioners, {"description"}),
        "conditioners.description.model": (description.model, "t5"),
        "conditioners.description.t5.normalize_text": (description.t5.get("normalize_text", False), False),
        "fuser": (bool(text) and not fuser.get("sum") and not fuser.get("input_interpolate"), True),
        "fuser.cross_attention_pos_emb": (fuser.get("cross_attention_pos_emb", False), False),
        "codebooks_pattern": (config.codebooks_pattern.modeling, "delay"),
        "codebooks_pattern.delay.flatten_first": (delay.get("flatten_first", 0), 0),
        "codebooks_pattern.delay.empty_initial": (delay.get("empty_initial", 0), 0),
        "transformer_lm.activation": (lm.get("activation", "relu"), "gelu"),
        "transformer_lm.norm": (lm.get("norm", "layer_norm"), "layer_norm"),
        "transformer_lm.norm_first": (lm.get("norm_first", False), True),
        "transformer_lm.positional_embedding": (lm.get("positional_embedding", "sin"), "sin"),
        "transformer_lm.positional_scale": (lm.get("positional_scale", 1), 1),
        "transformer_lm.max_period": (lm.get("max_period", 10_000), 10_000),
        "transformer_lm.qk_layer_norm": (lm.get("qk_layer_norm", False), False),
        "transformer_lm.qk_layer_norm_cross": (lm.get("qk_layer_norm_cross", False), False),
        "transformer_lm.kv_repeat": (lm.get("kv_repeat", 1), 1),
        "transformer_lm.past_context": (lm.get("past_context"), None),
        "transformer_lm.layer_scale": (lm.get("layer_scale"), None),
        **{f"transformer_lm.{bias}": (lm.get(bias, True), False) for bias in ("bias_ff", "bias_attn", "bias_proj")},
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise source.checkpoint_error("state_dict.bin", f"has another {key} than every released MusicGen")
    shape = LMShape(
        dim=int(lm.dim),
        hidden=int(lm.get("hidden_scale", 4) * lm.dim),
        heads=int(lm.num_heads),
        layers=int(lm.num_layers),
        codebook_size=int(lm.card),
        pattern=DelayPattern(tuple(int(delay) for delay in delay.get("delays") or range(lm.n_q))),
        window=int(config.dataset.segment_duration * FRAME_RATE),
        text_conditioning=text,
    )
    delays = shape.pattern.delays
    if (
        min(shape.dim, shape.heads, shape.layers, shape.codebook_size) < 1
        or shape.dim % (2 * shape.heads)
        or shape.window < 2
        or len(delays) != lm.n_q
        or delays[0] != 0
        or list(delays) != sorted(delays)
    ):
        raise source.checkpoint_error("state_dict.bin", "has a configuration (xp.cfg) whose sizes do not go together")
    return shape


class _Tensors:
    """The tensors of a file by name, each taken once, in the precision and on the device wanted."""

    def __init__(self, source: Source, state: dict[str, Tensor], device: torch.device, precision: Precision) -> None:
        self._source, self._state = source, dict(state)
        self._device, self._precision = device, precision

    def matrix(self, name: str, outputs: int, inputs: int) -> Linear:
        return self.product(self.raw(name, outputs, inputs))

    def product(self, weight: Tensor) -> Linear:
        return make_linear(weight.to(self._device), self._precision)

    def take(self, name: str, *size: int) -> Tensor:
        return self.raw(name, *size).to(self._device, self._precision.compute_dtype)

    def raw(self, name: str, *size: int) -> Tensor:
        tensor = self._state.pop(name, None)
        if tensor is None:
            raise self._source.checkpoint_error("state_dict.bin", f"has no tensor {name}")
        if tuple(tensor.shape) != size:
            raise self._source.checkpoint_error(
                "state_dict.bin", f"has {name} of size {list(tensor.shape)}, not {list(size)}"
            )
        return tensor

    def norm(self, name: str, dim: int) -> LayerNorm:
        return LayerNorm(self.take(f"{name}.weight", dim), self.take(f"{name}.bias", dim))

    def finish(self) -> None:
        for name in self._state:
            raise self._source.checkpoint_error(
                "state_dict.bin", f"has a tensor {name}, which no released MusicGen has"
            )


def read_weights(
    source: Source, shape: LMShape, state: dict[str, Tensor], device: torch.device, precision: Precision
) -> LMWeights:
    """The tensors of `best_state`, each where it belongs; one missing, of another size or left over is an error."""
    tensors = _Tensors(source, state, device, precision)
    dim, codebooks = shape.dim, range(shape.codebooks)
    projection = "condition_provider.conditioners.description.output_proj"
    text_dim = state[f"{projection}.weight"].shape[-1] if f"{projection}.weight" in state else 0
    weights = LMWeights(
        shape=shape,
        precision=precision,
        embeddings=torch.stack([tensors.take(f"emb.{k}.weight", shape.codebook_size + 1, dim) for k in codebooks]),
        layers=tuple(_layer(tensors, f"transformer.layers.{i}", shape) for i in range(shape.layers)),
        out_norm=tensors.norm("out_norm", dim),
        output_heads=tensors.product(
            torch.cat([tensors.raw(f"linears.{k}.weight", shape.codebook_size, dim) for k in codebooks])
        ),
        text_weight=tensors.take(f"{projection}.weight", dim, text_dim),
        text_bias=tensors.take(f"{projection}.bias", dim),
    )
    tensors.finish()
    return weights


def _layer(tensors: _Tensors, name: str, shape: LMShape) -> LayerWeights:
    dim, hidden = shape.dim, shape.hidden
    cross = None
    if shape.text_conditioning == "cross":
        packed = tensors.raw(f"{name}.cross_attention.in_proj_weight", 3 * dim, dim)
        cross = CrossAttentionWeights(
            norm=tensors.norm(f"{name}.norm_cross", dim),
            query=tensors.product(packed[:dim]),
            key_value=tensors.product(packed[dim:]),
            out=tensors.matrix(f"{name}.cross_attention.out_proj.weight", dim, dim),
        )
    return LayerWeights(
        norm1=tensors.norm(f"{name}.norm1", dim),
        query_key_value=tensors.matrix(f"{name}.self_attn.in_proj_weight", 3 * dim, dim),
        out=tensors.matrix(f"{name}.self_attn.out_proj.weight", dim, dim),
        cross=cross,
        norm2=tensors.norm(f"{name}.norm2", dim),
        linear1=tensors.matrix(f"{name}.linear1.weight", hidden, dim),
        linear2=tensors.matrix(f"{name}.linear2.weight", dim, hidden),
    )
