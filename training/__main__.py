"""Train the built-in model: songs, codec, language model, model card.

`python -m training` runs the remaining parts for 90 minutes at most; repeat it until it reports the finished model.
`python -m training evaluate` measures the model in the package.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from training import card, codec, dataset, evaluate, export, language_model
from training.loop import Clock, FolderInUse, OutOfTime, exclusive_folder
from training.plan import Plan, PlanMismatch

DEMO = Path(__file__).parent.parent / "musicgen_bento" / "demo"


@click.group(invoke_without_command=True)
@click.option("--minutes", default=90.0, show_default=True, help="Time limit; the next call resumes.")
@click.option("--folder", default=Plan().folder, show_default=True, type=click.Path(path_type=Path))
@click.pass_context
def main(context: click.Context, minutes: float, folder: Path) -> None:
    """Train the built-in model, or resume training."""
    plan = Plan(folder=folder)
    if context.invoked_subcommand is not None:
        return
    try:
        with exclusive_folder(folder):
            plan.claim_folder()
            torch.set_flush_denormal(True)  # decaying sounds end in subnormal numbers, which are slow
            make(plan, Clock(minutes))
    except FolderInUse:
        raise click.ClickException(f"Another run uses {folder}.") from None
    except PlanMismatch:
        raise click.ClickException(
            f"{folder} holds the output of another plan or of other songs: delete it, or set another --folder."
        ) from None
    except OutOfTime:
        click.echo("The time limit is reached and everything is saved. The same command resumes.", err=True)
        sys.exit(75)  # EX_TEMPFAIL: run again


def make(plan: Plan, clock: Clock) -> None:
    """Train, and export the model into `plan.folder / demo`, without evaluating it.

    Raises:
        OutOfTime: the time limit is reached; call again.
    """
    dataset.write(plan.folder / "songs", plan.songs, plan.seed, clock)
    songs = dataset.Dataset(plan.folder / "songs")
    trained = codec.train_decoder(plan, codec.train(plan, songs, clock), songs, clock)
    tokens = language_model.encode(plan, trained, songs, clock)
    network, encoder, tokenizer = language_model.train(plan, tokens, songs.songs, clock)
    folder = plan.folder / "demo"
    size = export.write(plan, trained, network, encoder, tokenizer, folder)
    card.write(plan, sum(tensor.numel() for tensor in network.state_dict().values()), size, folder)
    click.echo(f"{folder} holds the model, {size / 1e6:.1f} MB.")
    click.echo(f"`python -m training evaluate --model {folder}` evaluates it.")


@main.command(name="evaluate")
@click.option("--model", default=DEMO, show_default="the built-in one", type=click.Path(path_type=Path, exists=True))
@click.option("--clips", default=evaluate.CLIPS, show_default=True)
@click.option("--seed", default=evaluate.SEED, show_default=True, help="Use another seed for experiments.")
@click.option("--write", is_flag=True, help="Write the table into the model card.")
def evaluate_(model: Path, clips: int, seed: int, write: bool) -> None:
    """Evaluate a model and print the table."""
    if write and (clips, seed) != (evaluate.CLIPS, evaluate.SEED):
        raise click.UsageError("The figures of a model card require the default --clips and --seed.")
    if write and not card.has_marks(model / "README.md"):
        raise click.UsageError(
            f"{model / 'README.md'} has no marks for the figures: python -m training writes a card with marks."
        )
    files = loading.open_files(Source(str(model), model))
    result = evaluate.evaluate(model, files.codec, clips, seed)
    click.echo(card.figures_table(result))
    if write:
        card.write_figures(result, model / "README.md")


if __name__ == "__main__":
    main()
