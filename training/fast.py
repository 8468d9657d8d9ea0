"""What makes a step of training fast on a processor: half precision, attention in blocks, a loss in one pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 100  # queries


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half(place: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 for products, where they are several times as fast: on a GPU and on a processor with AMX."""
    if place.type == "cuda" or torch.cpu.get_capabilities().get("amx_bf16", False):
        return torch.autocast(place.type, torch.bfloat16)
    return nullcontext()


class Causal(torch.autograd.Function):
    """Causal attention. On a processor torch's own takes three times as long backwards.

    A block of queries looks at the keys up to its end, so that most of what is not allowed is not computed either.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of query, key and value [N, S, D]."""
        scale = query.shape[-1] ** -0.5
        later = torch.full((BLOCK, BLOCK), float("-inf"), dtype=query.dtype).triu(1)
        out, chances = torch.empty_like(query), []
        for begin, end in _blocks(query):
            scores = _product(query[:, begin:end], key[:, :end].transpose(1, 2), scale)
            scores[:, :, begin:].add_(later[: end - begin, : end - begin])
            chances.append(scores.softmax(dim=-1))
            out[:, begin:end] = chances[-1] @ value[:, :end]
        ctx.save_for_backward(query, key, value, out, *chances)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of query, key and value, each [N, S, D], from the chances that were kept (compare Dao et al. 2022)."""
        query, key, value, out, *chances = ctx.saved_tensors
        gradient, scale = gradients[0].contiguous(), query.shape[-1] ** -0.5
        mean = (gradient * out).sum(dim=-1, keepdim=True)
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (begin, end), chance in zip(_blocks(query), chances, strict=True):
            here = gradient[:, begin:end]
            of_value[:, :end] += chance.transpose(1, 2) @ here
            off = (here @ value[:, :end].transpose(1, 2)).sub_(mean[:, begin:end]).mul_(chance)
            of_query[:, begin:end] = _product(off, key[:, :end], scale)
            of_key[:, :end] += _product(off.transpose(1, 2), query[:, begin:end], scale)
        return of_query, of_key, of_value


def _product(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """A product [N, A, C] of [N, A, B] and [N, B, C], scaled on the way."""
    return torch.baddbmm(one.new_empty(1), one, other, beta=0, alpha=scale)


def _blocks(query: Tensor) -> list[tuple[int, int]]:
    length = query.shape[1]
    return [(begin, min(begin + BLOCK, length)) for begin in range(0, length, BLOCK)]


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Attention [B, H, S, D], causal unless `allowed` [B, 1, 1, L] says which keys are there."""
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=allowed is None)
    if allowed is not None:
        scores = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).masked_fill(~allowed, float("-inf"))
        return scores.softmax(dim=-1) @ value
    flat = [part.flatten(0, 1).contiguous() for part in (query, key, value)]
    out: Tensor = Causal.apply(*flat)  # type: ignore[no-untyped-call]
    return out.unflatten(0, query.shape[:2])


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy with its gradient from one softmax: a fifth of the time of torch's on a processor."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        """The mean of logits [N, C] over wanted [N], without those of -100; a token counts for 69 nats at most."""
        chances = logits.softmax(dim=-1, dtype=torch.float32)
        there, at = wanted >= 0, wanted.clamp(min=0)[:, None]
        share = there / there.sum()
        ctx.save_for_backward(chances, at, share)
        ctx.dtype = logits.dtype
        return -(chances.gather(1, at)[:, 0].clamp(min=1e-30).log() * share).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Of logits [N, C]: softmax less one at what was wanted."""
        chances, at, share = ctx.saved_tensors
        off = chances.scatter_add(1, at, torch.full_like(chances[:, :1], -1.0))
        return off.mul_((share * gradients[0])[:, None]).to(ctx.dtype), None


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy in nats, the mean of logits [N, C] over wanted [N], without those of -100."""
    loss: Tensor = CrossEntropy.apply(logits, wanted)  # type: ignore[no-untyped-call]
    return loss
