"""The language model out of AudioCraft's released format: configuration checked, tensors taken by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from musicgen_bento.engine.delay import DelayPattern
from musicgen_bento.engine.weights import CrossAttention, Layer, LMShape, LMWeights, Norm
from musicgen_bento.errors import BrokenCheckpoint, InvalidRequest, MusicGenError

# Every released MusicGen's; the codec must have the same.
FRAME_RATE = 50


def broken(source: str, filename: str, what: str) -> MusicGenError:
    """What is wrong with a file of a model, and the way out."""
    return BrokenCheckpoint(
        f"{filename} of {source} {what}.",
        hint="Put back the file as it was released; from the hub's cache (HF_HOME) remove it, and it is fetched anew.",
        field="model",
    )


def read_shape(source: str, config: Any) -> LMShape:
    """The sizes, after making sure that the model is built as every released MusicGen is."""
    lm = config.transformer_lm
    conditioners = set(config.get("conditioners") or {}) - {"args"}
    if conditioners - {"description"}:
        raise InvalidRequest(
            f"{source} listens to a melody, which this version does not serve yet.",
            hint="Take a model that is conditioned on text alone, such as facebook/musicgen-medium.",
            field="model",
        )
    fuser = config.fuser
    text = "cross" if "description" in fuser.cross else "prepend" if "description" in fuser.prepend else ""
    delay = config.codebooks_pattern.delay
    expected = {
        "lm_model": (config.lm_model, "transformer_lm"),
        "conditioners": (conditioners, {"description"}),
        "conditioners.description.model": (config.conditioners.description.model, "t5"),
        "conditioners.description.t5.normalize_text": (config.conditioners.description.t5.normalize_text, False),
        "fuser": (bool(text) and not fuser.sum and not fuser.input_interpolate, True),
        "fuser.cross_attention_pos_emb": (fuser.cross_attention_pos_emb, False),
        "codebooks_pattern": (config.codebooks_pattern.modeling, "delay"),
        "codebooks_pattern.delay.flatten_first": (delay.get("flatten_first", 0), 0),
        "codebooks_pattern.delay.empty_initial": (delay.get("empty_initial", 0), 0),
        "transformer_lm.activation": (lm.activation, "gelu"),
        "transformer_lm.norm": (lm.norm, "layer_norm"),
        "transformer_lm.norm_first": (lm.norm_first, True),
        "transformer_lm.positional_embedding": (lm.positional_embedding, "sin"),
        "transformer_lm.positional_scale": (lm.get("positional_scale", 1), 1),
        "transformer_lm.qk_layer_norm": (lm.qk_layer_norm, False),
        "transformer_lm.qk_layer_norm_cross": (lm.qk_layer_norm_cross, False),
        "transformer_lm.kv_repeat": (lm.kv_repeat, 1),
        "transformer_lm.past_context": (lm.past_context, None),
        "transformer_lm.layer_scale": (lm.layer_scale, None),
        "transformer_lm.biases": (lm.bias_ff or lm.bias_attn or lm.bias_proj, False),
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise broken(source, "state_dict.bin", f"has {key} = {found}, which no released MusicGen has")
    return LMShape(
        dim=lm.dim,
        heads=lm.num_heads,
        layers=lm.num_layers,
        card=lm.card,
        pattern=DelayPattern(tuple(delay.delays)),
        window=int(config.dataset.segment_duration * FRAME_RATE),
        text=text,
    )


class _Tensors:
    """The tensors of a file by name, each taken once, in the dtype and on the device wanted."""

    def __init__(self, source: str, state: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self._source, self._state = source, dict(state)
        self._device, self._dtype = device, dtype

    def take(self, name: str, *size: int) -> Tensor:
        tensor = self._state.pop(name, None)
        if tensor is None:
            raise broken(self._source, "state_dict.bin", f"has no tensor {name}")
        if tuple(tensor.shape) != size:
            raise broken(self._source, "state_dict.bin", f"has {name} of size {list(tensor.shape)}, not {list(size)}")
        return tensor.to(self._device, self._dtype)

    def norm(self, name: str, dim: int) -> Norm:
        return Norm(self.take(f"{name}.weight", dim), self.take(f"{name}.bias", dim))

    def finish(self) -> None:
        for name in self._state:
            raise broken(self._source, "state_dict.bin", f"has a tensor {name}, which no released MusicGen has")


def read_weights(
    source: str, shape: LMShape, state: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> LMWeights:
    """The tensors of `best_state`, each where it belongs; one missing, of another size or left over is an error."""
    tensors = _Tensors(source, state, device, dtype)
    dim, codebooks = shape.dim, range(shape.codebooks)
    projection = "condition_provider.conditioners.description.output_proj"
    text_dim = state[f"{projection}.weight"].shape[-1] if f"{projection}.weight" in state else 0
    weights = LMWeights(
        shape=shape,
        embeddings=torch.stack([tensors.take(f"emb.{k}.weight", shape.card + 1, dim) for k in codebooks]),
        layers=tuple(_layer(tensors, f"transformer.layers.{i}", shape) for i in range(shape.layers)),
        out_norm=tensors.norm("out_norm", dim),
        heads=torch.cat([tensors.take(f"linears.{k}.weight", shape.card, dim) for k in codebooks]),
        text_weight=tensors.take(f"{projection}.weight", dim, text_dim),
        text_bias=tensors.take(f"{projection}.bias", dim),
    )
    tensors.finish()
    return weights


def _layer(tensors: _Tensors, name: str, shape: LMShape) -> Layer:
    dim, hidden = shape.dim, 4 * shape.dim
    cross = None
    if shape.text == "cross":
        packed = tensors.take(f"{name}.cross_attention.in_proj_weight", 3 * dim, dim)
        cross = CrossAttention(
            norm=tensors.norm(f"{name}.norm_cross", dim),
            query=packed[:dim],
            key_value=packed[dim:],
            out=tensors.take(f"{name}.cross_attention.out_proj.weight", dim, dim),
        )
    return Layer(
        norm1=tensors.norm(f"{name}.norm1", dim),
        query_key_value=tensors.take(f"{name}.self_attn.in_proj_weight", 3 * dim, dim),
        out=tensors.take(f"{name}.self_attn.out_proj.weight", dim, dim),
        cross=cross,
        norm2=tensors.norm(f"{name}.norm2", dim),
        linear1=tensors.take(f"{name}.linear1.weight", hidden, dim),
        linear2=tensors.take(f"{name}.linear2.weight", dim, hidden),
    )
