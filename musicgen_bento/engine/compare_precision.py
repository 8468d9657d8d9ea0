"""How far a precision is from float32 on a model's own weights, where it matters: what is sampled next.

Both read the same tokens, chosen by float32 alone, so that a difference is never carried on.
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
TOP_K, CFG_COEF = 250, 3.0  # MusicGen's own
CPU = torch.device("cpu")
# What counts as the same: on average the distributions differ by a hundredth of a nat, and the likeliest token of a
# hundred is another in three.
MAX_KL, MIN_AGREEMENT = 0.01, 0.97


@dataclass(frozen=True, slots=True)
class Distance:
    """Of a precision from float32, over the contexts of one kind.

    Attributes:
        precision: by name.
        contexts: `greedy` or `sampled`: how float32 chose the tokens that both read.
        kl: Kullback-Leibler divergence of the next token's distribution, guided, in nats: the mean over positions and
            codebooks.
        kl_99: the value that 99% of them stay below.
        agreement: how often the likeliest token is the same, 0 to 1.
        distributions: how many were compared.
    """

    precision: str
    contexts: str
    kl: float
    kl_99: float
    agreement: float
    distributions: int

    @property
    def is_close(self) -> bool:
        """Whether it makes no difference that matters."""
        return self.kl <= MAX_KL and self.agreement >= MIN_AGREEMENT


def measure_distances(files: CheckpointFiles, precisions: Sequence[Precision], seconds: float) -> Iterator[Distance]:
    """Of one precision after the other on a CPU, over greedy contexts and over sampled ones of so much music."""
    reference = loading.build(files, CPU, FLOAT32)
    leads = [_lead(reference, contexts, seconds) for contexts in ("greedy", "sampled")]
    del reference
    for precision in precisions:
        other = loading.build(files, CPU, precision)
        for lead in leads:
            yield _distance(other, lead)
        del other


@dataclass(frozen=True, slots=True)
class _Lead:
    """What float32 read and what it would have said, at each of S positions of B clips.

    Attributes:
        contexts: of which kind.
        read: [S, B, K].
        said: log probabilities [S, B, K, card].
        counts: where a token was wanted at all, [S, K].
    """

    contexts: str
    read: Tensor
    said: Tensor
    counts: Tensor


def _lead(model: Checkpoint, contexts: str, seconds: float) -> _Lead:
    shape = model.weights.shape
    frames = min(shape.window, round(seconds * model.frame_rate))
    clips = [TokenSequence(shape.pattern, frames, shape.window, shape.codebook_size) for _ in PROMPTS]
    count = len(clips)
    temperature = 0.0 if contexts == "greedy" else 1.0
    rows = SamplingParams.from_lists(list(range(count)), [temperature] * count, [TOP_K] * count, [0.0] * count, CPU)
    decoder, read, said, counts = _Steps(model, frames), [], [], []
    for _ in range(clips[0].steps_left):
        read.append(torch.tensor([clip.next_input() for clip in clips]))
        logits = decoder(read[-1])
        said.append(logits.log_softmax(dim=-1))
        keys = torch.tensor([clip.noise_step for clip in clips])
        wanted = [0 <= frame < frames for frame in shape.pattern.frames(clips[0].position + 1)]
        counts.append(torch.tensor(wanted))
        for clip, column in zip(clips, sample(logits, rows, keys).tolist(), strict=True):
            clip.append(column)
    return _Lead(contexts, torch.stack(read), torch.stack(said), torch.stack(counts))


def _distance(model: Checkpoint, lead: _Lead) -> Distance:
    decoder, divergences, same = _Steps(model, len(lead.read)), [], []
    for read, said, counts in zip(lead.read, lead.said, lead.counts, strict=True):
        other = decoder(read).log_softmax(dim=-1)
        divergences.append((said.exp() * (said - other)).sum(dim=-1)[:, counts].flatten())
        same.append((said.argmax(dim=-1) == other.argmax(dim=-1))[:, counts].flatten())
    kl, agreement = torch.cat(divergences), torch.cat(same).float()
    return Distance(
        model.weights.precision.name,
        lead.contexts,
        float(kl.mean()),
        float(kl.quantile(0.99)),
        float(agreement.mean()),
        len(kl),
    )


class _Steps:
    """A model's logits [B, K, card] for the prompts, position by position."""

    def __init__(self, model: Checkpoint, frames: int) -> None:
        conditioner, shape = TextConditioner(model), model.weights.shape
        self._decoder = create_decoder(model.weights, len(PROMPTS))
        self._guidance = torch.full((len(PROMPTS),), CFG_COEF)
        self._sequences = []
        for prompt in PROMPTS:
            text = conditioner.encode(conditioner.tokenize(prompt))
            sequence = self._decoder.open(text, guided=True, positions=shape.pattern.last_position(frames))
            if (prefix := self._decoder.prompt_prefix(sequence)).shape[1]:
                self._decoder.prefill(sequence, prefix)
            self._sequences.append(sequence)

    def __call__(self, read: Tensor) -> Tensor:
        return self._decoder.step(self._sequences, read, self._guidance)
