"""Measures the distance of a precision from float32 on a model's own weights: how the next-token distributions differ.

Both precisions read the same tokens, which float32 chose. So an error at one position does not change the inputs of the
next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.loading import Checkpoint, CheckpointFiles
from musicgen_bento.engine.text_conditioner import TextConditioner
from musicgen_bento.engine.token_sequence import TokenSequence
from musicgen_bento.lm.factory import create_decoder
from musicgen_bento.lm.sampling import SamplingParams, sample
from musicgen_bento.precision import FLOAT32, Precision

PROMPTS = (
    "lofi hip hop with a mellow electric piano",
    "driving techno, 140 bpm, dark",
    "solo piano, slow and sad",
    "happy acoustic folk with a flute",
)
TOP_K, CFG_COEF = 250, 3.0  # MusicGen's defaults
CPU = torch.device("cpu")
# The limits of `Distance.is_close`: a hundredth of a nat on average, and another most likely token in 3 of 100 cases.
MAX_KL, MIN_AGREEMENT = 0.01, 0.97


@dataclass(frozen=True, slots=True)
class Distance:
    """The distance of a precision from float32, over contexts of one kind.

    Attributes:
        precision: name of the precision.
        contexts: how float32 chose the tokens that both read: `greedy` or `sampled`.
        kl: Kullback-Leibler divergence of the guided next-token distributions in nats, mean over positions and
            codebooks.
        kl_99: the 99th percentile of this divergence.
        agreement: the fraction of distributions with the same most likely token, 0 to 1.
        distributions: number of distributions that were compared.
    """

    precision: str
    contexts: str
    kl: float
    kl_99: float
    agreement: float
    distributions: int

    @property
    def is_close(self) -> bool:
        """Whether the precision is as good as float32, by `MAX_KL` and `MIN_AGREEMENT`."""
        return self.kl <= MAX_KL and self.agreement >= MIN_AGREEMENT


def measure_distances(files: CheckpointFiles, precisions: Sequence[Precision], seconds: float) -> Iterator[Distance]:
    """Compare precisions with float32 on a CPU, one after the other.

    Args:
        files: the model's files.
        precisions: the precisions to compare.
        seconds: length of the contexts in seconds of audio, cut to the model's window.

    Yields:
        For each precision its distance over greedy contexts, then over sampled contexts.
    """
    float32_model = loading.build(files, CPU, FLOAT32)
    references = [_compute_reference(float32_model, contexts, seconds) for contexts in ("greedy", "sampled")]
    del float32_model
    for precision in precisions:
        model = loading.build(files, CPU, precision)
        for reference in references:
            yield _measure_distance(model, reference)
        del model


@dataclass(frozen=True, slots=True)
class _Reference:
    """The tokens that float32 chose, and its next-token distributions, at S positions of B prompts.

    Attributes:
        contexts: `greedy` or `sampled`.
        inputs: tokens that the model reads [S, B, K].
        log_probs: log probabilities of the next tokens [S, B, K, codebook_size].
        is_compared: whether the delay pattern has a token at the next position [S, K].
    """

    contexts: str
    inputs: Tensor
    log_probs: Tensor
    is_compared: Tensor


def _compute_reference(model: Checkpoint, contexts: str, seconds: float) -> _Reference:
    shape = model.weights.shape
    frames = min(shape.window, round(seconds * model.frame_rate))
    sequences = [TokenSequence(shape.pattern, frames, shape.window, shape.codebook_size) for _ in PROMPTS]
    count = len(sequences)
    temperature = 0.0 if contexts == "greedy" else 1.0
    sampling = SamplingParams.from_lists(list(range(count)), [temperature] * count, [TOP_K] * count, [0.0] * count, CPU)
    stepper, inputs, log_probs, is_compared = _Stepper(model, frames), [], [], []
    for _ in range(sequences[0].steps_left):
        inputs.append(torch.tensor([sequence.next_input() for sequence in sequences]))
        logits = stepper.step(inputs[-1])
        log_probs.append(logits.log_softmax(dim=-1))
        next_frames = shape.pattern.frames(sequences[0].position + 1)
        is_compared.append(torch.tensor([0 <= frame < frames for frame in next_frames]))
        noise_steps = torch.tensor([sequence.noise_step for sequence in sequences])
        for sequence, column in zip(sequences, sample(logits, sampling, noise_steps).tolist(), strict=True):
            sequence.append(column)
    return _Reference(contexts, torch.stack(inputs), torch.stack(log_probs), torch.stack(is_compared))


def _measure_distance(model: Checkpoint, reference: _Reference) -> Distance:
    stepper, divergences, same_top = _Stepper(model, len(reference.inputs)), [], []
    positions = zip(reference.inputs, reference.log_probs, reference.is_compared, strict=True)
    for inputs, expected, is_compared in positions:
        actual = stepper.step(inputs).log_softmax(dim=-1)
        divergences.append((expected.exp() * (expected - actual)).sum(dim=-1)[:, is_compared].flatten())
        same_top.append((expected.argmax(dim=-1) == actual.argmax(dim=-1))[:, is_compared].flatten())
    kl, agreement = torch.cat(divergences), torch.cat(same_top).float()
    return Distance(
        model.weights.precision.name,
        reference.contexts,
        float(kl.mean()),
        float(kl.quantile(0.99)),
        float(agreement.mean()),
        len(kl),
    )


class _Stepper:
    """Runs a model on PROMPTS, position by position."""

    def __init__(self, model: Checkpoint, frames: int) -> None:
        conditioner, shape = TextConditioner(model), model.weights.shape
        self._decoder = create_decoder(model.weights, len(PROMPTS))
        self._cfg_coef = torch.full((len(PROMPTS),), CFG_COEF)
        self._sequences = []
        for prompt in PROMPTS:
            text = conditioner.encode(conditioner.tokenize(prompt))
            sequence = self._decoder.open_sequence(text, guided=True, max_positions=shape.pattern.last_position(frames))
            if (prefix := self._decoder.prompt_prefix(sequence)).shape[1]:
                self._decoder.prefill(sequence, prefix)
            self._sequences.append(sequence)

    def step(self, inputs: Tensor) -> Tensor:
        """Return the guided logits [B, K, codebook_size] after the tokens [B, K]."""
        return self._decoder.step(self._sequences, inputs, self._cfg_coef)
