"""The peers: AudioCraft's language model and that of transformers, with the very weights of ours.

Each is built by its own library and run as its own `generate` runs it: rows with and without the prompt in one batch,
its own cache, its own way to combine their logits. What `generate` does around the forward pass is left out, which
flatters them. A test sees that all three say the same of the same tokens.
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

TEXT = "condition_provider."  # the projection of the prompt, which is not in a step


def _guided(logits: Tensor) -> Tensor:
    """Rows that hear the prompt, then as many that do not, [2B, ...] → [B, ...]."""
    hearing, deaf = logits.chunk(2)
    return deaf + (hearing - deaf) * CFG_COEF


def _rows(text: Tensor, batch: int) -> Tensor:
    """The prompt for rows that hear it, zeros for those that do not: [L, dim] → [2B, L, dim]."""
    return torch.cat([text.expand(batch, -1, -1), torch.zeros_like(text).expand(batch, -1, -1)])


class AudioCraft:
    """`LMModel` in streaming mode; float32 on a CPU, float16 under autocast on a GPU, as `MusicGen` has it."""

    def __init__(self, source: Source, device: torch.device) -> None:
        from audiocraft.modules import transformer

        config, state = released_config(source)
        self.shape, self.device = read_shape(source, config), device
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._lm = empty_lm(config)
        kept = {name: tensor.to(device, dtype) for name, tensor in state.items() if not name.startswith(TEXT)}
        self._lm.load_state_dict(kept, assign=True)
        self._lm.eval().requires_grad_(False)
        self._time = transformer._get_attention_time_dimension(True)
        self._dtype = dtype
        self._stack = ExitStack()

    @torch.inference_mode()
    def begin(self, batch: int, position: int, text: Tensor) -> None:
        """See `steps.Contestant`. The first position is read, and what it left repeated."""
        rows = _rows(text, batch).to(self._dtype)
        self._text = {"description": (rows, torch.ones(rows.shape[:2], device=self.device))}
        self._stack.enter_context(self._lm.streaming())
        if not position:
            return
        self.step(torch.full((batch, self.shape.codebooks), self.shape.codebook_size, device=self.device))
        state = self._lm.get_streaming_state()
        for name, tensor in state.items():
            if name.endswith(("past_keys", "past_values")):
                sizes = [position if axis == self._time else 1 for axis in range(tensor.dim())]
                state[name] = tensor.repeat(sizes)
            elif name.endswith("offsets"):
                state[name] = tensor + position - 1
        self._lm.set_streaming_state(state)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See `steps.Contestant`."""
        cuda = self.device.type == "cuda"
        with torch.autocast("cuda", torch.float16) if cuda else nullcontext():
            logits = self._lm(tokens.repeat(2, 1)[..., None], conditions=[], condition_tensors=self._text)
        return _guided(logits[:, :, -1])

    def end(self) -> None:
        """See `steps.Contestant`."""
        self._stack.close()


class Transformers:
    """`MusicgenForCausalLM`, which `MusicgenForConditionalGeneration.generate` runs, with its `EncoderDecoderCache`."""

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
        self._model.load_state_dict({name: part.to(dtype) for name, part in renamed(state).items()}, assign=True)
        self._model.eval().requires_grad_(False).to(device, dtype)
        self._dtype = dtype
        self._cache: Any = None

    @torch.inference_mode()
    def begin(self, batch: int, position: int, text: Tensor) -> None:
        """See `steps.Contestant`."""
        from transformers import DynamicCache, EncoderDecoderCache

        shape = self.shape
        self._text = _rows(text, batch).to(self._dtype)
        past = DynamicCache(config=self._model.config)
        row = torch.randn(2 * batch, shape.heads, 1, shape.head_dim, device=self.device, dtype=self._dtype)
        for layer in range(shape.layers if position else 0):
            past.update(row.repeat(1, 1, position, 1), row.repeat(1, 1, position, 1), layer)
        self._cache = EncoderDecoderCache(past, DynamicCache(config=self._model.config))

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See `steps.Contestant`."""
        shape = self.shape
        logits = self._model(
            input_ids=tokens.repeat(2, 1).view(-1, 1),
            encoder_hidden_states=self._text,
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        return _guided(logits.view(2 * len(tokens), shape.codebooks, shape.codebook_size))

    def end(self) -> None:
        """See `steps.Contestant`."""
        self._cache = None


LAYER_NAMES = {
    "self_attn.out_proj.weight": "self_attn.out_proj.weight",
    "cross_attention.out_proj.weight": "encoder_attn.out_proj.weight",
    "linear1.weight": "fc1.weight",
    "linear2.weight": "fc2.weight",
    **{
        f"{ours}.{part}": f"{theirs}.{part}"
        for ours, theirs in (
            ("norm1", "self_attn_layer_norm"),
            ("norm_cross", "encoder_attn_layer_norm"),
            ("norm2", "final_layer_norm"),
        )
        for part in ("weight", "bias")
    },
}
PACKED = {"self_attn.in_proj_weight": "self_attn", "cross_attention.in_proj_weight": "encoder_attn"}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """AudioCraft's tensors under the names that transformers has for them."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        top, _, rest = name.partition(".")
        if top == "transformer":
            _, number, inner = rest.split(".", 2)
            layer = f"model.decoder.layers.{number}"
            if inner in PACKED:
                parts = zip("qkv", tensor.chunk(3), strict=True)
                found |= {f"{layer}.{PACKED[inner]}.{letter}_proj.weight": part for letter, part in parts}
            else:
                found[f"{layer}.{LAYER_NAMES[inner]}"] = tensor
        elif top == "emb":
            found[f"model.decoder.embed_tokens.{rest}"] = tensor
        elif top == "linears":
            found[f"lm_heads.{rest}"] = tensor
        elif top == "out_norm":
            found[f"model.decoder.layer_norm.{rest}"] = tensor
    return found
