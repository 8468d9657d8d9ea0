"""The language model's training: the tokens of songs, after their captions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from training import codec as codecs
from training import text
from training.captions import caption
from training.dataset import Dataset
from training.loop import Clock, cosine, steps
from training.network import Network, delayed
from training.plan import Plan

DEAF = 0.15  # of the clips, that guidance's second row is learnt from
HELD_OUT = 40  # of so many songs one, the last ones, for the curves' second line
LOOK = 100  # steps between two points of it


def encode(plan: Plan, codec: Any, songs: Dataset) -> Tensor:
    """All songs' tokens [N, K, frames], once."""
    place = plan.folder / "tokens.pt"
    if not place.exists():
        bar = tqdm(range(len(songs)), desc="encoding", disable=None)
        torch.save(torch.stack([codecs.tokens(codec, songs, number) for number in bar]), place)
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
    parameters = [*network.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.lm_rate, betas=(0.9, 0.95), weight_decay=0.05)

    def loss_of(rng: np.random.Generator, candidates: range) -> Tensor:
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
        return F.cross_entropy(logits.flatten(0, 2), say.flatten())

    learnt = len(songs) - len(songs) // HELD_OUT
    held_out = 0.0

    def step(number: int) -> dict[str, float]:
        nonlocal held_out
        rng = np.random.default_rng([plan.seed, 30, number])
        for group in optimizer.param_groups:
            group["lr"] = plan.lm_rate * cosine(number, plan.lm_steps)
        loss = loss_of(rng, range(learnt))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if number % LOOK == 0:
            with torch.no_grad():
                looks = [
                    loss_of(np.random.default_rng([plan.seed, 31, look]), range(learnt, len(songs)))
                    for look in range(4)
                ]
            held_out = float(torch.stack(looks).mean())
        return {"loss": float(loss.detach()), "held_out": held_out}

    steps(
        "language_model",
        plan.folder,
        plan.lm_steps,
        {"network": network, "encoder": encoder, "optimizer": optimizer},
        step,
        clock,
    )
    return network.eval(), encoder.eval(), tokenizer
