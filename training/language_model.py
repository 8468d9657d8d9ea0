"""Training of the language model on the tokens of songs, conditioned on their captions."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from training import codec as codecs
from training import fast, text
from training.captions import caption, speed
from training.dataset import SHARD_SONGS, Dataset
from training.loop import Clock, cosine, run_steps
from training.network import Network, delayed
from training.plan import Plan
from training.songs import REGISTERS, STYLES, TEMPOS, Song, half_beat, song_frequency, surprises

PROBE_WEIGHT = 0.3  # of the losses of the caption probes
BEAT_WEIGHT = 0.6  # of the loss of the beat probe
PROBE_POSITIONS = 10  # first positions that the caption probe reads
MUON_RATE_FACTOR = 2.0  # Muon's rate relative to AdamW's; training/README.md has its effect
EMBEDDING_RATE_FACTOR = 8.0  # of the embeddings: each occurs in few steps, and they are large relative to a step
PROMPT_RATE_FACTOR = 3.0  # of the text encoder and its projection
# The prompt decides how a clip starts, a few nats of the thousands of a long window, and the start decides the rest.
# Many windows are therefore short. Each entry is a share of the whole window and its probability.
WINDOW_SHARES = ((0.125, 0.15), (0.5, 0.55), (1.0, 0.3))
# Most windows start with the song, as a clip does, so that position and tempo determine the beat. The others train
# clips that continue beyond a window.
START_PROBABILITY = 0.75
# Factors by which songs that are unusual for their style are drawn more often; their captions mention it. Otherwise,
# techno without drums is too rare, the model follows the genre alone, and a prompt for it gets drums.
SURPRISE_WEIGHTS = {"drums": 3.0, "tempo": 2.0}
HELD_OUT = 40  # one of this many songs, from the end, for the held-out loss
EVALUATION_INTERVAL = 100  # steps between two evaluations of it


class CaptionProbe(nn.Module):
    """An auxiliary classifier of the caption's content, which the token loss alone would take hours to learn.

    One probe reads the text encoder, another the language model's first positions, where the caption is most of the
    available information. Probes are not exported.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in CLASSES)

    def forward(self, hidden: Tensor, mask: Tensor, songs: Sequence[Song]) -> Tensor:
        """Return the loss of classifying songs from the mean of hidden [B, L, width] where mask [B, L] is true."""
        weights = mask.to(hidden.dtype)[:, :, None]
        present = mask.any(dim=1)
        mean = ((hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1))[present]
        labels = torch.tensor([song_classes(song) for song in songs], device=hidden.device)[present]
        parts = [F.cross_entropy(head(mean), labels[:, i]) for i, head in enumerate(self.heads)]
        return torch.stack(parts).mean()


