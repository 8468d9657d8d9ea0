"""The layers of EnCodec's decoder, each able to go on where the last block ended.

A layer keeps what it still needs of its past, gives what it can for the input so far, and gives the rest when the
clip ends. Weights are shared by all clips; `fork` makes the state of one, and `joined` one layer of several clips in
the same state but for its numbers. The layers of AudioCraft's EnCodec and of Hugging Face's are read alike. Time comes
before channels; what is done with the numbers is `codec_operations.py`'s.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicgen_bento.codec.torch_ops import CodecOps


class StreamingLayer:
    """A layer's weights, shared, and one clip's state.

    Attributes:
        states: names of the attributes that are the clip's. Their tensors have the batch first.
    """

    states: tuple[str, ...] = ()

    def reset(self) -> None:
        """Forget the clip."""

    def fork(self) -> Self:
        """The same layer for another clip."""
        twin = copy.copy(self)
        twin.reset()
        return twin

    def push(self, x: Tensor) -> Tensor | None:
        """The outputs that the inputs so far determine, [B, n, C]; None if there is none yet."""
        raise NotImplementedError

    def finish(self) -> Tensor | None:
        """The outputs that were held back for inputs that will not come."""
        return None


class StreamingActivation(StreamingLayer):
    """An activation."""

    def __init__(self, module: nn.Module, operations: CodecOps) -> None:
        self.activate = operations.activation(module)

    def push(self, x: Tensor) -> Tensor:
        """One output for each input."""
        return self.activate(x, None)


class StreamingConv1d(StreamingLayer):
    """A convolution of stride 1, any dilation, causal or not.

    Attributes:
        activate: what is done with its inputs first, so that they are written where they are wanted.
    """

    states = ("past", "started")

    def __init__(self, module: Any, operations: CodecOps) -> None:
        convolution = _inner(module)
        self.module, self.mode = module, module.pad_mode
        if self.mode not in ("constant", "reflect", "replicate") or convolution.stride[0] != 1:
            raise TypeError(f"no streaming form of {type(module).__name__} with padding {self.mode!r}")
        dilation = convolution.dilation[0]
        self.span = (convolution.kernel_size[0] - 1) * dilation
        self.right = 0 if module.causal else self.span // 2
        self.left = self.span - self.right
        # inputs wanted before the first output; reflection needs one more than it reflects
        self.need = max(self.span + 1 - self.left, self.left + 1 if self.mode == "reflect" else 0)
        weight, bias = _plain(convolution)
        self._convolve = operations.conv1d(weight, bias, dilation, convolution.groups)
        self.activate = operations.activation(nn.Identity())
        self.reset()

    def reset(self) -> None:
        """Forget the clip."""
        self.past: Tensor | None = None
        self.started = False

    def push(self, x: Tensor) -> Tensor | None:
        """As many outputs as inputs, but `right` fewer at first."""
        x = self.activate(x, self.past)
        if not self.span:
            return self._convolve(x)
        if not self.started:
            if x.shape[1] < self.need:
                self.past = x
                return None
            x = _padded(x, self.left, 0, self.mode)
            self.started = True
        self.past = x[:, x.shape[1] - self.span :].clone()  # a view would keep the whole block alive
        return self._convolve(x) if x.shape[1] > self.span else None

    def finish(self) -> Tensor | None:
        """The last `right` outputs."""
        if self.past is None:
            return None
        if not self.started:  # a clip shorter than the padding: the module knows its own corner cases
            whole: Tensor = self.module(self.past.transpose(1, 2))
            return whole.transpose(1, 2)
        return self._convolve(_padded(self.past, 0, self.right, self.mode)) if self.right else None


class StreamingConvTranspose1d(StreamingLayer):
    """A transposed convolution whose kernel is two strides: a matrix product, then overlap-add.

    The product is spelled out, because torch's conv_transpose1d is very slow on a CPU for a few wide inputs. The bias
    stays out of the part carried over, or it would count twice.
    """

    states = ("tail", "skip")

    def __init__(self, module: Any, operations: CodecOps) -> None:
        convolution = _inner(module)
        self.stride = convolution.stride[0]
        overlap = convolution.kernel_size[0] - self.stride
        if convolution.groups != 1 or overlap != self.stride:
            raise TypeError(f"no streaming form of {type(module).__name__} with this kernel")
        self.right = math.ceil(overlap * module.trim_right_ratio) if module.causal else overlap // 2
        self.left = overlap - self.right
        weight, self.bias = _plain(convolution)  # [in, out, 2 * stride]
        rows = weight.permute(2, 1, 0).reshape(-1, weight.shape[0], 1).contiguous()
        self._multiply = operations.conv1d(rows, None, 1, 1)
        self._overlap = operations.overlap_add(self.bias)
        self.reset()

    def reset(self) -> None:
        """Forget the clip."""
        self.tail: Tensor | None = None
        self.skip = self.left

    def push(self, x: Tensor) -> Tensor:
        """`stride` outputs for each input, but `left` fewer at first."""
        products = self._multiply(x).view(*x.shape[:2], 2, self.stride, -1)
        tail = torch.zeros_like(products[:, 0, 0]) if self.tail is None else self.tail
        y, self.tail = self._overlap(products, tail)
        return self._trim(y)

    def finish(self) -> Tensor | None:
        """What the last input adds past its own stride."""
        if self.tail is None:
            return None
        rest = self.tail[:, : self.stride - self.right]
        return self._trim(rest if self.bias is None else rest + self.bias)

    def _trim(self, y: Tensor) -> Tensor:
        drop = min(self.skip, y.shape[1])
        self.skip -= drop
        return y[:, drop:]


class StreamingLSTM(StreamingLayer):
    """The LSTM with its shortcut."""

    states = ("state",)

    def __init__(self, module: Any, operations: CodecOps) -> None:
        self.lstm, self.shortcut = module.lstm, getattr(module, "skip", True)
        if self.lstm.bidirectional or self.lstm.batch_first or self.lstm.proj_size or not self.lstm.bias:
            raise TypeError("no streaming form of this LSTM")
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        layers = range(self.lstm.num_layers)
        self._layers = [operations.lstm(*(getattr(self.lstm, f"{n}_l{i}") for n in names)) for i in layers]
        self.reset()

    def reset(self) -> None:
        """Forget the clip."""
        self.state: list[tuple[Tensor, Tensor]] | None = None

    def push(self, x: Tensor) -> Tensor:
        """One output for each input."""
        y = x
        if self.state is None:
            zero = x.new_zeros(x.shape[0], self.lstm.hidden_size)
            self.state = [(zero, zero)] * self.lstm.num_layers
        for index, layer in enumerate(self._layers):
            y, self.state[index] = layer(y, self.state[index])
        return y + x if self.shortcut else y


class StreamingSequential(StreamingLayer):
    """Layers one after the other."""

    states = ("layers",)

    def __init__(self, modules: Any, operations: CodecOps) -> None:
        self.layers: list[StreamingLayer] = []
        for module in modules:
            layer = make_streaming(module, operations)
            before = self.layers[-1] if self.layers else None
            if isinstance(layer, StreamingConv1d) and isinstance(before, StreamingActivation):
                layer.activate = before.activate
                self.layers.pop()
            self.layers.append(layer)

    def fork(self) -> Self:
        """The same layers for another clip."""
        return self.of([layer.fork() for layer in self.layers])

    def of(self, layers: list[StreamingLayer]) -> Self:
        """A chain of these."""
        twin = copy.copy(self)
        twin.layers = layers
        return twin

    def push(self, x: Tensor) -> Tensor | None:
        """As far as the layers get."""
        return _through(self.layers, x)

    def finish(self) -> Tensor | None:
        """End each layer in turn, and push what it held back through the ones behind it."""
        rest: Tensor | None = None
        for layer in self.layers:
            parts = [part for part in (_through([layer], rest), layer.finish()) if part is not None]
            rest = torch.cat(parts, dim=1) if parts else None
        return rest


class StreamingResidual(StreamingLayer):
    """shortcut(x) + block(x). The shortcut waits for the block, which looks ahead."""

    states = ("block", "shortcut", "early")

    def __init__(self, module: Any, operations: CodecOps) -> None:
        self.block = StreamingSequential(module.block, operations)
        self.shortcut = StreamingSequential(
            [] if isinstance(module.shortcut, nn.Identity) else [module.shortcut], operations
        )
        self.early: Tensor | None = None

    def fork(self) -> Self:
        """The same layers for another clip."""
        twin = copy.copy(self)
        twin.block, twin.shortcut, twin.early = self.block.fork(), self.shortcut.fork(), None
        return twin

    def push(self, x: Tensor) -> Tensor | None:
        """As far as the block gets."""
        return self._add(self.shortcut.push(x), self.block.push(x))

    def finish(self) -> Tensor | None:
        """The rest of both."""
        return self._add(self.shortcut.finish(), self.block.finish())

    def _add(self, short: Tensor | None, y: Tensor | None) -> Tensor | None:
        """To y, which is nobody else's, what waited for it; and have wait what comes too early."""
        early = [part for part in (self.early, short) if part is not None]
        wanted = 0 if y is None else y.shape[1]
        begin, left = 0, []
        for part in early:
            some = min(wanted - begin, part.shape[1])
            if y is not None:
                y[:, begin : begin + some] += part[:, :some]
            left.append(part[:, some:])
            begin += some
        self.early = torch.cat(left, dim=1) if left else None
        return y


