"""The language model's training: the tokens of songs, after their captions."""

from __future__ import annotations

import os
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
from training.songs import STYLES, Song

TEACHING = 0.3  # the weight of the text encoder's own lesson
DEAF = 0.15  # of the clips, that guidance's second row is learnt from
EAGER = 8.0  # how much faster the embeddings learn: each is seen in few steps, and they are large beside a step
HELD_OUT = 40  # of so many songs one, the last ones, for the curves' second line
LOOK = 100  # steps between two points of it


class Lesson(nn.Module):
    """What the text encoder learns at once, where the music would take hours to teach it: what a caption says.

    Left out of the model when it is done.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        torch.manual_seed(plan.seed)
        self.heads = nn.ModuleList(nn.Linear(plan.text_dim, count) for count in CLASSES)

    def forward(self, hidden: Tensor, mask: Tensor, songs: Sequence[Song]) -> Tensor:
        """How wrongly a song's classes are read off the mean of its caption's encoding [B, L, text_dim]."""
        weights = mask.to(hidden.dtype)[:, :, None]
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        wanted = torch.tensor([classes(song) for song in songs], device=hidden.device)
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
        bar = tqdm(range(len(songs)), desc="encoding", disable=None)
        torch.save(torch.stack([codecs.tokens(codec, songs, number) for number in bar]), f"{place}.part")
        os.replace(f"{place}.part", place)
    tokens: Tensor = torch.load(place, weights_only=True)
    return tokens


def train(plan: Plan, tokens: Tensor, songs: Dataset, clock: Clock) -> tuple[Network, Any, Any]:
    """Train the language model and the text encoder, or go on; gives them with the tokenizer, in eval mode.

    Raises:
        OutOfTime: the clock ran out; call again.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = text.tokenizer(plan)
    encoder = text.encoder(plan, len(tokenizer)).to(device).train()
    network = Network(plan).to(device).train()
    lesson = Lesson(plan).to(device)
    parameters = [*network.parameters(), *encoder.parameters(), *lesson.parameters()]
    tables = [*network.emb.parameters()]
    rest = [p for p in parameters if all(p is not table for table in tables)]
    groups = [{"params": rest, "pace": 1.0}, {"params": tables, "pace": EAGER, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.lm_rate, betas=(0.9, 0.95), weight_decay=0.05)

    def losses(rng: np.random.Generator, candidates: range) -> tuple[Tensor, Tensor]:
        chosen = rng.choice(candidates, plan.lm_batch, replace=False)
        begin = rng.integers(0, tokens.shape[-1] - plan.window + 1, plan.lm_batch)
        codes = torch.stack([tokens[n, :, b : b + plan.window] for n, b in zip(chosen, begin, strict=True)])
        read, say = delayed(codes.long().to(device))
        batch = tokenizer([caption(songs.songs[n], rng).text for n in chosen], return_tensors="pt", padding=True).to(
            device
        )
        hidden = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        hears = torch.from_numpy((rng.random(plan.lm_batch) >= DEAF).astype(np.float32)).to(device)
        logits = network(read, hidden, batch["attention_mask"].bool(), hears)
        taught = lesson(hidden, batch["attention_mask"], [songs.songs[n] for n in chosen])
        return F.cross_entropy(logits.flatten(0, 2), say.flatten()), taught

    learnt = len(songs) - len(songs) // HELD_OUT
    held_out = 0.0

    def step(number: int) -> dict[str, float]:
        nonlocal held_out
        rng = np.random.default_rng([plan.seed, 30, number])
        for group in optimizer.param_groups:
            group["lr"] = group["pace"] * plan.lm_rate * cosine(number, plan.lm_steps)
        loss, taught = losses(rng, range(learnt))
        optimizer.zero_grad(set_to_none=True)
        (loss + TEACHING * taught).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if number % LOOK == 0:
            with torch.no_grad():
                looks = [
                    losses(np.random.default_rng([plan.seed, 31, look]), range(learnt, len(songs)))[0]
                    for look in range(4)
                ]
            held_out = float(torch.stack(looks).mean())
        return {"loss": loss.item(), "lesson": taught.item(), "held_out": held_out}

    steps(
        "language_model",
        plan.folder,
        plan.lm_steps,
        {"network": network, "encoder": encoder, "lesson": lesson, "optimizer": optimizer},
        step,
        clock,
    )
    return network.eval(), encoder.eval(), tokenizer
