"""The language model's training: the tokens of songs, after their captions."""

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
from training.dataset import SHARD, Dataset
from training.loop import Clock, cosine, steps
from training.network import Network, delayed
from training.plan import Plan
from training.songs import REGISTERS, STYLES, TEMPOS, Song, chance, half_beat, surprises

TEACHING = 0.3  # the weight of the lessons
KEEPING_TIME = 0.6  # and of the beat's
FIRST = 10  # positions
MATRICES = 2.0  # Muon's rate, beside AdamW's; see training/README.md for what it brought
EAGER = 8.0  # how much faster the embeddings learn: each is seen in few steps, and they are large beside a step
HEEDFUL = 3.0  # and what brings the prompt in
# A prompt decides how a clip begins, a few nats of the thousands that a long window has; what follows, the beginning
# decides. So many windows are short. (length in parts of the whole window, chance)
WINDOWS = ((0.125, 0.15), (0.5, 0.55), (1.0, 0.3))
# Most begin where the song does, as a clip does: then a position and a tempo say whether there is a beat. The others
# are for clips that go on beyond a window.
FROM_THE_START = 0.75
# A song that is not what its style makes one expect is drawn so many times as often, and its caption says so: else a
# techno without drums is too rare for the word to be learnt beside the genre, and a prompt that asks for it gets drums.
SURPRISING = {"drums": 3.0, "tempo": 2.0}
HELD_OUT = 40  # of so many songs one, the last ones, for the curves' second line
LOOK = 100  # steps between two points of it


class Lesson(nn.Module):
    """Extra labels that teach at once what would take the music's loss hours: what a caption says.

    They are read off the text encoder, and off the language model's first positions, which know little of the song
    but its caption. Left out of the model when it is done.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in CLASSES)

    def forward(self, hidden: Tensor, mask: Tensor, songs: Sequence[Song]) -> Tensor:
        """How wrongly a song's classes are read off the mean of what is known of it, [B, L, width] where mask is."""
        weights = mask.to(hidden.dtype)[:, :, None]
        there = mask.any(dim=1)
        mean = ((hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1))[there]
        wanted = torch.tensor([classes(song) for song in songs], device=hidden.device)[there]
        parts = [F.cross_entropy(head(mean), wanted[:, i]) for i, head in enumerate(self.heads)]
        return torch.stack(parts).mean()