def state_signature(state: Any) -> Any:
    """What two layers, or states of theirs, must have in common to be joined."""
    if isinstance(state, StreamingLayer):
        return tuple(state_signature(getattr(state, name)) for name in state.states)
    if isinstance(state, list | tuple):
        return tuple(state_signature(part) for part in state)
    return state.shape if isinstance(state, Tensor) else state


def batch_states(states: Sequence[Any]) -> Any:
    """One layer, or state, of all the clips that these are of, one behind the other in its batch."""
    first = states[0]
    if isinstance(first, StreamingLayer):
        twin = copy.copy(first)
        for name in first.states:
            setattr(twin, name, batch_states([getattr(state, name) for state in states]))
        return twin
    if isinstance(first, list | tuple):
        return type(first)(batch_states(parts) for parts in zip(*states, strict=True))
    return torch.cat(list(states)) if isinstance(first, Tensor) else first


def unbatch_states(whole: Any, clips: int) -> list[Any]:
    """Of each clip what `joined` made one of so many."""
    if isinstance(whole, StreamingLayer):
        twins = [copy.copy(whole) for _ in range(clips)]
        for name in whole.states:
            for twin, state in zip(twins, unbatch_states(getattr(whole, name), clips), strict=True):
                setattr(twin, name, state)
        return twins
    if isinstance(whole, list | tuple):
        each = [unbatch_states(one, clips) for one in whole]
        return [type(whole)(one[clip] for one in each) for clip in range(clips)]
    return [one.clone() for one in whole.chunk(clips)] if isinstance(whole, Tensor) else [whole] * clips


