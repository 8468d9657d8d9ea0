"""Reads the language model out of AudioCraft's released format: checks the configuration, takes tensors by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from musicgen_bento.checkpoint.source import MODEL_FILES, Source, melody_not_supported
from musicgen_bento.lm.delay_pattern import DelayPattern
from musicgen_bento.lm.linear import Linear, make_linear
from musicgen_bento.lm.weights import CrossAttentionWeights, LayerNorm, LayerWeights, LMShape, LMWeights
from musicgen_bento.model_catalog import FRAME_RATE
from musicgen_bento.precision import Precision

_LM_FILE = MODEL_FILES[0]


def read_shape(source: Source, config: Any) -> LMShape:
    """Return the model's sizes, after a check that its architecture is that of the released models.

    Args:
        source: the model, for error messages.
        config: the configuration (`xp.cfg`).

    Raises:
        InvalidRequest: the model needs a melody.
        InvalidCheckpoint: the architecture differs from the released models', or the sizes contradict each other.
    """
    lm = config.transformer_lm
    conditioners = set(config.get("conditioners") or {}) - {"args"}
    if conditioners - {"description"}:
        raise melody_not_supported(source.name)
    delay = config.codebooks_pattern.delay
    text_conditioning = _text_conditioning(config.fuser)
    for key, (value, expected) in _architecture(config, conditioners, text_conditioning).items():
        if value != expected:
            raise source.checkpoint_error(_LM_FILE, f"differs from every released MusicGen in {key}")
    shape = LMShape(
        dim=int(lm.dim),
        hidden=int(lm.get("hidden_scale", 4) * lm.dim),
        heads=int(lm.num_heads),
        layers=int(lm.num_layers),
        codebook_size=int(lm.card),
        pattern=DelayPattern(tuple(int(frames) for frames in delay.get("delays") or range(lm.n_q))),
        window=int(config.dataset.segment_duration * FRAME_RATE),
        text_conditioning=text_conditioning,
    )
    if not _is_consistent(shape, codebooks=lm.n_q):
        raise source.checkpoint_error(_LM_FILE, "has a configuration (xp.cfg) with contradictory sizes")
    return shape


def _text_conditioning(fuser: Any) -> str:
    """Return how the text conditions the model: `cross`, `prepend`, or an empty string for neither."""
    if "description" in fuser.cross:
        return "cross"
    return "prepend" if "description" in fuser.prepend else ""


def _architecture(config: Any, conditioners: set[str], text_conditioning: str) -> dict[str, tuple[object, object]]:
    """Return the configuration's values that fix the architecture, each with the value of every released MusicGen.

    A missing key has the default of AudioCraft's classes.
    """
    lm, fuser, delay = config.transformer_lm, config.fuser, config.codebooks_pattern.delay
    description = config.conditioners.description
    fuses_text_only = bool(text_conditioning) and not fuser.get("sum") and not fuser.get("input_interpolate")
    return {
        "lm_model": (config.lm_model, "transformer_lm"),
        "conditioners": (conditioners, {"description"}),
        "conditioners.description.model": (description.model, "t5"),
        "conditioners.description.t5.normalize_text": (description.t5.get("normalize_text", False), False),
        "fuser": (fuses_text_only, True),
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


def _is_consistent(shape: LMShape, codebooks: int) -> bool:
    """Return whether all sizes are positive and fit each other; delays must start at 0 and ascend."""
    delays = shape.pattern.delays
    return (
        min(shape.dim, shape.heads, shape.layers, shape.codebook_size) >= 1
        and shape.dim % (2 * shape.heads) == 0
        and shape.window >= 2
        and len(delays) == codebooks
        and delays[0] == 0
        and list(delays) == sorted(delays)
    )


class _StateDictReader:
    """Takes the tensors of a file by name, each once, and converts them to a device and a precision.

    Args:
        source: the model, for error messages.
        state: the tensors by name.
        device: device of the results.
        precision: precision of the results.
    """

    def __init__(self, source: Source, state: dict[str, Tensor], device: torch.device, precision: Precision) -> None:
        self._source, self._remaining = source, dict(state)
        self._device, self._precision = device, precision

    def file_tensor(self, name: str, *size: int) -> Tensor:
        """Take a tensor as it is in the file.

        Raises:
            InvalidCheckpoint: the tensor is missing or has another size.
        """
        tensor = self._remaining.pop(name, None)
        if tensor is None:
            raise self._source.checkpoint_error(_LM_FILE, f"has no tensor {name}")
        if tuple(tensor.shape) != size:
            raise self._source.checkpoint_error(
                _LM_FILE, f"has a tensor {name} of size {list(tensor.shape)} instead of {list(size)}"
            )
        return tensor

    def tensor(self, name: str, *size: int) -> Tensor:
        """Take a tensor that is not a matrix of a linear layer."""
        return self.file_tensor(name, *size).to(self._device, self._precision.compute_dtype)

    def linear(self, name: str, outputs: int, inputs: int) -> Linear:
        """Take the matrix of a linear layer."""
        return self.to_linear(self.file_tensor(name, outputs, inputs))

    def to_linear(self, weight: Tensor) -> Linear:
        """Convert the matrix of a linear layer."""
        return make_linear(weight.to(self._device), self._precision)

    def layer_norm(self, name: str, dim: int) -> LayerNorm:
        """Take the tensors of a layer norm."""
        return LayerNorm(self.tensor(f"{name}.weight", dim), self.tensor(f"{name}.bias", dim))

    def check_all_taken(self) -> None:
        """Check that no tensor is left.

        Raises:
            InvalidCheckpoint: a tensor was not taken.
        """
        for name in self._remaining:
            raise self._source.checkpoint_error(_LM_FILE, f"has a tensor {name}, which no released MusicGen has")


def read_weights(
    source: Source, shape: LMShape, state: dict[str, Tensor], device: torch.device, precision: Precision
) -> LMWeights:
    """Read the language model's weights out of the tensors of `best_state`.

    Args:
        source: the model, for error messages.
        shape: the model's sizes.
        state: the tensors by name.
        device: device of the weights; on the meta device, only names and sizes are checked.
        precision: precision of the weights.

    Raises:
        InvalidCheckpoint: a tensor is missing, has another size, or belongs to no released model.
    """
    reader = _StateDictReader(source, state, device, precision)
    dim, codebooks = shape.dim, range(shape.codebooks)
    projection = "condition_provider.conditioners.description.output_proj"
    text_dim = state[f"{projection}.weight"].shape[-1] if f"{projection}.weight" in state else 0
    weights = LMWeights(
        shape=shape,
        precision=precision,
        embeddings=torch.stack([reader.tensor(f"emb.{k}.weight", shape.codebook_size + 1, dim) for k in codebooks]),
        layers=tuple(_read_layer(reader, f"transformer.layers.{i}", shape) for i in range(shape.layers)),
        out_norm=reader.layer_norm("out_norm", dim),
        output_heads=reader.to_linear(
            torch.cat([reader.file_tensor(f"linears.{k}.weight", shape.codebook_size, dim) for k in codebooks])
        ),
        text_weight=reader.tensor(f"{projection}.weight", dim, text_dim),
        text_bias=reader.tensor(f"{projection}.bias", dim),
    )
    reader.check_all_taken()
    return weights


def _read_layer(reader: _StateDictReader, name: str, shape: LMShape) -> LayerWeights:
    dim, hidden = shape.dim, shape.hidden
    cross = None
    if shape.text_conditioning == "cross":
        in_proj = reader.file_tensor(f"{name}.cross_attention.in_proj_weight", 3 * dim, dim)
        cross = CrossAttentionWeights(
            norm=reader.layer_norm(f"{name}.norm_cross", dim),
            query=reader.to_linear(in_proj[:dim]),
            key_value=reader.to_linear(in_proj[dim:]),
            out=reader.linear(f"{name}.cross_attention.out_proj.weight", dim, dim),
        )
    return LayerWeights(
        norm1=reader.layer_norm(f"{name}.norm1", dim),
        query_key_value=reader.linear(f"{name}.self_attn.in_proj_weight", 3 * dim, dim),
        out=reader.linear(f"{name}.self_attn.out_proj.weight", dim, dim),
        cross=cross,
        norm2=reader.layer_norm(f"{name}.norm2", dim),
        linear1=reader.linear(f"{name}.linear1.weight", hidden, dim),
        linear2=reader.linear(f"{name}.linear2.weight", dim, hidden),
    )
