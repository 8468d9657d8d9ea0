"""Baselines: the language models of AudioCraft and transformers, with the same weights as this project's.

Each library builds its model and runs it as its own `generate` does: conditional and unconditional rows in one batch,
with its own cache and combination of logits. The work of `generate` around the forward pass is left out, which favours
the baselines. A test checks that all backends compute the same logits for the same tokens.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from bench.models import empty_lm, released_config
from bench.steps import CFG_COEF
from musicgen_bento.checkpoint.lm_state_dict import read_shape
from musicgen_bento.checkpoint.source import Source

PROMPT_PROJECTION = "condition_provider."  # prefix of tensors that no step uses


def _guided(logits: Tensor) -> Tensor:
    """Combine conditional and then unconditional rows, [2B, ...] → [B, ...]."""
    cond, uncond = logits.chunk(2)
    return uncond + (cond - uncond) * CFG_COEF


def _prompt_rows(prompt: Tensor, batch: int) -> Tensor:
    """Return the prompt for conditional rows and zeros for unconditional rows: [L, dim] → [2B, L, dim]."""
    return torch.cat([prompt.expand(batch, -1, -1), torch.zeros_like(prompt).expand(batch, -1, -1)])


class AudioCraft:
    """AudioCraft's `LMModel` in streaming mode; float32 on a CPU, float16 under autocast on a GPU, as in `MusicGen`."""

    def __init__(self, source: Source, device: torch.device) -> None:
        from audiocraft.modules import transformer

        config, state = released_config(source)
        self.shape, self.device = read_shape(source, config), device
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._lm = empty_lm(config)
        weights = {
            name: tensor.to(device, dtype) for name, tensor in state.items() if not name.startswith(PROMPT_PROJECTION)
        }
        self._lm.load_state_dict(weights, assign=True)
        self._lm.eval().requires_grad_(False)
        self._time_axis = transformer._get_attention_time_dimension(True)
        self._dtype = dtype
        self._streaming = ExitStack()

    @torch.inference_mode()
    def begin(self, batch: int, position: int, prompt: Tensor) -> None:
        """Run one position and repeat its keys and values; see `Backend.begin`."""
        rows = _prompt_rows(prompt, batch).to(self._dtype)
        self._conditions = {"description": (rows, torch.ones(rows.shape[:2], device=self.device))}
        self._streaming.enter_context(self._lm.streaming())
        if not position:
            return
        self.step(torch.full((batch, self.shape.codebooks), self.shape.codebook_size, device=self.device))
        state = self._lm.get_streaming_state()
        for name, tensor in state.items():
            if name.endswith(("past_keys", "past_values")):
                sizes = [position if axis == self._time_axis else 1 for axis in range(tensor.dim())]
                state[name] = tensor.repeat(sizes)
            elif name.endswith("offsets"):
                state[name] = tensor + position - 1
        self._lm.set_streaming_state(state)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Run one step: tokens [B, K] → guided logits [B, K, codebook_size]."""
        cuda = self.device.type == "cuda"
        with torch.autocast("cuda", torch.float16) if cuda else nullcontext():
            logits = self._lm(tokens.repeat(2, 1)[..., None], conditions=[], condition_tensors=self._conditions)
        return _guided(logits[:, :, -1])

    def end(self) -> None:
        """Leave streaming mode, which frees the cache."""
        self._streaming.close()


class Transformers:
    """The `MusicgenForCausalLM` of `MusicgenForConditionalGeneration.generate`, with its `EncoderDecoderCache`."""

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import MusicgenDecoderConfig, MusicgenForCausalLM
        from transformers.models.musicgen.modeling_musicgen import MusicgenSinusoidalPositionalEmbedding

        config, state = released_config(source)
        self.shape, self.device = read_shape(source, config), device
        shape = self.shape
        settings = MusicgenDecoderConfig(
            vocab_size=shape.codebook_size,
            pad_token_id=shape.codebook_size,
            bos_token_id=shape.codebook_size,
            hidden_size=shape.dim,
            ffn_dim=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_codebooks=shape.codebooks,
            audio_channels=shape.codebooks // 4,
        )
        with torch.device("meta"):
            self._model: Any = MusicgenForCausalLM(settings)
        decoder = self._model.model.decoder
        decoder.embed_positions = MusicgenSinusoidalPositionalEmbedding(settings.max_position_embeddings, shape.dim)
        weights = {name: tensor.to(dtype) for name, tensor in rename_tensors(state).items()}
        self._model.load_state_dict(weights, assign=True)
        self._model.eval().requires_grad_(False).to(device, dtype)
        self._dtype = dtype
        self._cache: Any = None

    @torch.inference_mode()
    def begin(self, batch: int, position: int, prompt: Tensor) -> None:
        """Fill the cache with random keys and values; see `Backend.begin`."""
        from transformers import DynamicCache, EncoderDecoderCache

        shape = self.shape
        self._prompt = _prompt_rows(prompt, batch).to(self._dtype)
        past = DynamicCache(config=self._model.config)
        row = torch.randn(2 * batch, shape.heads, 1, shape.head_dim, device=self.device, dtype=self._dtype)
        for layer in range(shape.layers if position else 0):
            past.update(row.repeat(1, 1, position, 1), row.repeat(1, 1, position, 1), layer)
        self._cache = EncoderDecoderCache(past, DynamicCache(config=self._model.config))

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Run one step: tokens [B, K] → guided logits [B, K, codebook_size]."""
        shape = self.shape
        logits = self._model(
            input_ids=tokens.repeat(2, 1).view(-1, 1),
            encoder_hidden_states=self._prompt,
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        return _guided(logits.view(2 * len(tokens), shape.codebooks, shape.codebook_size))

    def end(self) -> None:
        """Free the cache."""
        self._cache = None


LAYER_NAMES = {
    "self_attn.out_proj.weight": "self_attn.out_proj.weight",
    "cross_attention.out_proj.weight": "encoder_attn.out_proj.weight",
    "linear1.weight": "fc1.weight",
    "linear2.weight": "fc2.weight",
    **{
        f"{audiocraft_name}.{part}": f"{transformers_name}.{part}"
        for audiocraft_name, transformers_name in (
            ("norm1", "self_attn_layer_norm"),
            ("norm_cross", "encoder_attn_layer_norm"),
            ("norm2", "final_layer_norm"),
        )
        for part in ("weight", "bias")
    },
}
PACKED_PROJECTIONS = {"self_attn.in_proj_weight": "self_attn", "cross_attention.in_proj_weight": "encoder_attn"}


def rename_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return AudioCraft's tensors under the names of transformers."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        top, _, rest = name.partition(".")
        if top == "transformer":
            _, number, inner = rest.split(".", 2)
            layer = f"model.decoder.layers.{number}"
            if inner in PACKED_PROJECTIONS:
                parts = zip("qkv", tensor.chunk(3), strict=True)
                renamed |= {f"{layer}.{PACKED_PROJECTIONS[inner]}.{letter}_proj.weight": part for letter, part in parts}
            else:
                renamed[f"{layer}.{LAYER_NAMES[inner]}"] = tensor
        elif top == "emb":
            renamed[f"model.decoder.embed_tokens.{rest}"] = tensor
        elif top == "linears":
            renamed[f"lm_heads.{rest}"] = tensor
        elif top == "out_norm":
            renamed[f"model.decoder.layer_norm.{rest}"] = tensor
    return renamed
