"""Reads the convolutions out of SEANet modules, as AudioCraft and Hugging Face build them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def unwrap_convolution(module: Any) -> Any:
    """Return the torch convolution inside the wrapper of either library.

    Raises:
        TypeError: the wrapper normalizes over time, which needs the whole clip.
    """
    if hasattr(module, "convtr"):
        convolution, norm = module.convtr.convtr, module.convtr.norm
    elif isinstance(module.conv, nn.Conv1d | nn.ConvTranspose1d):
        convolution, norm = module.conv, getattr(module, "norm", None)
    else:
        convolution, norm = module.conv.conv, module.conv.norm
    if norm is not None and not isinstance(norm, nn.Identity):
        raise TypeError("A norm over time has no streaming form.")
    return convolution


@torch.no_grad()
def weight_and_bias(convolution: Any) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias, with the weight norm applied once; both libraries apply it again in each call."""
    weight: Tensor
    if hasattr(convolution, "weight_g"):
        hooks = convolution._forward_pre_hooks.values()
        weight = torch._weight_norm(convolution.weight_v, convolution.weight_g, next(hook.dim for hook in hooks))
    else:
        weight = convolution.weight
    return weight.detach(), None if convolution.bias is None else convolution.bias.detach()