class BeatProbe(nn.Module):
    """An auxiliary classifier of tempo, frame of the beat and beat of the bar, at every position.

    The token loss depends on the time of the next note at few frames, so it teaches the beat slowly. The probe reads
    the input of the last two layers, so that these can use the beat. It is not exported.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in BEAT_CLASSES)

    def forward(self, hidden: Tensor, frames: Tensor, songs: Sequence[Song]) -> Tensor:
        """Return the loss for hidden states [B, S, width] of songs at frames [B, S]."""
        beat = torch.tensor([2 * half_beat(song.tempo) for song in songs], device=frames.device)[:, None]
        bar = torch.tensor([STYLES[song.style].beats for song in songs], device=frames.device)[:, None]
        tempo = torch.tensor([TEMPOS.index(song.tempo) for song in songs], device=frames.device)[:, None]
        labels = tempo.expand_as(frames), frames % beat, frames // beat % bar
        hidden = self.norm(hidden)
        return torch.stack(
            [
                F.cross_entropy(head(hidden).flatten(0, 1), label.flatten())
                for head, label in zip(self.heads, labels, strict=True)
            ]
        ).mean()


def song_classes(song: Song) -> list[int]:
    """Return the class indices of a song, in the order of CLASSES."""
    return [
        list(STYLES).index(song.style),
        list(REGISTERS).index(song.register),
        int(song.brightness > 0.5),
        int(song.mode == "major"),
        int(song.drums),
        TEMPOS.index(song.tempo),
        ["slow", "middle", "fast"].index(speed(song)),
    ]


CLASSES = (len(STYLES), len(REGISTERS), 2, 2, 2, len(TEMPOS), 3)
BEAT_CLASSES = (len(TEMPOS), 2 * half_beat(min(TEMPOS)), 4)


def encode(plan: Plan, codec: Any, songs: Dataset, clock: Clock) -> Tensor:
    """Encode all songs to tokens [N, K, frames], in their order.

    Raises:
        OutOfTime: the time limit is reached; call again.
    """
    folder = plan.folder / "tokens"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"tokens-{number:03}.pt" for number in range(len(songs) // SHARD_SONGS)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    for number in tqdm(missing, "encoding", disable=None):
        torch.save(codecs.tokens(codec, songs.shard(number)), f"{paths[number]}.part")
        os.replace(f"{paths[number]}.part", paths[number])
        clock.check()
    return torch.cat([torch.load(path, weights_only=True) for path in paths])


def corrupt_tokens(tokens: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Replace a share of tokens [B, K, S] by another clip's, so that the model learns to continue after bad samples."""
    replaced = torch.from_numpy(rng.random(tokens.shape) < share).to(tokens.device)
    return torch.where(replaced, tokens.roll(1, dims=0), tokens)


def song_weight(song: Song) -> float:
    """Return the relative frequency of a song in training."""
    return song_frequency(song) * math.prod(SURPRISE_WEIGHTS[key] for key in surprises(song))