class Beat(nn.Module):
    """Where in the music a position is: the tempo, the frame of the beat, and the beat of the bar.

    When the next note comes the music's loss says at one frame of many, and before it came the prompt alone knows.
    So every position is asked, two layers before the end, for what is to come to be made of it. Left out of the model.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in BEATS)

    def forward(self, hidden: Tensor, frames: Tensor, songs: Sequence[Song]) -> Tensor:
        """How wrongly it is read off hidden [B, S, width] of songs at their frames [B, S]."""
        beat = torch.tensor([2 * half_beat(song.tempo) for song in songs], device=frames.device)[:, None]
        bar = torch.tensor([STYLES[song.style].beats for song in songs], device=frames.device)[:, None]
        tempo = torch.tensor([TEMPOS.index(song.tempo) for song in songs], device=frames.device)[:, None]
        wanted = tempo.expand_as(frames), frames % beat, frames // beat % bar
        hidden = self.norm(hidden)
        return torch.stack(
            [
                F.cross_entropy(head(hidden).flatten(0, 1), to.flatten())
                for head, to in zip(self.heads, wanted, strict=True)
            ]
        ).mean()


def classes(song: Song) -> list[int]:
    """A song as numbers, each below its place in CLASSES."""
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
BEATS = (len(TEMPOS), 2 * half_beat(min(TEMPOS)), 4)


def encode(plan: Plan, codec: Any, songs: Dataset, clock: Clock) -> Tensor:
    """All songs' tokens [N, K, frames], in the songs' order.

    Raises:
        OutOfTime: the clock ran out; call again.
    """
    folder = plan.folder / "tokens"
    folder.mkdir(parents=True, exist_ok=True)
    places = [folder / f"tokens-{number:03}.pt" for number in range(len(songs) // SHARD)]
    missing = [number for number, place in enumerate(places) if not place.exists()]
    for number in tqdm(missing, "encoding", disable=None):
        torch.save(codecs.tokens(codec, songs.shard(number)), f"{places[number]}.part")
        os.replace(f"{places[number]}.part", places[number])
        clock.check()
    return torch.cat([torch.load(place, weights_only=True) for place in places])


def misread(read: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """What is read [B, K, S], a share of it taken from another clip: after a token chosen badly music goes on too."""
    wrong = torch.from_numpy(rng.random(read.shape) < share).to(read.device)
    return torch.where(wrong, read.roll(1, dims=0), read)


def weight(song: Song) -> float:
    """How often a song is learnt from, beside others."""
    return chance(song) * math.prod(SURPRISING[key] for key in surprises(song))


def _optimizers(
    plan: Plan, network: Network, encoder: nn.Module, lessons: Sequence[nn.Parameter]
) -> dict[str, torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the transformer's matrices, AdamW for the rest, each with its highest rate."""
    matrices = [p for p in network.transformer.parameters() if p.ndim == 2]
    tables = list(network.emb.parameters())
    heeding = [*encoder.parameters(), *network.output_proj.parameters()]
    placed = {id(p) for p in (*matrices, *tables, *heeding)}
    rest = [p for p in (*network.parameters(), *lessons) if id(p) not in placed]
    groups = [
        {"params": rest, "highest": plan.lm_rate},
        {"params": heeding, "highest": HEEDFUL * plan.lm_rate},
        {"params": tables, "highest": EAGER * plan.lm_rate, "weight_decay": 0.0},
    ]
    turned = [{"params": matrices, "highest": MATRICES * plan.lm_rate}]
    return {
        "adamw": torch.optim.AdamW(groups, lr=plan.lm_rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
        "muon": torch.optim.Muon(turned, lr=plan.lm_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    }


def train(plan: Plan, tokens: Tensor, songs: Sequence[Song], clock: Clock) -> tuple[Network, Any, Any]:
    """Train the language model and the text encoder, or go on; gives them with the tokenizer, in eval mode.

    Raises:
        OutOfTime: the clock ran out; call again.
    """
    device = fast.device()
    tokenizer = text.tokenizer(plan)
    encoder = text.encoder(plan, len(tokenizer)).to(device)
    network = Network(plan).to(device)
    lesson, heard = Lesson(plan.text_dim, plan.seed).to(device), Lesson(plan.dim, plan.seed).to(device)
    beat = Beat(plan.dim, plan.seed).to(device)
    lessons = [*lesson.parameters(), *heard.parameters(), *beat.parameters()]
    parameters = [*network.parameters(), *encoder.parameters(), *lessons]
    optimizers = _optimizers(plan, network, encoder, lessons)

    learnt = len(songs) - len(songs) // HELD_OUT
    weights = np.array([weight(song) for song in songs[:learnt]])
    chances = weights / weights.sum()

    def losses(
        rng: np.random.Generator, part: float, *, learning: bool, exchanged: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the music, the lessons and the beat; of songs held out, as they come, if it is not for learning."""
        length, batch_size = round(part * plan.window), round(plan.lm_batch / part)
        candidates = range(learnt) if learning else range(learnt, len(songs))
        many = batch_size > len(candidates)
        chosen = rng.choice(candidates, batch_size, replace=many, p=chances if learning else None)
        later = rng.random(batch_size) >= FROM_THE_START
        begin = later * rng.integers(0, tokens.shape[-1] - length + 1, batch_size)
        codes = torch.stack([tokens[n, :, b : b + length] for n, b in zip(chosen, begin, strict=True)])
        read, say = delayed(codes.long().to(device))
        if learning:
            read = misread(read, plan.noise, rng)
        told = np.roll(chosen, 1) if exchanged else chosen
        surely = [surprises(songs[n]) if learning else frozenset() for n in told]
        said = [caption(songs[n], rng, keys).text for n, keys in zip(told, surely, strict=True)]
        batch = tokenizer(said, return_tensors="pt", padding=True).to(device)
        hidden = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        hearing = rng.random(batch_size) >= (plan.deaf if learning else 0)
        hears = torch.from_numpy(hearing.astype(np.float32)).to(device)
        with fast.half(device):
            logits, known, beneath = network(read, hidden, batch["attention_mask"].bool(), hears)
        described = [songs[n] for n in chosen]
        taught = lesson(hidden, batch["attention_mask"], described)
        if hears.any():
            first = known[:, :FIRST].float()
            taught = taught + heard(first, hears[:, None].expand(first.shape[:2]), described)
        frames = torch.from_numpy(begin)[:, None] + torch.arange(length)
        counted = beat(beneath[:, :length].float(), frames.to(device), described)
        return fast.cross_entropy(logits.flatten(0, 2), say.flatten()), taught, counted

    def look(number: int, part: float, exchanged: bool = False) -> float:
        """The music's loss on songs held out, with their captions or with each other's."""
        rng = np.random.default_rng([plan.seed, 31, number])
        return float(losses(rng, part, learning=False, exchanged=exchanged)[0])

    seen: dict[str, float] = {}

    def step(number: int) -> dict[str, float]:
        rng = np.random.default_rng([plan.seed, 30, number])
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * cosine(number, plan.lm_steps)
        part = float(rng.choice([p for p, _ in WINDOWS], p=[chance for _, chance in WINDOWS]))
        loss, taught, counted = losses(rng, part, learning=True)
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        (loss + TEACHING * taught + KEEPING_TIME * counted).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        if number % LOOK == 0 or not seen:
            with torch.no_grad():
                seen["held_out"] = sum(look(n, 1.0) for n in range(4)) / 4
                seen["heeded"] = look(0, WINDOWS[0][0], exchanged=True) - look(0, WINDOWS[0][0])
        return {"loss": loss.item(), "lesson": taught.item(), "beat": counted.item(), **seen}

    steps(
        "language_model",
        plan.folder,
        plan.lm_steps,
        {
            "network": network,
            "encoder": encoder,
            "lesson": lesson,
            "heard": heard,
            "beat": beat,
            **optimizers,
        },
        step,
        clock,
        plan.seed,
    )
    return network.eval(), encoder.eval(), tokenizer
