"""The language model's training: the tokens of songs, after their captions."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from training import codec as codecs
from training import text
from training.captions import caption, speed
from training.dataset import Dataset
from training.instruments import PITCHED
from training.loop import Clock, cosine, steps
from training.network import Network, delayed
from training.plan import Plan
from training.songs import STYLES, Song, surprises

TEACHING = 0.3  # the weight of the lessons
FIRST = 10  # positions
DEAF = 0.15  # of the clips, that guidance's second row is learnt from
EAGER = 8.0  # how much faster the embeddings learn: each is seen in few steps, and they are large beside a step
HEEDFUL = 3.0  # and what brings the prompt in
# A prompt decides how a clip begins, a few nats of the thousands that a long window has; what follows, the beginning
# decides. So many windows are short. (length in parts of the whole window, chance)
WINDOWS = ((0.125, 0.3), (0.5, 0.3), (1.0, 0.4))
# Most begin where the song does, as a clip does: then a position and a tempo say whether there is a beat. The others
# are for clips that go on beyond a window.
FROM_THE_START = 0.75
# A song that is not what its style makes one expect is drawn so many times as often, and its caption says so: else a
# techno without drums is too rare for the word to be learnt beside the genre, and a prompt that asks for it gets drums.
SURPRISING = {"drums": 3.0, "tempo": 2.0}
AT_ONCE = 10  # songs that are encoded together
HELD_OUT = 40  # of so many songs one, the last ones, for the curves' second line
LOOK = 100  # steps between two points of it
HEEDING = re.compile(r"cross|output_proj")


class Lesson(nn.Module):
    """What is learnt at once so, where the music would take hours to teach it: what a caption says.

    The text encoder learns it, and the language model, of the first positions, which know the song by its caption
    alone. Left out of the model when it is done.
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


def classes(song: Song) -> list[int]:
    """A song as numbers, each below its place in CLASSES."""
    return [
        list(STYLES).index(song.style),
        ["", *PITCHED].index(song.chords),
        ["", *PITCHED].index(song.melody),
        ["low", "middle", "high"].index(song.register),
        round(2 * song.brightness),
        int(song.mode == "major"),
        int(song.drums),
        min((song.tempo - 60) // 10, 11),
        ["slow", "middle", "fast"].index(speed(song)),
    ]


CLASSES = (len(STYLES), len(PITCHED) + 1, len(PITCHED) + 1, 3, 3, 2, 2, 12, 3)


def encode(plan: Plan, codec: Any, songs: Dataset) -> Tensor:
    """All songs' tokens [N, K, frames], once."""
    place = plan.folder / "tokens.pt"
    if not place.exists():
        bar = tqdm(range(0, len(songs), AT_ONCE), desc="encoding", disable=None)
        some = [codecs.tokens(codec, songs, range(begin, min(begin + AT_ONCE, len(songs)))) for begin in bar]
        torch.save(torch.cat(some), f"{place}.part")
        os.replace(f"{place}.part", place)
    tokens: Tensor = torch.load(place, weights_only=True)
    return tokens


def weight(song: Song) -> float:
    """How often a song is learnt from, beside one that is what its style makes one expect."""
    return math.prod(SURPRISING[key] for key in surprises(song))


def train(plan: Plan, tokens: Tensor, songs: Dataset, clock: Clock) -> tuple[Network, Any, Any]:
    """Train the language model and the text encoder, or go on; gives them with the tokenizer, in eval mode.

    Raises:
        OutOfTime: the clock ran out; call again.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = text.tokenizer(plan)
    encoder = text.encoder(plan, len(tokenizer)).to(device).train()
    network = Network(plan).to(device).train()
    lesson, heard = Lesson(plan.text_dim, plan.seed).to(device), Lesson(plan.dim, plan.seed).to(device)
    lessons = [*lesson.parameters(), *heard.parameters()]
    parameters = [*network.parameters(), *encoder.parameters(), *lessons]
    tables = [*network.emb.parameters()]
    heeding = [*encoder.parameters(), *(p for name, p in network.named_parameters() if HEEDING.search(name))]
    others = {id(p) for p in (*tables, *heeding)}
    rest = [p for p in parameters if id(p) not in others]
    groups = [{"params": rest}, {"params": heeding}, {"params": tables, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.lm_rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    weights = np.array([weight(song) for song in songs.songs])
    surprising = [surprises(song) for song in songs.songs]

    def losses(
        rng: np.random.Generator, candidates: range, part: float = 1.0, exchanged: bool = False
    ) -> tuple[Tensor, Tensor]:
        length, batch_size = round(part * plan.window), round(plan.lm_batch / part)
        chances = weights[candidates] / weights[candidates].sum()
        chosen = rng.choice(candidates, batch_size, replace=batch_size > len(candidates), p=chances)
        later = rng.random(batch_size) >= FROM_THE_START
        begin = later * rng.integers(0, tokens.shape[-1] - length + 1, batch_size)
        codes = torch.stack([tokens[n, :, b : b + length] for n, b in zip(chosen, begin, strict=True)])
        read, say = delayed(codes.long().to(device))
        told = np.roll(chosen, 1) if exchanged else chosen
        said = [caption(songs.songs[n], rng, surprising[n]).text for n in told]
        batch = tokenizer(said, return_tensors="pt", padding=True).to(device)
        hidden = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        hears = torch.from_numpy((rng.random(batch_size) >= DEAF).astype(np.float32)).to(device)
        logits, known = network(read, hidden, batch["attention_mask"].bool(), hears)
        described = [songs.songs[n] for n in chosen]
        taught = lesson(hidden, batch["attention_mask"], described)
        if hears.any():
            first = known[:, :FIRST]
            taught = taught + heard(first, hears[:, None].expand(first.shape[:2]), described)
        return F.cross_entropy(logits.flatten(0, 2), say.flatten()), taught

    learnt = len(songs) - len(songs) // HELD_OUT

    def look(number: int, part: float, exchanged: bool = False) -> float:
        """A loss on songs held out."""
        rng = np.random.default_rng([plan.seed, 31, number])
        return float(losses(rng, range(learnt, len(songs)), part, exchanged)[0])

    seen: dict[str, float] = {}

    def step(number: int) -> dict[str, float]:
        rng = np.random.default_rng([plan.seed, 30, number])
        for group, pace in zip(optimizer.param_groups, (1.0, HEEDFUL, EAGER), strict=True):
            group["lr"] = pace * plan.lm_rate * cosine(number, plan.lm_steps)
        part = float(rng.choice([p for p, _ in WINDOWS], p=[chance for _, chance in WINDOWS]))
        loss, taught = losses(rng, range(learnt), part)
        optimizer.zero_grad(set_to_none=True)
        (loss + TEACHING * taught).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if number % LOOK == 0 or not seen:
            with torch.no_grad():
                seen["held_out"] = sum(look(n, 1.0) for n in range(4)) / 4
                seen["heeded"] = look(0, WINDOWS[0][0], exchanged=True) - look(0, WINDOWS[0][0])
        return {"loss": loss.item(), "lesson": taught.item(), **seen}

    steps(
        "language_model",
        plan.folder,
        plan.lm_steps,
        {"network": network, "encoder": encoder, "lesson": lesson, "heard": heard, "optimizer": optimizer},
        step,
        clock,
    )
    return network.eval(), encoder.eval(), tokenizer
