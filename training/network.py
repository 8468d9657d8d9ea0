"""MusicGen's language model (Copet et al. 2023) for training: whole sequences at once, tensors named as released.

`musicgen_bento.engine.decoder` is the same network for serving, step by step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.fast import attend
from training.plan import CARD, CODEBOOKS, Plan


class Attention(nn.Module):
    """Multi-head attention without biases; the three projections of the input are packed in one matrix."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * dim, dim) * dim**-0.5)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, heard: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Rows x [B, S, dim] attend causally to themselves, or to `heard` [B, L, dim] where `mask` [B, L] is true."""
        if heard is None:
            query, key, value = F.linear(x, self.in_proj_weight).chunk(3, dim=-1)
        else:
            to_query, to_rest = self.in_proj_weight.split([x.shape[-1], 2 * x.shape[-1]])
            query = F.linear(x, to_query)
            key, value = F.linear(heard, to_rest).chunk(2, dim=-1)
        split = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        allowed = None if mask is None else mask[:, None, None, :]
        result: Tensor = self.out_proj(attend(*split, allowed).transpose(1, 2).flatten(2))
        return result


class Layer(nn.Module):
    """Pre-norm: self-attention, cross-attention to the prompt, feed-forward."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm_cross, self.norm2 = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attn, self.cross_attention = Attention(dim, heads), Attention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Rows x [B, S, dim] after `text` [B, L, dim] where `mask` [B, L] is true."""
        x = x + self.self_attn(self.norm1(x))
        x = x + self.cross_attention(self.norm_cross(x), text, mask)
        out: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """The layers, under the name that AudioCraft gives them."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(plan.dim, plan.heads) for _ in range(plan.layers))
        with torch.no_grad():
            for layer in self.layers:  # residual branches begin small, the deeper the smaller
                for name in ("self_attn.out_proj", "cross_attention.out_proj", "linear2"):
                    layer.get_parameter(f"{name}.weight").div_((2 * plan.layers) ** 0.5)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Through all layers; what comes out of the last one, and what goes into the last two."""
        beneath = x
        for number, layer in enumerate(self.layers):
            beneath = x if number == len(self.layers) - 2 else beneath
            x = layer(x, text, mask)
        return x, beneath


class Network(nn.Module):
    """Tokens and prompts to logits."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        torch.manual_seed(plan.seed)
        dim = plan.dim
        self.emb = nn.ModuleList(nn.Embedding(CARD + 1, dim) for _ in range(CODEBOOKS))
        self.transformer = Transformer(plan)
        self.out_norm = nn.LayerNorm(dim)
        self.linears = nn.ModuleList(nn.Linear(dim, CARD, bias=False) for _ in range(CODEBOOKS))
        self.output_proj = nn.Linear(plan.text_dim, dim)
        self.positions: Tensor
        self.register_buffer("positions", _positions(plan.window + CODEBOOKS, dim), persistent=False)
        with torch.no_grad():
            for weight in self.emb.parameters():
                weight.normal_(std=0.5)  # beside positions of 0.7; AudioCraft's dim**-0.5 is drowned for hours

    def forward(self, tokens: Tensor, text: Tensor, mask: Tensor, hears: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, K, S, card], what they are read off, and what goes into the last two layers, both [B, S, dim].

        Args:
            tokens: [B, K, S], delayed.
            text: the text encoder's [B, L, text_dim].
            mask: [B, L], true where there is text.
            hears: [B], 0 where guidance's deaf row is trained.
        """
        x = torch.stack([embed(tokens[:, k]) for k, embed in enumerate(self.emb)]).sum(dim=0)
        x = x + self.positions[: x.shape[1]]
        text = self.output_proj(text)
        text = text * hears[:, None, None].to(text.dtype)  # keys and values of nothing: the deaf row's are zero
        x, beneath = self.transformer(x.to(text.dtype), text, mask)  # in half precision where products are: faster
        x = self.out_norm(x)
        return torch.stack([head(x) for head in self.linears], dim=1), x, beneath

    def released(self, temperatures: Sequence[float]) -> dict[str, Tensor]:
        """The tensors by the names that AudioCraft gives them, each head for what is to be a temperature of 1."""
        prefix = "condition_provider.conditioners.description."
        tensors = {
            (prefix if name.startswith("output_proj") else "") + name: t for name, t in self.state_dict().items()
        }
        heads = [f"linears.{k}.weight" for k in range(CODEBOOKS)]
        return tensors | {name: tensors[name] / t for name, t in zip(heads, temperatures, strict=True)}


def _positions(count: int, dim: int) -> Tensor:
    """Sinusoids [count, dim], cosines first."""
    half = dim // 2
    phase = torch.arange(count)[:, None] / 10_000 ** (torch.arange(half) / (half - 1))
    return torch.cat([phase.cos(), phase.sin()], dim=-1).float()


def delayed(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [B, K, T] → what the network reads and what it is to say, both [B, K, T + K - 1].

    Codebook k lags k positions behind; position 0 reads the special token; where a codebook has nothing to say the
    target is -100.
    """
    batch, codebooks, frames = codes.shape
    length = frames + codebooks - 1
    read = torch.full((batch, codebooks, length), CARD, dtype=torch.long, device=codes.device)
    say = torch.full((batch, codebooks, length), -100, dtype=torch.long, device=codes.device)
    for k in range(codebooks):
        say[:, k, k : k + frames] = codes[:, k]
        kept = min(frames, length - k - 1)
        read[:, k, k + 1 : k + 1 + kept] = codes[:, k, :kept]
    return read, say