def _through(layers: list[StreamingLayer], x: Tensor | None) -> Tensor | None:
    for layer in layers:
        if x is None or x.shape[1] == 0:
            return None
        x = layer.push(x)
    return x


def make_streaming(module: Any, operations: CodecOps) -> StreamingLayer:
    """The streaming form of a module of SEANet, by what it has: both libraries name these alike."""
    if hasattr(module, "block") and hasattr(module, "shortcut"):
        return StreamingResidual(module, operations)
    if hasattr(module, "lstm"):
        return StreamingLSTM(module, operations)
    if hasattr(module, "trim_right_ratio"):
        return StreamingConvTranspose1d(module, operations)
    if hasattr(module, "pad_mode"):
        return StreamingConv1d(module, operations)
    if isinstance(module, nn.ELU | nn.Identity | nn.Tanh | nn.ReLU | nn.LeakyReLU):
        return StreamingActivation(module, operations)
    raise TypeError(f"no streaming form of {type(module).__name__}")


def _padded(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """[B, n, C] with positions before and after it."""
    return F.pad(x.transpose(1, 2), (left, right), mode).transpose(1, 2)


def _inner(module: Any) -> Any:
    """The torch convolution inside either library's wrapper."""
    if hasattr(module, "convtr"):
        inner, norm = module.convtr.convtr, module.convtr.norm
    elif isinstance(module.conv, nn.Conv1d | nn.ConvTranspose1d):
        inner, norm = module.conv, getattr(module, "norm", None)
    else:
        inner, norm = module.conv.conv, module.conv.norm
    if norm is not None and not isinstance(norm, nn.Identity):
        raise TypeError("no streaming form of a norm over time")
    return inner


@torch.no_grad()
def _plain(convolution: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with the weight norm worked out once; both libraries rebuild the weight in each call."""
    weight: Tensor
    if hasattr(convolution, "weight_g"):
        hooks = convolution._forward_pre_hooks.values()
        weight = torch._weight_norm(convolution.weight_v, convolution.weight_g, next(h.dim for h in hooks))
    else:
        weight = convolution.weight
    return weight.detach(), None if convolution.bias is None else convolution.bias.detach()
