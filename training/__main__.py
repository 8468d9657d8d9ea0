"""Makes the built-in model: songs, codec, language model, evaluation, card.

`python -m training` does what is not done yet, for 90 minutes at most; run it again until it says that it is done.
`python -m training evaluate` measures the model that is there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from musicgen_bento.engine import checkpoint
from musicgen_bento.engine.hub import Source
from training import card, codec, dataset, evaluate, export, language_model
from training.loop import Clock, OutOfTime
from training.plan import Plan

DEMO = Path(__file__).parent.parent / "musicgen_bento" / "demo"


@click.group(invoke_without_command=True)
@click.option("--minutes", default=90.0, show_default=True, help="Stop after so long; the next call goes on.")
@click.option("--folder", default=Plan().folder, show_default=True, type=click.Path(path_type=Path))
@click.pass_context
def main(context: click.Context, minutes: float, folder: Path) -> None:
    """Make the built-in model, or go on making it."""
    context.obj = plan = Plan(folder=folder)
    if context.invoked_subcommand is not None:
        return
    try:
        make(plan, Clock(minutes))
    except OutOfTime:
        click.echo("Time is over and all is saved. The same command goes on.", err=True)
        sys.exit(75)  # EX_TEMPFAIL: again, please


def make(plan: Plan, clock: Clock) -> None:
    """Train, export into `plan.folder / demo`, evaluate; the last step is to look, and to copy."""
    dataset.write(plan.folder / "songs", plan.songs, plan.seed)
    songs = dataset.Dataset(plan.folder / "songs")
    trained = codec.finish(plan, codec.kept(plan) or codec.train(plan, songs, clock), songs, clock)
    tokens = language_model.encode(plan, trained, songs)
    network, encoder, tokenizer = language_model.train(plan, tokens, songs, clock)
    done = plan.folder / "demo"
    size = export.write(plan, trained, network, encoder, tokenizer, done)
    click.echo(f"{done} holds the model, {size / 1e6:.1f} MB. `python -m training evaluate --model {done}` judges it.")


@main.command(name="codec")
@click.option("--keep", is_flag=True, help="It has passed: put it where the next run begins with it.")
@click.pass_obj
def codec_(plan: Plan, keep: bool) -> None:
    """Measure the codec that was trained, alone."""
    songs = dataset.Dataset(plan.folder / "songs")
    try:
        trained = codec.finish(plan, codec.kept(plan) or codec.train(plan, songs, Clock(0)), songs, Clock(0))
    except OutOfTime:
        raise click.ClickException("The codec is not trained yet: python -m training") from None
    result = evaluate.Result()
    evaluate.judge_codec(result, evaluate.held_out(evaluate.CLIPS), trained)
    click.echo(card.codec_table(result))
    if keep:
        codec.keep(plan, trained)


@main.command(name="evaluate")
@click.option("--model", default=DEMO, show_default="the built-in one", type=click.Path(path_type=Path, exists=True))
@click.option("--clips", default=evaluate.CLIPS, show_default=True)
@click.option("--write", is_flag=True, help="Write the card beside the model, and the curves.")
@click.pass_obj
def evaluate_(plan: Plan, model: Path, clips: int, write: bool) -> None:
    """Measure a model and print the table."""
    files = checkpoint.open_files(Source(str(model), model))
    result = evaluate.evaluate(model, files.codec, clips)
    click.echo(card.table(result))
    if write:
        size = sum(f.stat().st_size for f in model.rglob("*") if f.suffix in (".bin", ".safetensors", ".json"))
        card.write(plan, result, files.size.numbers, size, model / "README.md")
        card.draw(plan, Path(__file__).parent / "curves.svg")
        (Path(__file__).parent / "figures.json").write_text(json.dumps(asdict(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