def _optimizers(
    plan: Plan, network: Network, encoder: nn.Module, probes: Sequence[nn.Parameter]
) -> dict[str, torch.optim.Optimizer]:
    """Create Muon (Jordan et al. 2024) for the transformer's matrices and AdamW for all other parameters."""
    matrices = [p for p in network.transformer.parameters() if p.ndim == 2]
    tables = list(network.emb.parameters())
    prompt_parameters = [*encoder.parameters(), *network.output_proj.parameters()]
    grouped = {id(p) for p in (*matrices, *tables, *prompt_parameters)}
    rest = [p for p in (*network.parameters(), *probes) if id(p) not in grouped]
    groups = [
        {"params": rest, "highest": plan.lm_rate},
        {"params": prompt_parameters, "highest": PROMPT_RATE_FACTOR * plan.lm_rate},
        {"params": tables, "highest": EMBEDDING_RATE_FACTOR * plan.lm_rate, "weight_decay": 0.0},
    ]
    muon_groups = [{"params": matrices, "highest": MUON_RATE_FACTOR * plan.lm_rate}]
    return {
        "adamw": torch.optim.AdamW(groups, lr=plan.lm_rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
        "muon": torch.optim.Muon(muon_groups, lr=plan.lm_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    }


def train(plan: Plan, tokens: Tensor, songs: Sequence[Song], clock: Clock) -> tuple[Network, Any, Any]:
    """Train or resume the language model and the text encoder; return them in eval mode, with the tokenizer.

    Raises:
        OutOfTime: the time limit is reached; call again.
    """
    device = fast.device()
    tokenizer = text.tokenizer(plan)
    encoder = text.encoder(plan, len(tokenizer)).to(device)
    network = Network(plan).to(device)
    encoder_probe, caption_probe = (
        CaptionProbe(plan.text_dim, plan.seed).to(device),
        CaptionProbe(plan.dim, plan.seed).to(device),
    )
    beat_probe = BeatProbe(plan.dim, plan.seed).to(device)
    probes = [*encoder_probe.parameters(), *caption_probe.parameters(), *beat_probe.parameters()]
    parameters = [*network.parameters(), *encoder.parameters(), *probes]
    optimizers = _optimizers(plan, network, encoder, probes)

    trained = len(songs) - len(songs) // HELD_OUT
    weights = np.array([song_weight(song) for song in songs[:trained]])
    probabilities = weights / weights.sum()

    def losses(
        rng: np.random.Generator, window_share: float, *, training: bool, exchanged: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses of tokens, caption probes and beat probe, for training songs or held-out songs.

        With `exchanged` every song has the caption of another one.
        """
        length, batch_size = round(window_share * plan.window), round(plan.lm_batch / window_share)
        candidates = range(trained) if training else range(trained, len(songs))
        replace = batch_size > len(candidates)
        chosen = rng.choice(candidates, batch_size, replace=replace, p=probabilities if training else None)
        later = rng.random(batch_size) >= START_PROBABILITY
        begin = later * rng.integers(0, tokens.shape[-1] - length + 1, batch_size)
        codes = torch.stack([tokens[n, :, b : b + length] for n, b in zip(chosen, begin, strict=True)])
        inputs, targets = delayed(codes.long().to(device))
        if training:
            inputs = corrupt_tokens(inputs, plan.token_noise, rng)
        captioned = np.roll(chosen, 1) if exchanged else chosen
        required = [surprises(songs[n]) if training else frozenset() for n in captioned]
        prompts = [caption(songs[n], rng, keys).text for n, keys in zip(captioned, required, strict=True)]
        batch = tokenizer(prompts, return_tensors="pt", padding=True).to(device)
        hidden = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        conditional = rng.random(batch_size) >= (plan.cfg_dropout if training else 0)
        cond = torch.from_numpy(conditional.astype(np.float32)).to(device)
        with fast.half_precision(device):
            logits, last, penultimate = network(inputs, hidden, batch["attention_mask"].bool(), cond)
        batch_songs = [songs[n] for n in chosen]
        probe_loss = encoder_probe(hidden, batch["attention_mask"], batch_songs)
        if cond.any():
            first = last[:, :PROBE_POSITIONS].float()
            probe_loss = probe_loss + caption_probe(first, cond[:, None].expand(first.shape[:2]), batch_songs)
        frames = torch.from_numpy(begin)[:, None] + torch.arange(length)
        beat_loss = beat_probe(penultimate[:, :length].float(), frames.to(device), batch_songs)
        return fast.cross_entropy(logits.flatten(0, 2), targets.flatten()), probe_loss, beat_loss

    def held_out_loss(number: int, window_share: float, exchanged: bool = False) -> float:
        """Return the token loss on held-out songs, with their own captions or exchanged ones."""
        rng = np.random.default_rng([plan.seed, 31, number])
        return float(losses(rng, window_share, training=False, exchanged=exchanged)[0])

    evaluated: dict[str, float] = {}

    def step(number: int) -> dict[str, float]:
        rng = np.random.default_rng([plan.seed, 30, number])
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * cosine(number, plan.lm_steps)
        window_share = float(rng.choice([share for share, _ in WINDOW_SHARES], p=[p for _, p in WINDOW_SHARES]))
        loss, probe_loss, beat_loss = losses(rng, window_share, training=True)
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        (loss + PROBE_WEIGHT * probe_loss + BEAT_WEIGHT * beat_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        if number % EVALUATION_INTERVAL == 0 or not evaluated:
            with torch.no_grad():
                shortest = WINDOW_SHARES[0][0]
                evaluated["held_out"] = sum(held_out_loss(n, 1.0) for n in range(4)) / 4
                evaluated["caption_gain"] = held_out_loss(0, shortest, exchanged=True) - held_out_loss(0, shortest)
        return {"loss": loss.item(), "probe": probe_loss.item(), "beat": beat_loss.item(), **evaluated}

    run_steps(
        "language_model",
        plan.folder,
        plan.lm_steps,
        {
            "network": network,
            "encoder": encoder,
            "encoder_probe": encoder_probe,
            "caption_probe": caption_probe,
            "beat_probe": beat_probe,
            **optimizers,
        },
        step,
        clock,
        plan.seed,
    )
    return network.eval(), encoder.eval(), tokenizer
