"""Makes the built-in model: songs, codec, language model, card.

`python -m training` does what is not done yet, for 90 minutes at most; run it again until it says that it is done.
`python -m training evaluate` measures the model that is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from training import card, codec, dataset, evaluate, export, language_model
from training.loop import Busy, Clock, OutOfTime, alone
from training.plan import OtherPlan, Plan

DEMO = Path(__file__).parent.parent / "musicgen_bento" / "demo"


@click.group(invoke_without_command=True)
@click.option("--minutes", default=90.0, show_default=True, help="Stop after so long; the next call goes on.")
@click.option("--folder", default=Plan().folder, show_default=True, type=click.Path(path_type=Path))
@click.pass_context
def main(context: click.Context, minutes: float, folder: Path) -> None:
    """Make the built-in model, or go on making it."""
    plan = Plan(folder=folder)
    if context.invoked_subcommand is not None:
        return
    try:
        with alone(folder):
            plan.claim()
            torch.set_flush_denormal(True)  # what fades away ends in numbers that a processor is slow with
            make(plan, Clock(minutes))
    except Busy:
        raise click.ClickException(f"Another run is at work in {folder}.") from None
    except OtherPlan:
        raise click.ClickException(
            f"{folder} holds what another plan or other songs have made: delete it, or name another --folder."
        ) from None
    except OutOfTime:
        click.echo("Time is over and all is saved. The same command goes on.", err=True)
        sys.exit(75)  # EX_TEMPFAIL: again, please


def make(plan: Plan, clock: Clock) -> None:
    """Train, and export into `plan.folder / demo`; to evaluate, to look and to copy is left.

    Raises:
        OutOfTime: the clock ran out; call again.
    """
    dataset.write(plan.folder / "songs", plan.songs, plan.seed, clock)
    songs = dataset.Dataset(plan.folder / "songs")
    trained = codec.finish(plan, codec.train(plan, songs, clock), songs, clock)
    tokens = language_model.encode(plan, trained, songs, clock)
    network, encoder, tokenizer = language_model.train(plan, tokens, songs.songs, clock)
    done = plan.folder / "demo"
    size = export.write(plan, trained, network, encoder, tokenizer, done)
    card.write(plan, sum(tensor.numel() for tensor in network.state_dict().values()), size, done)
    click.echo(f"{done} holds the model, {size / 1e6:.1f} MB. `python -m training evaluate --model {done}` judges it.")


@main.command(name="evaluate")
@click.option("--model", default=DEMO, show_default="the built-in one", type=click.Path(path_type=Path, exists=True))
@click.option("--clips", default=evaluate.CLIPS, show_default=True)
@click.option("--seed", default=evaluate.SEED, show_default=True, help="Another one to try things with.")
@click.option("--write", is_flag=True, help="Put the table into the model's card.")
def evaluate_(model: Path, clips: int, seed: int, write: bool) -> None:
    """Measure a model and print the table."""
    if write and (clips, seed) != (evaluate.CLIPS, evaluate.SEED):
        raise click.UsageError("A card's figures are of the clips and the seed that are the defaults.")
    if write and not card.has_place(model / "README.md"):
        raise click.UsageError(
            f"{model / 'README.md'} has no place for figures: python -m training writes it with one."
        )
    files = loading.open_files(Source(str(model), model))
    result = evaluate.evaluate(model, files.codec, clips, seed)
    click.echo(card.table(result))
    if write:
        card.measured(result, model / "README.md")


if __name__ == "__main__":
    main()
