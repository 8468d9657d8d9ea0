"""MusicGen's language model (Copet et al. 2023) for training on whole sequences, with AudioCraft's tensor names.

`musicgen_bento.lm.decoder` is the same network for step-by-step inference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.fast import attend
from training.plan import CODEBOOK_SIZE, CODEBOOKS, Plan


class Attention(nn.Module):
    """Multi-head attention without biases, with query, key and value projections in one matrix."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * dim, dim) * dim**-0.5)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Attend from x [B, S, dim] causally to x, or to `context` [B, L, dim] where `mask` [B, L] is true."""
        if context is None:
            query, key, value = F.linear(x, self.in_proj_weight).chunk(3, dim=-1)
        else:
            query_weight, key_value_weight = self.in_proj_weight.split([x.shape[-1], 2 * x.shape[-1]])
            query = F.linear(x, query_weight)
            key, value = F.linear(context, key_value_weight).chunk(2, dim=-1)
        split = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        allowed = None if mask is None else mask[:, None, None, :]
        result: Tensor = self.out_proj(attend(*split, allowed).transpose(1, 2).flatten(2))
        return result


class Layer(nn.Module):
    """A pre-norm layer: self-attention, cross-attention to the prompt, feed-forward."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm_cross, self.norm2 = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attn, self.cross_attention = Attention(dim, heads), Attention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Apply the layer to x [B, S, dim] with `text` [B, L, dim] where `mask` [B, L] is true."""
        x = x + self.self_attn(self.norm1(x))
        x = x + self.cross_attention(self.norm_cross(x), text, mask)
        out: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """The layers, under AudioCraft's name."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(plan.dim, plan.heads) for _ in range(plan.layers))
        with torch.no_grad():
            for layer in self.layers:  # smaller initial residual branches in deeper networks
                for name in ("self_attn.out_proj", "cross_attention.out_proj", "linear2"):
                    layer.get_parameter(f"{name}.weight").div_((2 * plan.layers) ** 0.5)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Apply all layers; return the output of the last, and the input of the last two."""
        penultimate = x
        for number, layer in enumerate(self.layers):
            penultimate = x if number == len(self.layers) - 2 else penultimate
            x = layer(x, text, mask)
        return x, penultimate


class Network(nn.Module):
    """The language model: tokens and prompts to logits."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        torch.manual_seed(plan.seed)
        dim = plan.dim
        self.emb = nn.ModuleList(nn.Embedding(CODEBOOK_SIZE + 1, dim) for _ in range(CODEBOOKS))
        self.transformer = Transformer(plan)
        self.out_norm = nn.LayerNorm(dim)
        self.linears = nn.ModuleList(nn.Linear(dim, CODEBOOK_SIZE, bias=False) for _ in range(CODEBOOKS))
        self.output_proj = nn.Linear(plan.text_dim, dim)
        self.positions: Tensor
        self.register_buffer("positions", _positions(plan.window + CODEBOOKS, dim), persistent=False)
        with torch.no_grad():
            for weight in self.emb.parameters():
                weight.normal_(std=0.5)  # comparable to the positions' 0.7; AudioCraft's dim**-0.5 takes hours to grow

    def forward(self, tokens: Tensor, text: Tensor, mask: Tensor, cond: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [B, K, S, card], the last hidden states, and the input of the last two layers [B, S, dim].

        Args:
            tokens: [B, K, S], delayed.
            text: output of the text encoder, [B, L, text_dim].
            mask: [B, L], true where there is text.
            cond: [B], 0 for unconditional rows, 1 for conditional rows.
        """
        x = torch.stack([embed(tokens[:, k]) for k, embed in enumerate(self.emb)]).sum(dim=0)
        x = x + self.positions[: x.shape[1]]
        text = self.output_proj(text)
        text = text * cond[:, None, None].to(text.dtype)  # unconditional rows have zero keys and values
        x, penultimate = self.transformer(x.to(text.dtype), text, mask)  # in half precision if products are: faster
        x = self.out_norm(x)
        return torch.stack([head(x) for head in self.linears], dim=1), x, penultimate

    def released(self, temperatures: Sequence[float]) -> dict[str, Tensor]:
        """Return the tensors under AudioCraft's names, with each head scaled so that its temperature becomes 1."""
        prefix = "condition_provider.conditioners.description."
        tensors = {
            (prefix if name.startswith("output_proj") else "") + name: t for name, t in self.state_dict().items()
        }
        heads = [f"linears.{k}.weight" for k in range(CODEBOOKS)]
        return tensors | {name: tensors[name] / t for name, t in zip(heads, temperatures, strict=True)}


def _positions(count: int, dim: int) -> Tensor:
    """Return sinusoidal position embeddings [count, dim], cosines first."""
    half = dim // 2
    phase = torch.arange(count)[:, None] / 10_000 ** (torch.arange(half) / (half - 1))
    return torch.cat([phase.cos(), phase.sin()], dim=-1).float()


def delayed(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the delay pattern: codes [B, K, T] → inputs and targets, both [B, K, T + K - 1].

    Codebook k is delayed by k positions. The input of position 0 is the special token; positions without a code have
    the target -100.
    """
    batch, codebooks, frames = codes.shape
    length = frames + codebooks - 1
    inputs = torch.full((batch, codebooks, length), CODEBOOK_SIZE, dtype=torch.long, device=codes.device)
    targets = torch.full((batch, codebooks, length), -100, dtype=torch.long, device=codes.device)
    for k in range(codebooks):
        targets[:, k, k : k + frames] = codes[:, k]
        count = min(frames, length - k - 1)
        inputs[:, k, k + 1 : k + 1 + count] = codes[:, k, :count]
    return inputs, targets
