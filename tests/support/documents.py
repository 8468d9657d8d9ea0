"""The documents as the tests read them: code blocks, the package order, and the tables generated from the code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from musicgen_bento import errors
from musicgen_bento.config import Settings
from musicgen_bento.model_catalog import CATALOG, ModelCard

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
# The guides whose code blocks tests/e2e/test_readme.py runs; docs/sdk.md and docs/cli.md have a test of their own.
GUIDES = (README, *(ROOT / "docs" / name for name in ("http.md", "models.md", "docker.md")))

_BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced code block. `reason_not_run` is the text of the comment above a block that is not run, else None."""

    heading: str
    language: str
    code: str
    reason_not_run: str | None


def blocks(document: Path = README) -> list[Block]:
    """The fenced code blocks of a document, in order."""
    text = document.read_text()
    code_blocks = []
    for match in _BLOCK.finditer(text):
        headings = re.findall(r"^#+ (.+)$", re.sub(_BLOCK, "", text[: match.start()]), re.M)
        code_blocks.append(Block(headings[-1], match["language"], match["code"], match["why"]))
    return code_blocks


def package_order() -> dict[str, str]:
    """The entries of "Package order" in docs/architecture.md, lowest first: path → description."""
    [block] = [block for block in blocks(ARCHITECTURE) if block.heading == "Package order"]
    root, *lines = block.code.splitlines()
    entries = {}
    for line in lines:
        name, _, description = line.strip().partition(" ")
        entries[root + name] = description.strip()
    return entries


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings_table() -> str:
    """The table of docs/settings.md."""

    def shown(value: object) -> str:
        match value:
            case None:
                return "by device"
            case bool():
                return f"`{int(value)}`"
            case tuple():
                return f"`{','.join(value)}`"
            case float():
                return f"`{value:g}`"
            case _:
                return f"`{value}`"

    return _table(
        ("variable", "default", "meaning"),
        [
            (f"`MUSICGEN_{name.upper()}`", shown(field.default), field.description or "")
            for name, field in Settings.model_fields.items()
        ],
    )


def error_table() -> str:
    """The table of docs/http.md."""
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MusicGenError)
    ]
    kinds.sort(key=lambda kind: kind.status)
    about = {errors.MusicGenError: "An unexpected failure."}
    return _table(
        ("status", "code", "meaning"),
        [
            (str(kind.status), f"`{kind.code}`", about.get(kind) or (kind.__doc__ or "").splitlines()[0])
            for kind in kinds
        ],
    )


def model_table() -> str:
    """The table of docs/models.md."""

    def size(card: ModelCard) -> str:
        return f"{card.download_bytes / 1e9:.1f} GB" if card.download_bytes else "built in"

    def parameters(card: ModelCard) -> str:
        return f"{card.parameters / 1e9:.1f} B" if card.parameters >= 1e9 else f"{card.parameters / 1e6:.3g} M"

    return _table(
        ("model", "channels", "parameters", "download", "aliases"),
        [
            (
                f"`{card.id}`",
                "stereo" if card.channels == 2 else "mono",
                parameters(card),
                size(card),
                ", ".join(f"`{alias}`" for alias in card.aliases if alias.startswith("facebook/")) or "",
            )
            for card in CATALOG
        ],
    )


if __name__ == "__main__":
    print(settings_table(), error_table(), model_table(), sep="\n\n")
