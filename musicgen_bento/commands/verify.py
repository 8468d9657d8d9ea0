"""`verify`: how far the precisions are from float32 on a model's own weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from musicgen_bento.commands.generate import names

if TYPE_CHECKING:
    from musicgen_bento.engine.verify import Distance

HELP = """Compare precisions with float32 on MODEL's own weights.

Both read the same tokens, chosen by float32, greedily and by sampling; what is compared is what each would say next.
On a CPU, in a minute for a small model. Without --precision: all that a CPU has.

\b
musicgen-bento verify facebook/musicgen-small --precision int8
"""


@click.command(help=HELP)
@click.argument("model", shell_complete=names)
@click.option(
    "--precision",
    "-p",
    multiple=True,
    type=click.Choice(["bfloat16", "float16", "int8"]),
    help="Only this one; may be given again.",
)
def verify(model: str, precision: tuple[str, ...]) -> None:
    """Print a table and a verdict for each."""
    from musicgen_bento.engine import checkpoint
    from musicgen_bento.engine.names import resolve
    from musicgen_bento.engine.verify import CPU, LEAST_AGREEMENT, MOST_KL, distances
    from musicgen_bento.precision import named

    source = resolve(model, any_model=True, folders=True)
    files = checkpoint.open_files(source)
    found = distances(files, [named(name, CPU) for name in precision or ("bfloat16", "float16", "int8")])
    click.echo(_table(found))
    for name, both in found.items():
        verdict = "as good as float32" if all(each.near for each in both) else "not as good as float32"
        click.echo(f"{name}: {verdict} for {source.name}")
    click.echo(f"(as good: mean KL at most {MOST_KL:g} nats, the same top token in {LEAST_AGREEMENT:.0%} or more)")


def _table(found: dict[str, list[Distance]]) -> str:
    line = "{:<10} {:<9} {:>9} {:>9} {:>7} {:>9}"
    rows = [line.format("precision", "contexts", "KL, nats", "99% below", "top-1", "compared")]
    for name, both in found.items():
        for each in both:
            figures = f"{each.kl:.5f}", f"{each.kl_99:.4f}", f"{each.agreement:.1%}", each.distributions
            rows.append(line.format(name, each.contexts, *figures))
    return "\n".join(rows)
